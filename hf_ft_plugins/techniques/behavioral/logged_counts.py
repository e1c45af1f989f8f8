"""TRL's counts of a run, which a checkpoint of TRL's does not hold: a resumed run would log them from 0 again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from ...host.stash import WithTrainer


class CountsCallback(WithTrainer, TrainerCallback):
    """Keeps a TRL trainer's number of tokens, and the metrics since its last log, in every checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "tokens": self._trainer._total_train_tokens,
            "metrics": {name: list(values) for name, values in self._trainer._metrics["train"].items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._trainer._total_train_tokens = state["tokens"]
        self._trainer._metrics["train"].clear()
        self._trainer._metrics["train"].update(state["metrics"])
