"""The technique `layer-removal`: the script's own training run heals a model without the layers it needs least.

The layers go right after `transformers.Trainer.__init__`, before an adapter is put on. A model whose configuration
says that layers are gone (`removed_layers`) is left as it is: it is one that an earlier run has saved.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ... import mends
from ...errors import PluginError
from ...host.stash import Stash, stash_of
from ...near import closest
from ...technique import Change, Technique, option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ...report_sections import Section
    from .choice import Choice

logger = logging.getLogger(__name__)

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
        given = [name for name in ("fraction", "number") if getattr(self, name) is not None]
        given += ["layers"] if self.layers else []
        self.require(len(given) <= 1, given[0] if given else "layers", f"say one of {', '.join(given)}.")
        self.require(self.fraction is None or 0 < self.fraction < 1, "fraction", "it must lie between 0 and 1.")
        self.require(self.number is None or self.number >= 1, "number", "it must be 1 or more.", use=1)
        self.require(all(layer >= 0 for layer in self.layers), "layers", "layers are numbered from 0.")
        self.require(
            self.method in METHODS, "method", f"there are {', '.join(METHODS)}.", use=closest(self.method, METHODS)
        )
        for name in ("protect_first", "protect_last", "distill"):
            self.require(getattr(self, name) >= 0, name, "it must be 0 or more.", use=0)
        self.require(self.calibration >= 1, "calibration", "it must be 1 or more.", use=1)
        for name in ("max_degradation", "max_repetition"):
            self.require(
                getattr(self, name) is None or getattr(self, name) >= 0, name, "it must be 0 or more, or none.", use=0
            )

    def keeps_objective(self) -> bool:
        return not self.distill

    def idle_options(self) -> dict[str, str]:
        if self.layers and "method" in self.changed_options():
            return {"method": "layers says which are removed, so none are chosen"}
        return {}

    @classmethod
    def ft_commands(cls) -> Any:
        from .command import app

        return app

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.DEPTH})

    def excludes(self) -> dict[Change, str]:
        return {
            Change.PREFERENCES: (
                "layer-removal takes layers from the model alone, and training on preferences holds it to a reference "
                "that has all layers. Remove and heal them in a run before."
            ),
            Change.SEVERAL_HEADS: (
                "layer-removal takes what a configuration tells the number of, and a model of several tasks is built "
                "around an encoder with its own. Remove them before: remove_layers(encoder, ...), save it, and build "
                "the model on that."
            ),
        }

    # ---- hooks ----

    def ft_model(self, model: PreTrainedModel, args: TrainingArguments, first_batches: Any, stash: Stash) -> None:
        import torch

        from ...models.unchanged import unchanged_on_error
        from .operation import Operation
        from .remove import original_layers
        from .stacks import find_stack, usual_side
        from .surgery import SURGERY

        _refuse_pieces(self.name, model, args)
        if hasattr(model, "peft_config"):
            raise PluginError(
                f"{self.name}: the script's model has adapters already. Remove layers first: --with peft.",
                code="technique-conflict",
                mend=[mends.remove_technique(self.name)],
            )
        if SURGERY in stash:
            # Left by the model of an earlier trial.
            del stash[SURGERY]
        side = usual_side(model, self.side)
        stack = find_stack(model, side)
        gone = original_layers(stack.config, side)
        if gone:
            logger.info("%s: this model is without layers %s already; it is left as it is", self.name, list(gone))
            return
        devices = sorted({weight.device.index for weight in model.parameters() if weight.device.type == "cuda"})
        operation = Operation(
            self.choice,
            self.calibration,
            self.distill,
            restores=self.restores,
            measures_curve=args.should_save,
            world_size=args.world_size,
        )
        # A run without the technique draws the same random numbers afterwards.
        with unchanged_on_error(model), torch.random.fork_rng(devices=devices):
            stash[SURGERY] = operation(model, first_batches, side, len(stack.layers))

    def ft_trainer(self, trainer: Trainer) -> None:
        if self.distill and trainer.args.label_smoothing_factor:
            raise PluginError(
                f"{self.name}: distill={self.distill} needs a model called with labels, and Trainer keeps them for "
                f"label_smoothing_factor={trainer.args.label_smoothing_factor}. Set either to 0.",
                code="training-arguments",
                mend=[mends.set_option(self.name, "distill", 0), mends.set_argument("label_smoothing_factor", 0)],
            )

    def ft_loss(self, trainer: Trainer) -> AbstractContextManager[None] | None:
        from .distill import distilling
        from .surgery import SURGERY

        surgery = stash_of(trainer).get(SURGERY)
        if not self.distill or surgery is None:
            return None
        return distilling(trainer.accelerator.unwrap_model(trainer.model), surgery.original, self.distill)

    def ft_callbacks(self) -> list[Any]:
        from .gate import GateCallback

        return [GateCallback(self.max_degradation, self.max_repetition, self.on_fail)]

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from .gate import JUDGED, sections_of
        from .surgery import SURGERY

        stash = stash_of(trainer)
        report = stash.get(JUDGED)
        return None if report is None else sections_of(report, stash[SURGERY].curve)

    @property
    def choice(self) -> Choice:
        from .choice import Choice

        return Choice(self.layers, self.number, self.fraction, self.method, self.protect_first, self.protect_last)

    @property
    def restores(self) -> bool:
        gate = self.max_degradation is not None or self.max_repetition is not None
        return gate and self.on_fail == "restore"

    def plan_for(self, model: PreTrainedModel) -> str | None:
        from .stacks import find_stack, usual_side

        stack = find_stack(model, usual_side(model, self.side))
        depth = len(stack.layers)
        which = "+".join(map(str, self.layers)) if self.layers else f"chosen by method={self.method}"
        return f"{self.choice.count(depth)} of the {depth} layers of {stack.name} go: {which}"

    def memory_effects(self, config: Any) -> dict[str, Any]:
        from ...models.classes import model_on_meta
        from .stacks import find_stack, usual_side

        model = model_on_meta(config)
        return {
            "removed": self.choice.count(find_stack(model, usual_side(model, self.side)).depth),
            "copies": int(self.distill > 0),
            "host_copies": int(self.restores and not self.distill),
        }


def _refuse_pieces(name: str, model: PreTrainedModel, args: TrainingArguments) -> None:
    """FSDP2 cuts a model up when training begins, long after its layers are gone."""
    from ...shards import are_cut_up, fsdp_version

    if are_cut_up(model):
        raise PluginError(
            f"{name}: from_pretrained(..., distributed_config=...) has cut the weights up over ranks, and layers are "
            "measured on whole ones. Leave distributed_config out and shard with TrainingArguments(fsdp=True), or "
            "remove layers in a run before: the saved model can be loaded in pieces.",
            code="distributed-unsupported",
            mend=[mends.all_of(mends.set_model_argument("distributed_config", None), mends.set_argument("fsdp", True))],
        )
    if args.deepspeed or fsdp_version() == 1:
        kind = "DeepSpeed" if args.deepspeed else "FSDP1"
        raise PluginError(
            f"{name}: {kind} keeps parameters in buffers of its own, of which the gate cannot measure the model when "
            "training ends. Use FSDP2 (fsdp_config={'version': 2}), or remove layers in a run before.",
            code="distributed-unsupported",
            mend=[mends.set_argument("fsdp_config", {"version": 2})],
        )
