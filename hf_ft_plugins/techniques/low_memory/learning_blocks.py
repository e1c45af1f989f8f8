"""`LearningBlocks`: at any time only some of a model's blocks learn, by whatever optimizer the script has.

    trainer.add_callback(LearningBlocks("lisa", active_layers=2))

The others rest: their parameters need no gradient, so that neither gradients nor what is kept for them in the forward
pass takes memory, and what the optimizer has kept for them is dropped. The optimizer holds every parameter from the
start and its groups never change, so the schedule of the rate goes on. What rests is a function of (seed, step).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import TrainerCallback

from ... import lr_scale, mends
from ...errors import PluginError
from ...models.inputs import bare
from .blocks import Block, Way, badam_draw, blocks_of, lisa_draw
from .settings import NAME

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

# Optimizer steps until others learn.
SWITCH_EVERY = {"lisa": 50, "badam": 100}


class LearningBlocks(TrainerCallback):
    """Switches between blocks before the first batch of an optimizer step, and lets all learn when training ends.

    Adam's moments and its count of steps begin anew when a block's turn comes again, as in BAdam's algorithm 1; a block
    that goes on learning keeps them.

    A `FusedBackward` has to `attach()` after it: put `LowMemoryCallback` behind it. Where training ends by an exception
    the host calls `on_train_raised`; in a stock Trainer, whoever catches it does, or the next `train()`.

    Args:
        way: lisa: embeddings, head and what else is outside the layers always learn, and `active_layers` layers with
            them; badam: one block at a time, the embeddings and the head among them (`blocks_of`).
        active_layers: for lisa, 1 or more. Where there are no more layers than that, all learn, with a warning.
        switch_every: optimizer steps, 1 or more; None: 50 for lisa, 100 for badam.
        seed: of the order; None: the trainer's.

    Raises:
        PluginError: in `on_train_begin`, see `refuse_unfit`.
    """

    def __init__(
        self, way: Way, *, active_layers: int = 2, switch_every: int | None = None, seed: int | None = None
    ) -> None:
        if way not in SWITCH_EVERY:
            raise PluginError(f"{NAME}: LearningBlocks(way={way!r}): there are lisa and badam.", code="option-value")
        for name, value in (("active_layers", active_layers), ("switch_every", switch_every)):
            if value is not None and value < 1:
                raise PluginError(f"{NAME}: LearningBlocks({name}={value}): it must be 1 or more.", code="option-value")
        self.way: Way = way
        self.active_layers = active_layers
        self.switch_every = SWITCH_EVERY[way] if switch_every is None else switch_every
        self.seed = seed
        self._blocks: list[Block] = []
        self._parameters: dict[str, torch.nn.Parameter] = {}
        self._active: list[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run stays behind.
        return self.__dict__ | {"_blocks": [], "_parameters": {}, "_active": None}

    def draw(self, step: int, seed: int) -> list[int]:
        """The numbers of the blocks that learn after so many optimizer steps."""
        blocks = len(self._blocks)
        if self.way == "badam":
            return badam_draw(seed, step, blocks, every=self.switch_every)
        return lisa_draw(seed, step, blocks, active=self.active_layers, every=self.switch_every)

    # ---- the run ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Module, **kwargs: Any
    ) -> None:
        self.on_train_raised()
        refuse_unfit(model, args, self.way)
        base = bare(model)
        blocks, named = blocks_of(model, self.way), dict(base.named_parameters())
        most = self.active_layers if self.way == "lisa" else 1
        if len(blocks) <= most:
            logger.warning(
                "%s: algorithm=%s lets %d of the layers learn at a time, and a %s has %d that can, so all always "
                "learn, as with algorithm=script.",
                *(NAME, self.way, most, type(base).__name__, len(blocks)),
            )
            return
        self._blocks = blocks
        self._parameters = {name: named[name] for block in blocks for name in block.parameters}
        self._switch(args, state, kwargs.get("optimizer"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._switch(args, state, kwargs.get("optimizer"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_train_raised()

    def on_train_raised(self) -> None:
        """Let all learn that learned when training began."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._parameters, self._blocks, self._active = {}, [], None

    def _switch(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> None:
        if not self._blocks:
            return
        active = self.draw(state.global_step, args.seed if self.seed is None else self.seed)
        learning = {name for number in active for name in self._blocks[number].parameters}
        if active != self._active:
            self._active = active
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in learning)
            names = ", ".join(self._blocks[number].name for number in active)
            logger.info("%s: step %d: of %d blocks learn: %s", NAME, state.global_step, len(self._blocks), names)
        if optimizer is None:
            return
        kept = lr_scale.innermost(optimizer).state
        # At every step: a rollback brings back what was kept for those that learned then.
        for name, parameter in self._parameters.items():
            if name not in learning:
                kept.pop(parameter, None)
                parameter.grad = None


def refuse_unfit(model: Any, args: TrainingArguments, way: Way) -> None:
    """Raise `PluginError` where blocks cannot be switched: under an adapter, FSDP, DeepSpeed or DDP."""
    if bare(model) is not model or hasattr(model, "peft_config"):
        raise PluginError(
            f"{NAME}: algorithm={way} lets blocks of the model's own weights learn in turn, and under an adapter all "
            "of them are frozen. Leave the adapter out, or use algorithm=script.",
            code="option-combination",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if args.fsdp or args.deepspeed:
        raise PluginError(
            f"{NAME}: algorithm={way} under {'FSDP' if args.fsdp else 'DeepSpeed'} has not been tested: its shards "
            "hold frozen and learning layers together. Use algorithm=script or adalomo.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    if args.world_size > 1:
        raise PluginError(
            f"{NAME}: algorithm={way} on {args.world_size} ranks: DDP decides once which parameters get a gradient, "
            "and waits for those of the layers that rest. Use one process, or algorithm=script or adalomo.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
