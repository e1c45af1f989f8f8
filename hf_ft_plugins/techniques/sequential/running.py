"""`run_stages`: one stage after the other in one script, each with a trainer of its own.

def build(run):
    model = AutoModelForCausalLM.from_pretrained(run.start or "base")
    args = TrainingArguments(**run.arguments(learning_rate=1e-4))
    return run.hosted(Trainer)(model, args, train_dataset=run.stage.train_dataset, ...)

ended = run_stages(build, [Stage(name="general", ...), Stage(name="medical", ...)], "sequential:folder=stages")
print(ended.matrix.as_text())
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PluginError
from ...host import manifest
from ...host.checkpoints import has_whole_checkpoint
from ...host.trainer import with_plugins
from ...registry import resolve
from ...technique import Technique
from . import stage_plan
from .kept_rows import keep_rows, load_rows, save_rows
from .measured_sets import EVALUATION_SEED
from .settings import NAME
from .stage_callback import StageCallback
from .stage_data import UPCOMING, folder_of_set
from .stage_records import FinishedStage, StageRecords
from .transfer_matrix import TransferMatrix, matrix_of, write_matrix

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)

FINGERPRINT_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of `run_stages`.

    Attributes:
        name: it names a folder.
        train_dataset, eval_dataset: for the trainer; the factory may prepare them further. Evaluation sets that are
            given here are measured from the start on, which forward transfer needs.
        overrides: of `TrainingArguments`, for this stage alone.
    """

    name: str
    train_dataset: Any = None
    eval_dataset: Any = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRun:
    """What a factory makes a trainer from.

    Attributes:
        stage: as given.
        start: the folder of the model that the stage before has ended with; None for the first.
        output_dir: for checkpoints; of this stage alone.
        technique: the `Sequential` of this stage.
    """

    stage: Stage
    start: str | None
    output_dir: str
    technique: Technique

    def hosted(self, trainer_class: type, *techniques: Any) -> type:
        """The class to build the trainer of: `trainer_class` with this stage's technique behind some others."""
        return with_plugins(trainer_class, *techniques, self.technique)

    def arguments(self, **common: Any) -> dict[str, Any]:
        """Arguments of `TrainingArguments`: `output_dir`, what all stages have in `common`, and the overrides."""
        return {"output_dir": self.output_dir, **common, **self.stage.overrides}


@dataclass(frozen=True)
class EndedStages:
    """What `run_stages` returns.

    Attributes:
        stages: all, as they were recorded.
        matrix: what was learned and forgotten; None where nothing was measured.
        model: the folder of the last stage's model.
    """

    stages: tuple[FinishedStage, ...]
    matrix: TransferMatrix | None
    model: str


def run_stages(trainer_factory: Callable[[StageRun], Trainer], stages: Sequence[Stage], technique: Any) -> EndedStages:
    """Train stage after stage; run again after whatever has ended it, it goes on where it was.

    Finished stages are skipped. One that was begun resumes from its newest whole checkpoint, exactly.

    Args:
        trainer_factory: makes a stage's trainer, of a class from `StageRun.hosted`, with `StageRun.output_dir`.
        stages: in order; a stage that has begun must stay as it is.
        technique: a `Sequential` with a folder, or its string or mapping; its `stage` is set here.

    Raises:
        PluginError: no folder, two stages of one name, stages that have changed since they began, a factory that
            does not keep to the above; whatever a stage's trainer raises. Finished stages stay finished.
    """
    chosen: Any = resolve(technique)
    records = getattr(chosen, "records", None)
    if records is None:
        raise PluginError(
            f"{NAME}: run_stages needs a folder to keep stages in: {NAME}:folder=....", code="option-value"
        )
    names = [stage.name for stage in stages]
    if not names or len(set(names)) < len(names):
        raise PluginError(
            f"{NAME}: run_stages needs stages of different names, and has {names}. Rename them.", code="stages"
        )
    # Before anything is written: a name may be none for a folder.
    techniques = [dataclasses.replace(chosen, stage=name) for name in names]
    plan = [_described(stage) for stage in stages]
    first_rank = int(os.environ.get("RANK", "0")) == 0
    for number, stage in enumerate(stages):
        stage_plan.begin(records.folder, number, plan, writes=first_rank)
        finished = [one.name for one in records.finished()]
        if finished[: number + 1] != names[: min(len(finished), number + 1)]:
            raise PluginError(
                f"{NAME}: folder={records.folder} has the finished stages {', '.join(finished)}, and run_stages was "
                f"given {', '.join(names)}. Name them as they were, or another folder.",
                code="stages",
            )
        if stage.name in finished:
            logger.info("%s: stage %s (%d of %d) is finished", NAME, stage.name, number + 1, len(stages))
            continue
        if first_rank:
            _keep_upcoming(records, stages, chosen.evaluation_rows)
        run = StageRun(
            stage,
            str(records.model_of(names[number - 1])) if number else None,
            str(records.folder / "runs" / stage.name),
            techniques[number],
        )
        _train(run, trainer_factory(run), f"stage {number + 1}/{len(stages)} {stage.name}")
    ended = tuple(records.finished()[: len(stages)])
    matrix = matrix_of(ended, chosen.metric, chosen.greater_is_better)
    if matrix is not None and first_rank:
        # Again, since the last stage may have been cut off when it was listed and its matrix was not drawn yet.
        write_matrix(matrix, records.folder)
    return EndedStages(ended, matrix, str(records.model_of(names[-1])))


def _train(run: StageRun, trainer: Any, title: str) -> None:
    own = [one for one in trainer.callback_handler.callbacks if isinstance(one, StageCallback)]
    if len(own) != 1 or own[0].stage != run.stage.name:
        raise PluginError(
            f"{NAME}: trainer_factory gave a {type(trainer).__name__} that does not train stage {run.stage.name}. "
            "Build it of the class run.hosted(Trainer).",
            code="part-misused",
        )
    if Path(trainer.args.output_dir) != Path(run.output_dir):
        raise PluginError(
            f"{NAME}: the trainer of stage {run.stage.name} has output_dir={trainer.args.output_dir}, and its "
            f"checkpoints are looked for in {run.output_dir}. Pass output_dir=run.output_dir, or run.arguments(...).",
            code="part-misused",
        )
    own[0].title = title
    trainer.train(resume_from_checkpoint=True if has_whole_checkpoint(trainer) else None)
    if trainer.preempted:
        raise PluginError(f"{NAME}: {title} was told to stop. Run the same again to go on.", code="stages")


def _described(stage: Stage) -> dict[str, Any]:
    data = {name: _fingerprint(getattr(stage, name)) for name in ("train_dataset", "eval_dataset")}
    return {"name": stage.name, "overrides": dict(stage.overrides), **data}


def _fingerprint(dataset: Any) -> Any:
    """Number of rows and a digest of some, to notice other data; None where there are none, or a stream.

    A data set that makes its rows as they are read may make others each time, and has no digest.
    """
    if isinstance(dataset, Mapping):
        return {str(name): _fingerprint(one) for name, one in dataset.items()}
    if dataset is None or not hasattr(dataset, "__len__"):
        return None
    return {"rows": len(dataset), "digest": _digest(dataset)}


def _digest(dataset: Any) -> str | None:
    from datasets import Dataset

    if not len(dataset) or not isinstance(dataset, (Dataset, list, tuple)):
        return None
    some = keep_rows(dataset, FINGERPRINT_ROWS, 0).with_format(None).to_dict()
    return hashlib.sha256(repr(some).encode()).hexdigest()[:16]


def _keep_upcoming(records: StageRecords, stages: Sequence[Stage], most: int) -> None:
    """Let every stage measure the evaluation sets of those to come."""
    upcoming = records.folder / UPCOMING
    named = {stage.name: _evaluations(stage) for stage in stages}
    for folder in [one for stage in upcoming.glob("*") for one in stage.glob("*")]:
        if folder not in [folder_of_set(upcoming / stage, name) for stage in named for name in named[stage]]:
            # Of a stage that is planned no more.
            shutil.rmtree(folder)
    for stage, sets in named.items():
        for name, given in sets.items():
            rows, folder = keep_rows(given, most, EVALUATION_SEED), folder_of_set(upcoming / stage, name)
            whole = manifest.damage(folder) is None
            if whole and _fingerprint(load_rows(folder)) == _fingerprint(rows):
                continue
            if whole:
                logger.warning("%s: %s of stage %s has other rows than those measured so far", NAME, name, stage)
            if folder.is_dir():
                shutil.rmtree(folder)
            manifest.begin_manifest(folder)
            save_rows(rows, folder)
            manifest.write_manifest(folder)


def _evaluations(stage: Stage) -> dict[str, Any]:
    """The evaluation sets of a stage that can be kept, by the names that they have in the trainer."""
    given = stage.eval_dataset
    sets = given if isinstance(given, Mapping) else {"eval": given}
    return {str(name): rows for name, rows in sets.items() if hasattr(rows, "__len__") and hasattr(rows, "__getitem__")}
