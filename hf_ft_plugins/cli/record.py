"""Watch a script's trainers from inside its process, for `hf-ft compare`: progress while it runs, its logs at the end.

The watcher is a callback that only reads; it is added to Trainer's default callbacks, so the run without techniques
is a stock run.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from .run import ARGUMENTS_MODULE, TRAINER_MODULE, AfterImport

PROGRESS_SECONDS = 0.2


def watch(file: Path, output_subfolder: str | None) -> None:
    """Write `{"step", "max_steps"}` to `file` while training and everything that was logged at the process' end.

    With `output_subfolder`, every TrainingArguments' `output_dir` gets that folder below it, so that two runs of one
    script do not meet each other's checkpoints.
    """
    AfterImport(TRAINER_MODULE, lambda module: _add_recorder(module, file, output_subfolder)).watch()
    if output_subfolder:
        AfterImport(ARGUMENTS_MODULE, lambda module: _divert_output(module, output_subfolder)).watch()


def _add_recorder(module: types.ModuleType, file: Path, output_subfolder: str | None) -> None:
    from transformers import TrainerCallback

    histories: list[Any] = []

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.next_report = 0.0

        def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The script may have set it since the arguments were made.
            if output_subfolder:
                _divert(args, output_subfolder)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                histories.append(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero and time.monotonic() > self.next_report:
                self.next_report = time.monotonic() + PROGRESS_SECONDS
                _write(file, {"step": state.global_step, "max_steps": state.max_steps})

    def report() -> None:
        if histories:
            _write(
                file,
                {
                    "step": sum(state.global_step for state in histories),
                    "max_steps": sum(state.max_steps for state in histories),
                    "trainers": [state.log_history for state in histories],
                    "gpu_bytes": _peak_gpu_bytes(),
                },
            )

    atexit.register(report)
    module.DEFAULT_CALLBACKS.append(Recorder)


def _divert_output(module: types.ModuleType, subfolder: str) -> None:
    arguments = module.TrainingArguments
    prepare = arguments.__post_init__

    def __post_init__(self: Any) -> None:
        prepare(self)
        _divert(self, subfolder)

    arguments.__post_init__ = __post_init__


def _divert(args: Any, subfolder: str) -> None:
    # TRL makes its arguments from finished ones, which then come here a second time.
    if Path(args.output_dir).name != subfolder:
        args.output_dir = os.path.join(args.output_dir, subfolder)


def _peak_gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0


def _write(file: Path, content: dict[str, Any]) -> None:
    scratch = file.with_name(file.name + ".tmp")
    scratch.write_text(json.dumps(content, default=float), encoding="utf-8")
    scratch.replace(file)
