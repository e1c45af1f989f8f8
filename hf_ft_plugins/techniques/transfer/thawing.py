"""When each layer begins to learn, and the runs in which layers cannot be frozen for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...shards import are_cut_up, fsdp_version
from .layers import HEAD, NAME, LayerGroup

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import TrainingArguments

Strategy = Literal["full", "probe", "lpft", "gradual"]


def thaw_steps(strategy: Strategy, groups: int, steps: int, share: float) -> list[int | None]:
    """The step at which each group, bottom to top, begins to learn; None: never.

    Args:
        groups: their number; the last is the head.
        steps: of the whole run.
        share: of the steps, after which every layer learns (`lpft`: from when on all do).
    """
    below = groups - 1
    thaw: list[int | None] = [0] * groups
    for index in range(below):
        if strategy == "probe":
            thaw[index] = None
        elif strategy == "lpft":
            thaw[index] = round(share * steps)
        elif strategy == "gradual":
            thaw[index] = round(share * steps * (below - index) / below)
    return thaw


def refuse_unfit(strategy: Strategy, groups: Sequence[LayerGroup], args: TrainingArguments, model: Module) -> None:
    """Raise `PluginError` where the strategy cannot work on this model, or with these arguments."""
    if strategy == "full":
        return
    base, first = bare(model), groups[-1]
    if strategy != "gradual" and first.name != HEAD:
        raise PluginError(
            f"{NAME}: strategy={strategy} trains the head alone, and a {type(base).__name__} has none outside its "
            "backbone, or one that is tied to its embeddings. Use strategy=full or gradual.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "strategy", "full")],
        )
    learns = {name for name, weight in base.named_parameters() if weight.requires_grad}
    if not learns.intersection(first.parameters):
        raise PluginError(
            f"{NAME}: strategy={strategy} begins with {first.name}, all of whose parameters are frozen. Name it in the "
            "adapters' modules_to_save, take it out of freeze=..., or use strategy=full.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "strategy", "full")],
        )
    if args.deepspeed or fsdp_version() == 1:
        raise PluginError(
            f"{NAME}: strategy={strategy} under {'DeepSpeed' if args.deepspeed else 'FSDP1'} does not work: its flat "
            "buffers hold frozen and learning layers together. Use FSDP2 (fsdp_config={'version': 2}), or "
            "strategy=full.",
            code="distributed-unsupported",
            mend=[mends.set_argument("fsdp_config", {"version": 2}), mends.set_option(NAME, "strategy", "full")][
                bool(args.deepspeed) :
            ],
        )
    cut_up = fsdp_version() is not None or are_cut_up(model)
    if args.world_size > 1 and not cut_up and not _finds_unused(args, model):
        raise PluginError(
            f"{NAME}: strategy={strategy} on {args.world_size} ranks needs ddp_find_unused_parameters=True, since "
            "frozen layers get no gradient. Set it, or use strategy=full.",
            code="training-arguments",
            mend=[mends.set_argument("ddp_find_unused_parameters", True), mends.set_option(NAME, "strategy", "full")],
        )


def _finds_unused(args: TrainingArguments, model: Module) -> bool:
    if args.ddp_find_unused_parameters is not None:
        return bool(args.ddp_find_unused_parameters)
    # Called after gradients in transformers 5.17, where the other name is not there yet; deprecated since.
    name = (
        "is_activation_checkpointing" if hasattr(model, "is_activation_checkpointing") else "is_gradient_checkpointing"
    )
    return not (getattr(model, name, False) or args.gradient_checkpointing)
