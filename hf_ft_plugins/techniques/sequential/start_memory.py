"""`StartMemory`: the model as it was when the stage began, to learn from, and to average with at its end.

trainer.add_callback(callback := StartMemory(lwf=1.0))
callback.set_trainer(trainer)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ...host.log_notes import log_into_last_entry
from ...host.stash import WithTrainer
from ...shards import whole_tensor
from .settings import NAME
from .start_weights import moving_tensors, read_start, start_folder, write_start
from .teacher import frozen_copy, remembering
from .weight_averaging import average_with_start

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class StartMemory(WithTrainer, TrainerCallback):
    """Learning without forgetting, and the average of the weights before and after (WiSE-FT).

    Args:
        lwf: weight of the divergence from the start's predictions; 0: none. `learning` is to be entered where the loss
            is computed.
        temperature: of that divergence.
        wise: share of the new weights in the average; None: the new alone.
    """

    end_phase = "gate"

    def __init__(self, *, lwf: float = 0.0, temperature: float = 2.0, wise: float | None = None) -> None:
        self.lwf, self.temperature, self.wise = lwf, temperature, wise
        self._teacher: torch.nn.Module | None = None
        self._digest: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_teacher": None}

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self._digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._digest = state["digest"]

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        start = None
        if state.global_step == 0:
            folder = start_folder(args)
            self._digest = write_start(self._model, folder, optimizer=optimizer, saves=args.should_save)
        else:
            start = read_start(start_folder(args), self._digest)
        if self.lwf:
            self._teacher = frozen_copy(self._model, start)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._teacher = None
        if self.wise is None:
            return
        start = read_start(start_folder(args), self._digest)
        before = distance_from(self._model, start)
        average_with_start(self._model, start, self.wise)
        after = distance_from(self._model, start)
        logger.info("%s: wise=%g: the weights were %.4g from the start's, and are %.4g", NAME, self.wise, before, after)
        log_into_last_entry(self._trainer, {"sequential/distance": after})

    def on_train_raised(self) -> None:
        self._teacher = None

    @contextmanager
    def learning(self) -> Iterator[None]:
        """While it lasts, the loss of the trainer's model has the divergence from the start in it."""
        if self._teacher is None:
            yield
            return
        with remembering(self._model, self._teacher, self.lwf, self.temperature, trainer=self._trainer):
            yield

    @property
    def _model(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)


def distance_from(model: torch.nn.Module, start: Mapping[str, torch.Tensor]) -> float:
    """How far the model's weights are from those of `start`, in the Euclidean norm; every rank has to ask for it."""
    total = 0.0
    for name, tensor in moving_tensors(model).items():
        if name in start:
            total += float((whole_tensor(tensor.detach()).cpu().double() - start[name].double()).square().sum())
    return total**0.5
