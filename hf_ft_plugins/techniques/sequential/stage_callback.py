"""`StageCallback`: what happens when a stage begins and when it has ended; it trains nothing.

    trainer.add_callback(callback := StageCallback(StageRecords(Path("stages")), "medical"))
    callback.set_trainer(trainer)

When it begins, the evaluation sets are measured that the stage before could not measure. When it has ended, all sets of
all stages are measured, and the stage is kept: its model, rows of its data, what was measured.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from ...host.ranks import from_first_rank, is_distributed
from ...host.stash import WithTrainer, stash_of
from ...progress import bars_as_asked
from ...technique import data_seed
from . import model_identity
from .evaluating import measured
from .kept_model import save_model
from .kept_rows import keep_rows, save_rows
from .measured_sets import as_own, own_sets
from .own_answers import with_own_answers
from .replay import REPLAY
from .settings import NAME
from .stage_data import EVALUATION, STAGE_DATA, StageData, folder_of_set, kept_evaluations, named
from .stage_records import FinishedStage, Measured, StageRecords
from .transfer_matrix import MATRIX, matrix_of, write_matrix

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SAMPLE_FILE = "weights_sample.json"


class StageCallback(WithTrainer, TrainerCallback):
    """Measures and keeps a stage.

    Args:
        records: the sequence's folder.
        stage: the stage's name.
        options: recorded with it.
        replay_rows: training rows to keep; 0: none.
        evaluation_rows: rows to keep of each evaluation set.
        own_answers: replace the answers of the kept rows by the model's own; see `own_answers.py`.
        metric, greater_is_better: see `matrix_of`.
    """

    end_phase = "export"

    def __init__(
        self,
        records: StageRecords,
        stage: str,
        *,
        options: Mapping[str, Any] | None = None,
        replay_rows: int = 2000,
        evaluation_rows: int = 1000,
        own_answers: bool = False,
        metric: str | None = None,
        greater_is_better: bool | None = None,
    ) -> None:
        self.records, self.stage = records, stage
        self.options = dict(options or {})
        self.replay_rows, self.evaluation_rows = replay_rows, evaluation_rows
        self.own_answers = own_answers
        self.metric, self.greater_is_better = metric, greater_is_better
        self.before: Measured = {}
        # What the progress bar is called.
        self.title = stage

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["before"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._trainer.callback_handler.callbacks:
            bar = getattr(callback, "training_bar", None) if isinstance(callback, ProgressCallback) else None
            if bar is not None:
                bar.set_description(self.title)
        earlier = self._finished(args)
        # `train` may be called again, on the trainer of a stage that has ended.
        self.records.refuse_finished(self.stage, earlier)
        if state.global_step == 0:
            known = earlier[-1].after if earlier else {}
            sets = {name: rows for name, rows in self._sets(earlier).items() if name not in known}
            self.before = self._measured(args, sets)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, data = self._trainer, self._data()
        earlier = self._finished(args)
        stage = FinishedStage(
            name=self.stage,
            steps=state.global_step,
            options=self.options,
            model=model_identity.identity_of(_plain(trainer), trainer.processing_class),
            before=self.before,
            after=self._measured(args, self._sets(earlier)),
        )
        folder = self.records.of(self.stage)
        from_first_rank(args, lambda: self.records.begin(self.stage))
        sample = model_identity.sample_of(save_model(trainer, folder))
        from_first_rank(args, lambda: self._keep_rows(data, folder, data_seed(args)))
        from_first_rank(args, lambda: self._finish(stage, sample, earlier))
        if is_distributed(args):
            dist.barrier()

    def _finish(self, stage: FinishedStage, sample: dict[str, list[float]], earlier: list[FinishedStage]) -> None:
        (self.records.of(self.stage) / SAMPLE_FILE).write_text(json.dumps(sample), encoding="utf-8")
        self.records.finish(stage)
        logger.info("%s: stage %s has ended; the next one starts from %s", NAME, stage.name, self._model_folder())
        matrix = matrix_of([*earlier, stage], self.metric, self.greater_is_better)
        if matrix is not None:
            stash_of(self._trainer)[MATRIX] = matrix
            picture = write_matrix(matrix, self.records.folder)
            logger.info("%s: %s\n%s", NAME, picture, matrix.as_text())
        elif self.metric is not None:
            known = sorted({name for values in stage.after.values() for name in values})
            logger.warning(
                "%s: metric=%s was not measured; there are %s", NAME, self.metric, ", ".join(known) or "none"
            )

    def _model_folder(self) -> Path:
        return self.records.model_of(self.stage)

    def _keep_rows(self, data: StageData, folder: Path, seed: int) -> None:
        for name, kept in own_sets(data, self.evaluation_rows).items():
            save_rows(kept, folder_of_set(folder / EVALUATION, name))
        if self.replay_rows and data.train is not None:
            rows = keep_rows(data.train, self.replay_rows, seed)
            if self.own_answers:
                rows, counts = with_own_answers(rows, _plain(self._trainer), self._tokenizer(), seed=seed)
                logger.info("%s: kept rows with the model's own answers: %s", NAME, counts)
            save_rows(rows, folder / REPLAY)

    def _tokenizer(self) -> Any:
        processing_class = self._trainer.processing_class
        return getattr(processing_class, "tokenizer", processing_class)

    def _sets(self, earlier: list[FinishedStage]) -> dict[str, Any]:
        """The evaluation sets of all stages, rows as this trainer's own are: this stage's are cut as they are kept."""
        data = self._data()
        kept = own_sets(data, self.evaluation_rows)
        own = named(self.stage, {name: name for name in kept})
        sets = kept_evaluations(self.records, [stage.name for stage in earlier])
        sets = {**sets, **{name: kept[given] for name, given in own.items()}}
        read = {name: as_own(name, rows, data, self._trainer, own.get(name)) for name, rows in sets.items()}
        return {name: rows for name, rows in read.items() if rows is not None}

    def _measured(self, args: TrainingArguments, sets: dict[str, Any]) -> Measured:
        with bars_as_asked(args):
            results = measured(self._trainer, sets, named(self.stage, own_sets(self._data(), self.evaluation_rows)))
        # Ranks may differ in the last bits of what they have gathered.
        return from_first_rank(args, lambda: results)

    def _finished(self, args: TrainingArguments) -> list[FinishedStage]:
        return from_first_rank(args, self.records.finished)

    def _data(self) -> StageData:
        data = stash_of(self._trainer).get(STAGE_DATA)
        if data is None:
            # In a stock Trainer nothing has come between.
            given = self._trainer.eval_dataset
            evaluations = given if isinstance(given, dict) else {} if given is None else {"eval": given}
            data = StageData(self._trainer.train_dataset, dict(evaluations))
        return data


def _plain(trainer: Any) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model)
