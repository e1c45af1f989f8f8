"""`LowMemoryCallback`: hooks for the run's duration, and a second backward pass where clipping is to be exact."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import TrainerCallback

from ...host.stash import WithTrainer
from .fused_backward import FusedBackward
from .replicas import MeanOverRanks


class LowMemoryCallback(WithTrainer, TrainerCallback):
    """Lets the trainer's `FusedBackward` act from the first step to the last.

    In a stock Trainer, `set_trainer(trainer)` has to be called, for clip=two_pass and for several ranks.
    """

    def __init__(self) -> None:
        self._backward: Any = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        fused = _fused(optimizer)
        if fused is None:
            return
        if isinstance(fused.reduce, MeanOverRanks):
            fused.reduce.begin(self._trainer.model, self._trainer.model_wrapped)
        # Anew, so that hooks which Trainer has put on since then, to average gradients over ranks, come first.
        fused.detach()
        fused.attach()
        if not args.torch_compile:
            fused.take_tied_embeddings(model)
        if fused.two_pass:
            self._run_twice(fused)

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        fused = _fused(optimizer)
        if fused is not None:
            # Other techniques unfreeze layers between steps.
            fused.attach()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        fused = _fused(optimizer)
        if fused is not None and isinstance(fused.reduce, MeanOverRanks):
            fused.reduce.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self._let_go(optimizer)

    def on_train_raised(self) -> None:
        self._let_go(self._trainer.optimizer)

    def _let_go(self, optimizer: Any) -> None:
        fused = _fused(optimizer)
        if fused is not None:
            fused.detach()
            if isinstance(fused.reduce, MeanOverRanks):
                fused.reduce.end()
        if self._backward is not None:
            del self._trainer.accelerator.backward
            self._backward = None

    def _run_twice(self, fused: FusedBackward) -> None:
        accelerator = self._trainer.accelerator
        backward = self._backward = accelerator.backward

        def twice(loss: Any, **kwargs: Any) -> None:
            with fused.measuring():
                backward(loss, retain_graph=True, **kwargs)
            backward(loss, **kwargs)

        accelerator.backward = twice


def _fused(optimizer: Any) -> FusedBackward | None:
    inside = getattr(optimizer, "optimizer", None)
    return inside if isinstance(inside, FusedBackward) else None
