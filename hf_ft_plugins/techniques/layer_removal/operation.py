"""The removal within a run: choose the layers, measure the model before and after, and keep what the end needs."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ... import mends
from ...errors import PluginError
from ...models.inputs import main_input_name
from .choice import Choice, as_first_rank
from .curve import measure_choices
from .distill import refuse_other_losses
from .remove import remove_layers
from .score import failure_of, gives_loss
from .stacks import NAME
from .surgery import Surgery, prompts_of, quality_of
from .verify import verify_cache

logger = logging.getLogger(__name__)

# Rows that the models before and after are compared on.
HELD_OUT = 64
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """What is done to the model of a run.

    Attributes:
        choice: which layers go.
        calibration: training rows to choose by.
        distill: weight of the divergence from the original, for which the original stays on the model's device.
        restores: whether the original is needed when training ends, to be put back; it stays in the host's memory.
        measures_curve: whether each number of layers is measured, too, with the original kept.
        world_size: of the run; the first rank chooses.
    """

    choice: Choice
    calibration: int = 32
    distill: float = 0.0
    restores: bool = False
    measures_curve: bool = True
    world_size: int = 1

    def __call__(self, model: PreTrainedModel, first_batches: Callable[..., Rows], side: str, depth: int) -> Surgery:
        """Remove layers from a stack of `depth` layers, in place.

        Args:
            first_batches: `first_batches(count, split="train")` gives the first collated rows; [] without data.
            side: of an encoder-decoder, whose layers.

        Raises:
            OptionError, PluginError: the layers cannot be chosen, removed or distilled; the model may be changed then.
        """
        batches = _taken(model, first_batches(self.calibration)) if self.choice.needs_data else []
        held_out = _taken(model, first_batches(HELD_OUT, "eval"))
        tried = _trial_rows(model, [*held_out, *batches])
        _refuse_other_calls(model, batches)
        held_out = _callable_rows(model, held_out)
        if self.distill:
            refuse_other_losses(model, [*batches, *held_out], self.distill)
        held_out = held_out if gives_loss(model, held_out) else []
        order, why = self.choice.order(model, batches, side, depth)
        order = as_first_rank(order, self.world_size)
        surgery = Surgery(tuple(sorted(order)), depth, side, why, held_out, prompts_of(model, held_out))
        if held_out:
            surgery.whole = quality_of(model, held_out, surgery.prompts)
        if self.distill or (self.restores and held_out):
            surgery.original = copy.deepcopy(model) if self.distill else copy.deepcopy(model).to("cpu")
        # The layers live on until the model is verified: what fails with them, too, is no fault of the removal.
        removal = remove_layers(model, order, side=side)
        verify_cache(model, inputs=tried)
        del removal
        logger.info(
            "%s: layers %s of %d are gone (%s): %s parameters are left",
            *(NAME, list(surgery.removed), depth, why, f"{model.num_parameters():,}"),
        )
        if not held_out:
            logger.warning(
                "%s: there is no evaluation data with a loss, so nothing is compared when training ends", NAME
            )
            return surgery
        surgery.cut = quality_of(model, held_out, surgery.prompts)
        if self.measures_curve and surgery.original is not None:
            steps = [sorted(order[:count]) for count in range(1, len(order) + 1)] if why != "angular" else [order]
            surgery.curve = measure_choices(surgery.original, steps, held_out, side=side, prompts=surgery.prompts)
        return surgery


def _taken(model: PreTrainedModel, batches: Rows) -> Rows:
    """Without what the model does not take, such as a trainer's weights of rows."""
    parameters = inspect.signature(model.forward).parameters
    return [{name: value for name, value in batch.items() if name in parameters} for batch in batches]


def _trial_rows(model: PreTrainedModel, batches: Rows) -> dict[str, Any] | None:
    """Two rows of the data to try a model on whose main input is no ids; None for random ones."""
    name = main_input_name(model)
    if name == "input_ids" or not batches or name not in batches[0]:
        return None
    taken = (name, "attention_mask", "decoder_input_ids")
    return {key: batches[0][key][:2] for key in taken if batches[0].get(key) is not None}


def _refuse_other_calls(model: PreTrainedModel, batches: Rows) -> None:
    failure = failure_of(model, batches)
    if failure is not None:
        raise PluginError(
            f"{NAME}: layers cannot be chosen by the training data: a {type(model).__name__} called with a "
            f"batch of it ({', '.join(batches[0]) or 'nothing that it takes'}) raises {type(failure).__name__} "
            f"({failure}). If another technique makes the model fit the data (its head), list that one first; else "
            "name the layers: layers=..., or say method=last.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "method", "last")],
        ) from failure


def _callable_rows(model: PreTrainedModel, batches: Rows) -> Rows:
    """The held-out batches; none, with a warning, if the model cannot be called with them."""
    failure = failure_of(model, batches)
    if failure is not None:
        logger.warning(
            "%s: a %s cannot be called with the evaluation data, so nothing can be compared on them: %s: %s",
            *(NAME, type(model).__name__, type(failure).__name__, failure),
        )
    return batches if failure is None else []
