"""The technique `low-memory`: all parameters learn, in a fraction of the memory that AdamW takes.

Of the memory of a training step three parts can be saved: gradients, which need not be alive all at once; the
optimizer's state; and full precision. Which of them an algorithm saves is in `algorithms.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Change, Technique, option
from .settings import NAME, OWN_OPTIONS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import Trainer, TrainerCallback

    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LowMemory(Technique):
    """See the options' help, `FusedBackward`, `Clipping` and the classes in `optimizers`."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "all parameters learn in a fraction of AdamW's memory: steps within the backward pass"

    algorithm: Literal[
        "script",
        "adamw-8bit",
        "compact-adamw",
        "lomo",
        "adalomo",
        "galore",
        "apollo",
        "apollo-mini",
        "sinkgd",
        "muon",
        "lisa",
        "badam",
        "mezo",
    ] = option(
        "script",
        help="script: the script's own optimizer; adamw-8bit: bitsandbytes' AdamW8bit; compact-adamw: AdamW on bf16 "
        "weights, with eight more bits of each and moments in 8 bits; lomo: gradient descent without any state; "
        "adalomo: steps relative to each tensor's size, with row and column means of squared gradients; of the blocks' "
        "matrices, with AdamW for all else, galore: Adam of rank rows of the gradient; apollo: factors for channels "
        "from rank random rows; apollo-mini: one factor from one row; sinkgd: balanced gradients without any state; "
        "muon: orthogonal ones of momentum alone; lisa: the script's optimizer for embeddings, head and a few layers "
        "at a time; badam: the same for one block at a time; mezo: gradient descent along random directions, by two "
        "forward passes",
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
    active_layers: int = option(2, help="lisa: layers that learn at a time, beside the embeddings and the head")
    switch_every: int | None = option(
        None, help="lisa, badam: optimizer steps until other layers learn; none: 50 for lisa, 100 for badam"
    )
    perturbation: float = option(1e-3, help="mezo: how far the weights are moved along a direction to find its slope")

    def check(self) -> None:
        self.require(self.rank >= 1, "rank", "set it to 1 or more, such as a fourth of the model's width.")
        self.require(self.update_gap >= 1, "update_gap", "set it to 1 or more.", use=1)
        self.require(self.scale is None or self.scale > 0, "scale", "set it above 0, or to none.")
        self.require(self.active_layers >= 1, "active_layers", "it must be 1 or more.", use=1)
        self.require(
            self.switch_every is None or self.switch_every >= 1, "switch_every", "it must be 1 or more.", use=1
        )
        self.require(self.perturbation > 0, "perturbation", "it must be above 0.")

    def idle_options(self) -> dict[str, str]:
        without = "mezo has no backward pass" if self._is_mezo else "" if self.fused else "fused is off"
        reasons = dict.fromkeys(("clip", "accumulation"), without)
        reasons["fused"] = without if self._is_mezo else ""
        for name, algorithms in OWN_OPTIONS.items():
            reasons[name] = "" if self.algorithm in algorithms else f"algorithm={self.algorithm} has none"
        return {name: reason for name, reason in reasons.items() if reason and name in self.changed_options()}

    @property
    def _is_mezo(self) -> bool:
        return self.algorithm == "mezo"

    @property
    def _way(self) -> Literal["lisa", "badam"] | None:
        return self.algorithm if self.algorithm == "lisa" or self.algorithm == "badam" else None

    def answers(self, hook: str) -> bool:
        return super().answers(hook) and (hook != "ft_training_step" or self._is_mezo)

    def packages(self) -> dict[str, str]:
        return {"bitsandbytes": "bitsandbytes>=0.50,<1"} if self.algorithm == "adamw-8bit" else {}

    def keeps_objective(self) -> bool:
        return True

    def changes(self) -> frozenset[Change]:
        gradients = {Change.GRADIENTS} if self.fused or self._is_mezo else set()
        return frozenset(gradients | ({Change.LAYERS} if self._way else set()))

    def excludes(self) -> dict[Change, str]:
        if self._way is None:
            return {}
        return {Change.LAYERS: f"both decide which layers learn at which step; algorithm={self.algorithm} does."}

    @classmethod
    def memory_savings(cls) -> tuple[str, ...]:
        return tuple(f"{cls.name}{algorithm}" for algorithm in ("", ":algorithm=compact-adamw", ":algorithm=adalomo"))

    def memory_effects(self, config: Any) -> dict[str, Any]:
        from .footprint import effects

        return effects(self.algorithm, fused=self.fused, rank=self.rank, active_layers=self.active_layers)

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    # ---- hooks ----

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .callback import LowMemoryCallback
        from .learning_blocks import LearningBlocks

        if self._way is None:
            return [LowMemoryCallback()]
        blocks = LearningBlocks(self._way, active_layers=self.active_layers, switch_every=self.switch_every)
        # First: the other puts hooks on what has come to learn.
        return [blocks, LowMemoryCallback()]

    def ft_trainer(self, trainer: Trainer) -> None:
        from . import learning_blocks, zeroth_order
        from .building import why_gradients_are_kept
        from .unsupported import refuse_the_scripts_scheduler, refuse_unsupported

        fused = self.fused and not self._is_mezo
        in_backward = fused and why_gradients_are_kept(trainer, self.accumulation) is None
        refuse_unsupported(trainer, algorithm=self.algorithm, fused=fused, in_backward=in_backward)
        refuse_the_scripts_scheduler(trainer, self.algorithm)
        if self._way is not None:
            learning_blocks.refuse_unfit(trainer.model, trainer.args, self._way)
        if self._is_mezo:
            zeroth_order.refuse_unfit(trainer)

    def ft_training_step(
        self, trainer: Trainer, model: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> Tensor | None:
        from .zeroth_order import training_step

        return training_step(trainer, model, inputs, num_items_in_batch)

    def ft_optimizer(self, trainer: Trainer, model: Any, optimizer: Optimizer) -> Optimizer:
        from .algorithms import ALGORITHMS
        from .building import fuse
        from .bytes_used import little_to_save
        from .replicas import are_replicas, start_alike

        if are_replicas(trainer):
            # Before an optimizer makes its state from the weights.
            start_alike(model)
        reason = little_to_save(model, optimizer)
        if reason is not None:
            logger.warning("%s: %s: there is little to save here.", NAME, reason)
        algorithm = ALGORITHMS[self.algorithm]
        if algorithm.rate is not None:
            rates = ", ".join(sorted({f"{group['lr']:g}" for group in optimizer.param_groups}))
            logger.info("%s: learning rate %s; %s wants %s.", NAME, rates, self.algorithm, algorithm.rate)
        chosen = final = optimizer if algorithm.make is None else algorithm.make(model, optimizer, self)
        if self.fused and not self._is_mezo:
            ways = {"clip": self.clip, "default": algorithm.clip, "accumulation": self.accumulation}
            final = fuse(chosen, trainer, model, **ways)
        if algorithm.ready is not None:
            algorithm.ready(trainer, model, chosen)
        return final

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from ...report_sections import Facts
        from .bytes_used import bytes_per_parameter

        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        if inner is None:
            return None
        facts = {"algorithm": self.algorithm, "bytes for each weight": round(bytes_per_parameter(inner), 2)}
        note = "Weight, optimizer's state and gradient; AdamW in float32 takes 16, and activations come on top."
        return [Facts("Optimizer", facts, note)]
