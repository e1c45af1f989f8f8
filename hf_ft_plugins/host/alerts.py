"""Decisions of techniques as alerts of trackio, where a run reports to it."""

from __future__ import annotations

import sys
from typing import Any

from transformers.trainer_callback import TrainerCallback

from ..training_log import decisions_in

TRACKER = "trackio"


class DecisionAlerts(TrainerCallback):
    """Sends an alert for each log entry with a technique's `NAME/action`; add it behind trackio's own callback."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        tracker: Any = sys.modules.get(TRACKER)
        if tracker is None or not state.is_world_process_zero or tracker.context_vars.current_run.get() is None:
            return
        for one in decisions_in(logs or {}, state.global_step):
            tracker.alert(
                f"{one.technique}: {one.action}",
                f"step {one.step}: {one.reason or 'no reason is given'}",
                level=tracker.AlertLevel.WARN if one.stops else tracker.AlertLevel.INFO,
            )
