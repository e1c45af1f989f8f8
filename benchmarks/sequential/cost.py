"""Seconds of processor time that a step takes with protection, in turns with a stock Trainer's, on medical text."""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from benchmarks import report
from benchmarks.report import Gate, LeftOut, Result
from benchmarks.sequential.runs import arguments, trainer_of
from benchmarks.sequential.tasks import has_data, text_to_answers
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.sequential import StageCallback

BENCHMARK = "sequential"
STOCK, AGAIN = "stock", "stock again (A/A)"
OPTIONS = {
    "replay": "",
    "l2sp": "replay=0,l2sp=0.01",
    "lwf": "replay=0,lwf=1",
    "token_weights=entropy": "replay=0,token_weights=entropy",
}
STEPS, WARM = 12, 3


class Clock(TrainerCallback):
    """Processor time of each step, with what is done before it, after the first few."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> float:
        """Of a middling step: now and then one waits for memory, whatever it does."""
        return float(np.median(np.diff(self.ends)[WARM:]))


def rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not has_data():
        yield LeftOut("cost: the data or the checkpoints are not there (FT_DATA)")
        return
    torch.set_num_threads(1)
    task = text_to_answers(0, 40)
    first, second = task.stages[:2]
    chosen = {"replay": OPTIONS["replay"]} if asked.quick else OPTIONS
    values: dict[str, list[float]] = {name: [] for name in (STOCK, AGAIN, *chosen)}
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "stages"

        def seconds(name: str, number: int) -> float:
            more = {"max_steps": STEPS, "learning_rate": 1e-4}
            args = arguments(task, f"{folder}/{name}-{number}", number, asked.device, **more)
            host = Trainer
            if name in chosen:
                # The stage never ends: a folder with one stage behind it serves all.
                options = ",".join(one for one in (f"folder={begun},stage=second", chosen[name]) if one)
                host = with_plugins(Trainer, f"sequential:{options}")
            trainer = trainer_of(task, str(begun / "first" / "model"), args, second.train, None, host)
            trainer.callback_handler.callbacks = [
                one for one in trainer.callback_handler.callbacks if not isinstance(one, StageCallback)
            ]
            clock = Clock()
            trainer.add_callback(clock)
            trainer.train()
            return clock.seconds

        args = arguments(task, f"{folder}/first", 0, asked.device, max_steps=2)
        host = with_plugins(Trainer, f"sequential:folder={begun},stage=first")
        trainer_of(task, None, args, first.train, None, host).train()
        for number in range(6 if asked.quick else 12):
            for name in values:
                values[name].append(seconds(name, number))
    pairs = {(name, STOCK): Gate("ratio", "<=", 1.02) if name == "replay" else None for name in chosen}
    common = report.conditions(asked.device, steps=STEPS - WARM - 1, batch=8, tokens=64)
    yield from report.compared(BENCHMARK, "seconds of processor time a step", values, pairs, (AGAIN, STOCK), common)
