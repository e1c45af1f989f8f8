"""The technique `low-memory`: all parameters learn, in a fraction of the memory that AdamW takes.

Of the memory of a training step three parts can be saved: gradients, which need not be alive all at once; the
optimizer's state; and full precision. Which of them an algorithm saves is in `algorithms.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Change, Technique, option
from .settings import NAME, OWN_OPTIONS

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import Trainer, TrainerCallback


@dataclass(frozen=True, kw_only=True)
class LowMemory(Technique):
    """See the options' help, `FusedBackward`, `Clipping` and the classes in `optimizers`."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "all parameters learn in a fraction of AdamW's memory: steps within the backward pass"

    algorithm: Literal["script", "lomo", "galore", "apollo", "apollo-mini", "sinkgd", "muon"] = option(
        "script",
        help="script: the script's own optimizer; lomo: gradient descent without any state; of the blocks' matrices, "
        "with AdamW for all else, galore: Adam of rank rows of the gradient; apollo: factors for channels from rank "
        "random rows; apollo-mini: one factor from one row; sinkgd: balanced gradients without any state; muon: "
        "orthogonal ones of momentum alone",
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

    rank: int = option(128, help="rows that moments are kept of, for galore and apollo")
    update_gap: int = option(200, help="steps until the rows are chosen anew, for galore, apollo and apollo-mini")
    scale: float | None = option(
        None, help="of the steps of the blocks' matrices, for galore, apollo, apollo-mini and sinkgd; none: its default"
    )

    def check(self) -> None:
        self.require(self.rank >= 1, "rank", "set it to 1 or more, such as a fourth of the model's width.")
        self.require(self.update_gap >= 1, "update_gap", "set it to 1 or more.")
        self.require(self.scale is None or self.scale > 0, "scale", "set it above 0, or to none.")

    def idle_options(self) -> dict[str, str]:
        names = () if self.fused else ("clip", "accumulation")
        idle = dict.fromkeys(names, "fused is off")
        for name, algorithms in OWN_OPTIONS.items():
            if self.algorithm not in algorithms:
                idle[name] = f"algorithm={self.algorithm} has none"
        return {name: reason for name, reason in idle.items() if name in self.changed_options()}

    def keeps_objective(self) -> bool:
        return True

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.GRADIENTS}) if self.fused else frozenset()

    # ---- hooks ----

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .callback import LowMemoryCallback

        return [LowMemoryCallback()]

    def ft_trainer(self, trainer: Trainer) -> None:
        from .unsupported import refuse_unsupported

        refuse_unsupported(trainer, fused=self.fused)

    def ft_optimizer(self, trainer: Trainer, model: Any, optimizer: Optimizer) -> Optimizer:
        from .algorithms import ALGORITHMS
        from .building import fuse

        algorithm = ALGORITHMS[self.algorithm]
        chosen = optimizer if algorithm.make is None else algorithm.make(model, optimizer, self)
        if not self.fused:
            return chosen
        return fuse(chosen, trainer, model, clip=self.clip, default=algorithm.clip, accumulation=self.accumulation)
