"""Seconds of a training step, the runs in turns; and what a hook costs in models of few and of many tensors."""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import report
from benchmarks.low_memory import runs
from benchmarks.report import Gate, Result

BENCHMARK = "low_memory"
SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
SIDES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "AdamW": (None, {"optim": "adamw_torch_fused"}),
    "AdamW, again": (None, {"optim": "adamw_torch_fused"}),
    "fused AdamW": ("low-memory:clip=lagged", {}),
    "LOMO": ("low-memory:algorithm=lomo,clip=none", {}),
    "LOMO, two passes": ("low-memory:algorithm=lomo", {}),
    "AdaLomo": ("low-memory:algorithm=adalomo", {}),
    "compact AdamW": ("low-memory:algorithm=compact-adamw", {}),
    "GaLore": ("low-memory:algorithm=galore", {}),
    "APOLLO": ("low-memory:algorithm=apollo", {}),
    "SinkGD": ("low-memory:algorithm=sinkgd", {}),
    "Muon": ("low-memory:algorithm=muon", {}),
    "LISA": ("low-memory:algorithm=lisa", {}),
    "BAdam": ("low-memory:algorithm=badam", {}),
    "MeZO": ("low-memory:algorithm=mezo", {}),
}
STEPS = 4
TENSORS = (4, 24)  # layers of the models that the cost of a hook is measured with


def steps_of(side: str, device: str, **changes: Any) -> Callable[[], float]:
    """A function that trains a few steps and returns the seconds of one."""
    technique, arguments = SIDES[side]
    model = runs.language_model(**{**SIZES, **changes})
    rows = runs.texts(STEPS, model.config.vocab_size)
    folder = tempfile.mkdtemp()

    def measure() -> float:
        trainer = runs.trainer_of(model, technique, device, steps=STEPS, rows=rows, folder=folder, **arguments)
        began = time.perf_counter()
        trainer.train()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / STEPS

    measure()
    return measure


def in_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        # Each comes first as often as any other.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            values[name].append(sides[name]())
    return values


def rows(asked: Namespace) -> Iterator[Result]:
    torch.set_num_threads(1)
    names = ("AdamW", "AdamW, again", "fused AdamW", "LOMO") if asked.quick else tuple(SIDES)
    rounds = 7 if asked.quick else 11
    values = in_turns({name: steps_of(name, asked.device) for name in names}, rounds)
    gates = {"fused AdamW": Gate("ratio", "<=", 1.1)}
    pairs = {(name, "AdamW"): gates.get(name) for name in names[2:]}
    if "LOMO" in names:
        pairs[("LOMO", "fused AdamW")] = Gate("ratio", "<=", 1.1)
    common = report.conditions(asked.device, **SIZES, length=runs.LENGTH)
    yield from report.compared(
        BENCHMARK, "seconds a step", values, pairs, again=("AdamW, again", "AdamW"), conditions=common
    )
    yield from _hooks(asked, rounds)


def _hooks(asked: Namespace, rounds: int) -> Iterator[Result]:
    """Microseconds that stepping within the backward pass adds for each tensor, of few and of many tensors."""
    added = {}
    for layers in TENSORS:
        narrow = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 256}
        sides = {
            name: steps_of(name, asked.device, **narrow, num_hidden_layers=layers) for name in ("AdamW", "fused AdamW")
        }
        tensors = 2 + 9 * layers
        values = in_turns(sides, rounds)
        differences = sorted(
            1e6 * (ours - stock) / tensors for ours, stock in zip(values["fused AdamW"], values["AdamW"], strict=True)
        )
        added[tensors] = differences[len(differences) // 2]
    (few, least), (many, most) = added.items()
    yield report.row(
        *(BENCHMARK, f"microseconds that a hook adds: a model of {many} tensors against one of {few}"),
        *(most, least),
        ratio=most / least if least > 0 else None,
        gate=Gate("ratio", "<=", 1.5),
        conditions=report.conditions(asked.device, rounds=rounds),
    )
