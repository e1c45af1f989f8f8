"""What later decisions depend on, and where a run keeps it: the host's checkpoints, or those of a stock Trainer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ...host.log_notes import StockLog
from ...host.stash import WithTrainer, parts_of
from . import nonfinite
from .best_weights import write_weights
from .controllers import ControllerState
from .loss_average import LossAverage
from .watched_metric import Watch

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from .settings import WatchSettings

STATE_KEY = "hf_ft_plugins/adaptive-lr"


class KeepsState(WithTrainer, TrainerCallback):
    """Base of `AdaptiveLRCallback`. In a stock Trainer it keeps its state in `trainer_state.json`."""

    watch_settings: WatchSettings
    log_notes: dict[str, Any]
    _restored: bool

    def _forget(self) -> None:
        self.log_notes.clear()
        self._watch = Watch(self.watch_settings)
        self._controller = ControllerState()
        self._guard = nonfinite.GuardState()
        self._average = LossAverage()
        self._best: dict[str, torch.Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stock_log": StockLog()}

    @property
    def _hosted(self) -> bool:
        return any(part is self for part in parts_of(self._trainer).values())

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on: JSON values, and tensors under `best_weights`."""
        return {**self._plain_state(), "best_weights": self._best}

    def _plain_state(self) -> dict[str, Any]:
        return {
            "controller": asdict(self._controller),
            "guard": {**asdict(self._guard), "recent": list(self._guard.recent)},
            "ema": asdict(self._average),
            "watch": self._watch.state_dict(),
            "log_notes": dict(self.log_notes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `on_train_begin` goes on from there."""
        self._controller = ControllerState(**state["controller"])
        self._guard = nonfinite.GuardState(**{**state["guard"], "recent": tuple(state["guard"]["recent"])})
        self._average = LossAverage(**state["ema"])
        self._best = state.get("best_weights")
        self._watch.load_state_dict(state.get("watch", {}))
        self.log_notes.clear()
        self.log_notes.update(state.get("log_notes", {}))
        self._restored = True

    def _remember(self, state: TrainerState) -> None:
        if not self._hosted:
            state.stateful_callbacks[STATE_KEY] = self._plain_state()

    def _restore_alone(self, state: TrainerState) -> None:
        stored = state.stateful_callbacks.get(STATE_KEY)
        if stored and state.global_step:
            self.load_state_dict(stored)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._best is not None and not self._hosted and args.should_save:
            write_weights(self._best, args, state.global_step)
