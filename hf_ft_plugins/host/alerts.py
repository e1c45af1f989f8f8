"""Decisions of techniques as alerts of trackio, where a run reports to it."""

from __future__ import annotations

import sys
from typing import Any

from transformers.trainer_callback import TrainerCallback

TRACKER = "trackio"


class DecisionAlerts(TrainerCallback):
    """Sends an alert for each log entry with a technique's `NAME/action`; add it behind trackio's own callback."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        tracker: Any = sys.modules.get(TRACKER)
        if tracker is None or not state.is_world_process_zero or tracker.context_vars.current_run.get() is None:
            return
        for key, action in (logs or {}).items():
            if key.endswith("/action"):
                prefix = key.removesuffix("action")
                step = logs.get(f"{prefix}step", state.global_step)
                tracker.alert(
                    f"{prefix.rstrip('/').replace('_', '-')}: {action}",
                    f"step {step}: {logs.get(f'{prefix}reason', 'no reason is given')}",
                    level=tracker.AlertLevel.WARN if "stop" in str(action) else tracker.AlertLevel.INFO,
                )
