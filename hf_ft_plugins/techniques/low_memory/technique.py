"""The technique `low-memory`: all parameters learn, in a fraction of the memory that AdamW takes.

Of the memory of a training step three parts can be saved: gradients, which need not be alive all at once; the
optimizer's state; and full precision. Which of them an algorithm saves is in `algorithms.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Change, Technique, option
from .settings import NAME

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import Trainer, TrainerCallback


@dataclass(frozen=True, kw_only=True)
class LowMemory(Technique):
    """See the options' help, `FusedBackward`, `Clipping` and the classes in `optimizers`."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "all parameters learn in a fraction of AdamW's memory: steps within the backward pass"

    algorithm: Literal["script", "lomo"] = option(
        "script",
        help="script: the script's own optimizer; lomo: gradient descent without any state",
    )
    fused: bool = option(True, help="step each parameter within the backward pass, and free its gradient")
    clip: Literal["auto", "lagged", "two_pass", "per_tensor", "none"] = option(
        "auto",
        help="what to do about max_grad_norm while gradients are freed; lagged: by the last step's norm; two_pass: "
        "exactly, by a backward pass more; per_tensor: each gradient by its own norm; auto: what the algorithm needs",
    )
    accumulation: Literal["buffer", "fold", "refuse"] = option(
        "buffer",
        help="with gradient_accumulation_steps; buffer: gradients are kept and summed, as in a stock run; fold: "
        "each goes into the optimizer's moments at once; refuse: an error",
    )

    def idle_options(self) -> dict[str, str]:
        names = () if self.fused else ("clip", "accumulation")
        return {name: "fused is off" for name in names if name in self.changed_options()}

    def keeps_objective(self) -> bool:
        return True

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.GRADIENTS}) if self.fused else frozenset()

    # ---- hooks ----

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .callback import LowMemoryCallback

        return [LowMemoryCallback()]

    def ft_trainer(self, trainer: Trainer) -> None:
        from .building import why_gradients_are_kept
        from .unsupported import refuse_unsupported

        in_backward = self.fused and why_gradients_are_kept(trainer, self.accumulation) is None
        refuse_unsupported(trainer, algorithm=self.algorithm, fused=self.fused, in_backward=in_backward)

    def ft_optimizer(self, trainer: Trainer, model: Any, optimizer: Optimizer) -> Optimizer:
        from .algorithms import ALGORITHMS
        from .building import fuse
        from .replicas import are_replicas, start_alike
        from .shards import mark_missing_state

        if are_replicas(trainer):
            # Before an optimizer makes its state from the weights.
            start_alike(model)
        algorithm = ALGORITHMS[self.algorithm]
        chosen = optimizer if algorithm.make is None else algorithm.make(model, optimizer, self)
        if trainer.is_fsdp_enabled:
            mark_missing_state(chosen)
        if not self.fused:
            return chosen
        return fuse(chosen, trainer, model, clip=self.clip, default=algorithm.clip, accumulation=self.accumulation)
