"""After training: predict the evaluation set once, calibrate the model on it, and report what it gets wrong.

Trainer loads the best model before `on_train_end`, so there the final weights are known. Checkpoints hold the weights
as they were trained: only the model in memory, and what `save_model` writes of it, is calibrated.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import TrainerCallback

from ...host.log_notes import log_into_last_entry
from ...host.stash import WithTrainer, stash_of
from ...models.heads import output_layers
from ...models.inputs import bare
from ...models.labels import Kind
from ...shards import fsdp_version, placed_like, put_in_pieces
from . import NAME, calibration, report
from .calibration import Calibration
from .frequencies import TRAINED, Trained
from .labels import kind_of
from .metrics import evaluate, flat_predictions

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

CONFIG_KEY = "hf_ft_task"
PROBED_ROWS = 64


class FinishCallback(WithTrainer, TrainerCallback):
    """Runs `finish` when training ends, before what only reports or exports.

    Args:
        calibrate: fit a temperature, a shift and thresholds on half of the evaluation set.
        worst_examples: how many examples of the highest loss the report lists.
        frequencies: for which class frequencies the answers are meant: `evaluation`, `training` (known to the host's
            trainer), `equal`, or shares by class, `0.9/0.1`.
    """

    end_phase = "calibrate"

    def __init__(self, *, calibrate: bool = True, worst_examples: int = 50, frequencies: str = "evaluation") -> None:
        self.calibrate, self.worst_examples, self.frequencies = calibrate, worst_examples, frequencies

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kind = kind_of(self._trainer.model)
        finish(
            *(self._trainer, kind),
            calibrate=self.calibrate,
            worst_examples=self.worst_examples,
            frequencies=self.frequencies,
            trained=stash_of(self._trainer).get(TRAINED),
        )


def finish(
    trainer: Trainer,
    kind: Kind,
    *,
    calibrate: bool = True,
    worst_examples: int = 50,
    frequencies: str = "evaluation",
    trained: Trained | None = None,
) -> None:
    """Calibrate `trainer.model` in place and write the report to `output_dir/task`. Every rank takes part.

    Args:
        kind: what the model predicts.
        calibrate, worst_examples, frequencies: see `FinishCallback`.
        trained: for which class frequencies the model was trained; None: nobody knows.
    """
    dataset = trainer.eval_dataset
    if isinstance(dataset, dict):
        split, dataset = next(iter(dataset.items()))
        logger.info("%s: calibration and report are of the evaluation set %r", NAME, split)
    if dataset is None or not hasattr(dataset, "__len__") or len(dataset) == 0:
        logger.warning("%s: no evaluation set with a length, so neither calibration nor report.", NAME)
        return
    predictions, label_ids = predict(trainer, dataset)
    if label_ids is None:
        logger.warning("%s: the evaluation set has no labels, so neither calibration nor report.", NAME)
        return
    if not np.isfinite(predictions).all():
        logger.warning("%s: the model predicts NaN or infinity, so neither calibration nor report.", NAME)
        return
    found, judged = None, None
    if calibrate and kind != "regression":
        fit, judge = _split(kind, predictions, label_ids, trainer.args.seed)
        if min(len(fit[1]), len(judge[1])) < calibration.FEWEST_ROWS:
            logger.warning(
                "%s: the evaluation set has %d rows, too few to calibrate on one half and judge on the other (%d).",
                NAME,
                len(dataset),
                2 * calibration.FEWEST_ROWS,
            )
        else:
            found, judged = calibration.calibrate(kind, fit, judge, frequencies=frequencies, trained=trained), judge
    if found is not None:
        folded = _apply(trainer, dataset, predictions, found)
        bare(trainer.model).config.update({CONFIG_KEY: found.as_config(folded)})
        predictions = found.applied(predictions) if folded else predictions
        entry = {"temperature": found.temperature, "ece_before": found.ece_before, "ece": found.ece}
        log_into_last_entry(trainer, {f"{NAME}/{key}": value for key, value in entry.items()})
    if trainer.is_world_process_zero():
        names = report.class_names(bare(trainer.model).config)
        folder, stash_of(trainer)[report.WRITTEN] = report.write(
            report.Findings(kind, names, predictions, label_ids, found, judged),
            dataset,
            trainer.args.output_dir,
            worst_examples,
        )
        shown = evaluate(kind, *flat_predictions(kind, predictions, label_ids))
        logger.info("%s: %s; report in %s", NAME, ", ".join(f"{k} {v:.4g}" for k, v in shown.items()), folder)


def predict(trainer: Trainer, dataset: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and labels of every row in the order of the rows, equal on every rank; None where there are no labels."""
    with _plainly(trainer):
        loader = trainer.get_test_dataloader(dataset)
        output = trainer.evaluation_loop(loader, "Calibration", prediction_loss_only=False, metric_key_prefix="task")
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    labels = None if output.label_ids is None else np.asarray(output.label_ids)
    return np.asarray(logits, dtype=np.float64), labels


@contextlib.contextmanager
def _plainly(trainer: Trainer) -> Iterator[None]:
    """Logits as the model gives them, in the order of the rows, and nothing else computed."""
    settings = [
        (trainer, "compute_metrics", None),
        (trainer, "preprocess_logits_for_metrics", None),
        (trainer.args, "eval_do_concat_batches", True),
        # Grouping by length also reorders evaluation data.
        (trainer.args, "train_sampling_strategy", "random"),
    ]
    were = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in were:
            setattr(owner, name, value)


def _split(kind: Kind, predictions: np.ndarray, label_ids: np.ndarray, seed: int) -> tuple[Any, Any]:
    # Rows are split, of tokens too: tokens of one sentence are no independent check of each other.
    strata = label_ids if kind == "single_label" else None
    positions = calibration.halves(len(label_ids), seed, strata)
    fit, judge = (flat_predictions(kind, predictions[half], label_ids[half]) for half in positions)
    return fit, judge


def _apply(trainer: Trainer, dataset: Any, predictions: np.ndarray, found: Calibration) -> bool:
    """Divide and shift the head, so that a `pipeline` gives calibrated probabilities; whether it took."""
    if found.temperature == 1.0 and found.shift is None:
        return False
    layer = _head(trainer)
    if layer is None or (layer.bias is None and found.shift is not None):
        logger.warning(
            "%s: the model does not end in one linear layer of its own%s, so the temperature %.4g%s only in config.%s: "
            "divide logits by it%s.",
            NAME,
            "" if layer is None else " with a bias",
            found.temperature,
            " stands" if found.shift is None else " and the shift by class stand",
            CONFIG_KEY,
            "" if found.shift is None else ", then add the shift",
        )
        return False
    put_in_pieces(trainer.model)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    fold(layer, found.temperature, found.shift)
    rows = range(min(PROBED_ROWS, len(dataset)))
    probe = dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)
    logits, _ = predict(trainer, probe)
    as_trained = predictions[: len(rows)][tuple(slice(size) for size in logits.shape)]
    expected = found.applied(as_trained)
    # Padding is -100 in both; half-precision weights round.
    real = as_trained != -100
    if np.allclose(logits[real], expected[real], rtol=2e-2, atol=2e-2 * np.abs(expected[real]).max()):
        return True
    logger.warning(
        "%s: dividing the head did not divide the logits, so it was undone: the temperature %.4g (and shift) stands "
        "only in config.%s.",
        NAME,
        found.temperature,
        CONFIG_KEY,
    )
    put_in_pieces(trainer.model)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), before, strict=True):
            parameter.copy_(value)
    return False


def _head(trainer: Trainer) -> torch.nn.Linear | None:
    if trainer.is_deepspeed_enabled or fsdp_version() == 1:
        return None
    base = bare(trainer.model)
    paths = output_layers(trainer.model, base.config.num_labels)
    layer = base.get_submodule(paths[0]) if len(paths) == 1 else None
    # An adapter on the head is a sum of two products; dividing one of them would not divide the sum.
    adapted = any("lora" in part or part == "base_layer" for part in (paths[0].split(".") if paths else ()))
    return None if adapted else layer


def fold(layer: torch.nn.Linear, temperature: float, shift: Sequence[float] | None = None) -> None:
    """Divide weight and bias, in place, and add the shift to the bias: so the layer's outputs are."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.div_(temperature)
        if shift is not None:
            layer.bias.add_(placed_like(torch.tensor(shift, dtype=layer.bias.dtype), layer.bias))
