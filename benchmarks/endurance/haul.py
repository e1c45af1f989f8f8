"""A long run of a tiny model with four techniques: whether memory, time of a step and the log stay flat."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from transformers import TrainerCallback

from benchmarks.endurance.runs import build
from benchmarks.endurance.worlds import ONE, on_ranks
from hf_ft_plugins.host.run_progress import learning_parameters

NAMES = ("adaptive-lr", "task", "transfer", "sequential")
# A run's first tenth fills caches.
WARM = 0.1
SLOWEST = 0.1  # seconds of a step, on a busy machine, before the run counts as one that hangs


class Watched(TrainerCallback):
    """Memory of the process, CPU seconds of a step, and how many parameters learn, every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.memory: list[float] = []
        self.seconds: list[float] = []
        self.learning: list[int] = []
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            now = time.process_time()
            self.seconds.append((now - self.began) / self.every)
            gc.collect()
            self.memory.append(psutil.Process().memory_info().rss / 2**20)
            self.learning.append(learning_parameters(kwargs["model"]))
            self.began = time.process_time()


def haul(steps: int, points: int = 40) -> dict[str, Any]:
    """MiB a 1,000 steps that memory grows by, the time of a step at the end by that at the beginning, log entries.

    Of the steps in which as many parameters learn as in the last one: `transfer` thaws layer after layer, and frozen
    ones cost less.
    """

    def work(rank: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            watched = Watched(steps // points)
            evaluations = {"eval_steps": steps // 20, "save_steps": steps // 10, "logging_steps": steps // 100}
            setting = {**evaluations, "max_steps": steps, "save_total_limit": 2, "callbacks": [watched]}
            trainer = build(Path(folder), NAMES, ONE, gradient_accumulation_steps=1, **setting)
            trainer.train()
            return {
                "steps": trainer.state.global_step,
                "memory": watched.memory,
                "seconds": watched.seconds,
                "learning": watched.learning,
                "entries": len(trainer.state.log_history),
            }

    end = on_ranks(ONE, work, patience=steps * SLOWEST)[0]
    if "value" not in end:
        raise RuntimeError(str(end))
    found: dict[str, Any] = end["value"]
    warm = int(WARM * len(found["memory"]))
    places = [(place + 1) * steps / points / 1000 for place in range(len(found["memory"]))]
    slope = statistics.linear_regression(places[warm:], found["memory"][warm:]).slope
    learning = found["learning"]
    alike = [one for one, count in zip(found["seconds"], learning, strict=True) if count == learning[-1]]
    # The first may hold steps from before.
    some = max(1, len(alike) // 5)
    slower = statistics.median(alike[-some:]) / statistics.median(alike[1 : 1 + some])
    return found | {"slope": slope, "slower": slower}
