"""The technique `layer-removal`: the script's own training run heals a model without the layers it needs least.

The layers go right after `transformers.Trainer.__init__`, before an adapter is put on. A model whose configuration
says that layers are gone (`removed_layers`) is left as it is: it is one that an earlier run has saved.
"""

from __future__ import annotations

import copy
import inspect
import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ...errors import OptionError, PluginError
from ...technique import Technique, option

logger = logging.getLogger(__name__)

FRACTION = 0.2
# Rows that the models before and after are compared on.
HELD_OUT = 64
METHODS = ("auto", "perplexity", "block_influence", "angular", "taylor", "last", "random")


@dataclass(frozen=True, kw_only=True)
class LayerRemoval(Technique):
    """See the options' help, `choose_layers`, `remove_layers`, `distilling` and `GateCallback`."""

    name: ClassVar[str] = "layer-removal"
    summary: ClassVar[str] = "removes the layers that are needed least; the run heals the rest, and a gate compares"

    fraction: float | None = option(None, help="share of the layers to remove; 0.2 where nothing else is said")
    number: int | None = option(None, help="how many layers to remove")
    layers: tuple[int, ...] = option((), help="these layers, numbered from 0; a+b")
    side: Literal["", "encoder", "decoder"] = option(
        "", help="of an encoder-decoder, whose layers; none: the decoder's"
    )
    method: str = option(
        "auto",
        help="perplexity, block_influence, angular, taylor, last or random; auto: perplexity if the model writes text, "
        "else block_influence, as its head may be new",
    )
    calibration: int = option(32, help="training rows to choose by")
    protect_first: int = option(1, help="layers at the beginning that stay")
    protect_last: int = option(1, help="layers at the end that stay")
    distill: float = option(0.0, help="weight of the divergence from the original, which is kept in memory; 0: none")
    max_degradation: float | None = option(
        0.2, help="largest share by which held-out perplexity may end above the original's; none: no gate"
    )
    max_repetition: float | None = option(0.25, help="largest rise of the share of repeated 4-grams; none: no gate")
    on_fail: Literal["restore", "warn"] = option(
        "restore", help="restore: the original is kept in memory, put back, and the run ends with an error; warn"
    )

    def check(self) -> None:
        said = [name for name in ("fraction", "number") if getattr(self, name) is not None]
        said += ["layers"] if self.layers else []
        self.require(len(said) <= 1, said[0] if said else "layers", f"say one of {', '.join(said)}.")
        self.require(self.fraction is None or 0 < self.fraction < 1, "fraction", "it must lie between 0 and 1.")
        self.require(self.number is None or self.number >= 1, "number", "it must be 1 or more.")
        self.require(all(layer >= 0 for layer in self.layers), "layers", "layers are numbered from 0.")
        self.require(self.method in METHODS, "method", f"there are {', '.join(METHODS)}.")
        for name in ("protect_first", "protect_last", "distill"):
            self.require(getattr(self, name) >= 0, name, "it must be 0 or more.")
        self.require(self.calibration >= 1, "calibration", "it must be 1 or more.")
        for name in ("max_degradation", "max_repetition"):
            self.require(
                getattr(self, name) is None or getattr(self, name) >= 0, name, "it must be 0 or more, or none."
            )

    def keeps_objective(self) -> bool:
        return not self.distill

    def idle_options(self) -> dict[str, str]:
        if self.layers and "method" in self.changed_options():
            return {"method": "layers says which are removed, so none are chosen"}
        return {}

    def conflict(self, other: Technique) -> str | None:
        if other.name == "behavioral":
            return (
                "layer-removal takes layers from the model alone, and behavioral holds it to a reference with the same "
                "layers. Remove and heal them in a run before."
            )
        if other.name == "multitask":
            return (
                "layer-removal takes what a configuration tells the number of, and a model of several tasks is built "
                "around an encoder with its own. Remove them before: remove_layers(encoder, ...), save_pretrained, and "
                "build it on that."
            )
        return None

    # ---- hooks ----

    def ft_model(self, model: Any, args: Any, first_batches: Any) -> None:
        import torch

        from ...models.unchanged import unchanged_on_error
        from .remove import original_layers
        from .stacks import find_stack, usual_side

        if args.fsdp or args.deepspeed:
            raise PluginError(f"{self.name}: a model that FSDP or DeepSpeed has cut up cannot lose layers here.")
        if hasattr(model, "peft_config"):
            raise PluginError(
                f"{self.name}: the script's model has adapters already. Remove layers first: --with peft."
            )
        side = usual_side(model, self.side)
        stack = find_stack(model, side)
        gone = original_layers(stack.config, side)
        if gone:
            logger.info("%s: this model is without layers %s already; it is left as it is", self.name, list(gone))
            return
        devices = sorted({weight.device.index for weight in model.parameters() if weight.device.type == "cuda"})
        # A run without the technique draws the same random numbers afterwards.
        with unchanged_on_error(model), torch.random.fork_rng(devices=devices):
            self._operate(model, args, first_batches, side, len(stack.layers))

    def ft_trainer(self, trainer: Any) -> None:
        if self.distill and trainer.args.label_smoothing_factor:
            raise PluginError(
                f"{self.name}: distill={self.distill} needs a model called with labels, and Trainer keeps them for "
                f"label_smoothing_factor={trainer.args.label_smoothing_factor}. Set either to 0."
            )

    def ft_loss(self, trainer: Any) -> AbstractContextManager[None] | None:
        from .distill import distilling
        from .surgery import find_surgery

        model = trainer.accelerator.unwrap_model(trainer.model)
        surgery = find_surgery(model)
        if not self.distill or surgery is None:
            return None
        return distilling(model, surgery.original, self.distill)

    def ft_callbacks(self) -> list[Any]:
        from .gate import GateCallback

        return [GateCallback(self.max_degradation, self.max_repetition, self.on_fail)]

    # ---- what is done ----

    def _operate(self, model: Any, args: Any, first_batches: Any, side: str, depth: int) -> None:
        from .curve import measure_choices
        from .distill import refuse_other_losses
        from .remove import remove_layers
        from .score import gives_loss
        from .surgery import Surgery, prompts_of, quality_of, remember
        from .verify import verify_cache

        by_data = not self.layers and self.method not in ("last", "random")
        batches = _inputs_of(model, first_batches(self.calibration)) if by_data else []
        held_out = _inputs_of(model, first_batches(HELD_OUT, "eval"))
        tried = _trial(model, [*held_out, *batches])
        self._refuse_other_calls(model, batches)
        held_out = self._that_can_be_called(model, held_out)
        if self.distill:
            refuse_other_losses(model, [*batches, *held_out], self.distill)
        held_out = held_out if gives_loss(model, held_out) else []
        order, why = self._choose(model, batches, side, depth)
        order = _as_first_rank(order, args)
        surgery = Surgery(tuple(sorted(order)), depth, side, why, held_out, prompts_of(model, held_out))
        if held_out:
            surgery.whole = quality_of(model, held_out, surgery.prompts)
        if self.distill or (self._has_gate and self.on_fail == "restore" and held_out):
            surgery.original = copy.deepcopy(model) if self.distill else copy.deepcopy(model).to("cpu")
        # Held until the model is verified: what fails with these layers too is no fault of the removal.
        removal = remove_layers(model, order, side=side)
        verify_cache(model, inputs=tried)
        del removal
        logger.info(
            "%s: layers %s of %d are gone (%s): %s parameters are left",
            *(self.name, list(surgery.removed), depth, why, f"{model.num_parameters():,}"),
        )
        if not held_out:
            remember(model, surgery)
            logger.warning(
                "%s: there is no evaluation data with a loss, so nothing is compared when training ends", self.name
            )
            return
        surgery.cut = quality_of(model, held_out, surgery.prompts)
        if args.should_save and surgery.original is not None:
            steps = [sorted(order[:count]) for count in range(1, len(order) + 1)] if why != "angular" else [order]
            surgery.curve = measure_choices(surgery.original, steps, held_out, side=side, prompts=surgery.prompts)
        remember(model, surgery)

    def _refuse_other_calls(self, model: Any, batches: Any) -> None:
        """Raise if layers are to be chosen by data that the model cannot be called with."""
        from .score import failure_of

        failure = failure_of(model, batches)
        if failure is not None:
            raise PluginError(
                f"{self.name}: layers cannot be chosen by the training data: a {type(model).__name__} called with a "
                f"batch of it ({', '.join(batches[0]) or 'nothing that it takes'}) raises {type(failure).__name__} "
                f"({failure}). If another technique makes the model fit the data (its head), list that one first; else "
                "name the layers: layers=..., or say method=last."
            ) from failure

    def _that_can_be_called(self, model: Any, batches: Any) -> Any:
        """The held-out batches; none, with a warning, if the model cannot be called with them."""
        from .score import failure_of

        failure = failure_of(model, batches)
        if failure is not None:
            logger.warning(
                "%s: a %s cannot be called with the evaluation data, so nothing can be compared on them: %s: %s",
                *(self.name, type(model).__name__, type(failure).__name__, failure),
            )
        return batches if failure is None else []

    def _choose(self, model: Any, batches: Any, side: str, depth: int) -> tuple[list[int], str]:
        from .score import gives_loss, removal_order

        if self.layers:
            kept = [*range(self.protect_first), *range(depth - self.protect_last, depth)]
            protected = sorted(set(self.layers) & set(kept))
            if protected:
                raise OptionError(
                    f"{self.name}: layers={'+'.join(map(str, self.layers))} holds {protected}, which "
                    f"protect_first={self.protect_first} and protect_last={self.protect_last} of {depth} layers keep. "
                    "Set these lower, or name others."
                )
            return sorted(set(self.layers)), "named"
        method = self.method
        loss = gives_loss(model, batches)
        if method == "auto":
            method = "perplexity" if model.can_generate() and loss else "block_influence"
        if method in ("perplexity", "taylor") and batches and not loss:
            raise PluginError(
                f"{self.name}: method={method} needs batches with labels, and the training data's give this model no "
                "loss. Say method=block_influence, or name the layers: layers=..."
            )
        if not batches and method not in ("last", "random"):
            raise PluginError(
                f"{self.name}: there is no training data to choose by (method={method}). Name the layers, as "
                "`hf-ft layers MODEL` shows them: layers=..."
            )
        order = removal_order(
            model, batches, self.count(depth), method, side, self.protect_first, self.protect_last, seed=0
        )
        return order, method

    @property
    def _has_gate(self) -> bool:
        return self.max_degradation is not None or self.max_repetition is not None

    def count(self, depth: int) -> int:
        """How many of `depth` layers go."""
        if self.layers:
            return len(set(self.layers))
        if self.number is not None:
            return self.number
        return max(1, round((FRACTION if self.fraction is None else self.fraction) * depth))

    def plan_for(self, model: Any) -> str | None:
        from .stacks import find_stack, usual_side

        stack = find_stack(model, usual_side(model, self.side))
        depth = len(stack.layers)
        which = "+".join(map(str, self.layers)) if self.layers else f"chosen by method={self.method}"
        return f"{self.count(depth)} of the {depth} layers of {stack.name} go: {which}"

    def memory_effects(self, config: Any) -> dict[str, Any]:
        return {
            "removed": self.count(config.get_text_config().num_hidden_layers),
            "copies": int(self.distill > 0),
            "host_copies": int(self._has_gate and self.on_fail == "restore" and not self.distill),
        }

    @classmethod
    def example(cls) -> Self:
        return cls(number=1, protect_first=0, protect_last=0, max_degradation=None, max_repetition=None)

    def acted(self, trainer: Any) -> bool:
        """The configuration says what is gone, and the model is what it says."""
        from ...models.inputs import bare
        from .stacks import find_stack
        from .surgery import find_surgery

        surgery = find_surgery(trainer.model)
        if surgery is None:
            return False
        stack = find_stack(bare(trainer.model), surgery.side)
        return len(stack.layers) == surgery.depth - len(surgery.removed)


def _inputs_of(model: Any, batches: Any) -> list[dict[str, Any]]:
    """Without what the model does not take, such as a trainer's weights of rows."""
    parameters = inspect.signature(model.forward).parameters
    return [{name: value for name, value in batch.items() if name in parameters} for batch in batches]


def _trial(model: Any, batches: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Two rows of the data to try a model on whose main input is no ids; None for drawn ones."""
    from ...models.inputs import main_input_name

    name = main_input_name(model)
    if name == "input_ids" or not batches or name not in batches[0]:
        return None
    taken = (name, "attention_mask", "decoder_input_ids")
    return {key: batches[0][key][:2] for key in taken if batches[0].get(key) is not None}


def _as_first_rank(order: list[int], args: Any) -> list[int]:
    import torch.distributed as dist

    found = [order]
    if args.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]
