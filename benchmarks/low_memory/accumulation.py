"""Gradient accumulation: four micro-batches against the whole batch in one, and folding into the moments."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import report
from benchmarks.low_memory import exact, runs
from benchmarks.report import Gate, Result

BENCHMARK = "low_memory"
STEPS, MICRO_BATCHES = 10, 4
ALGORITHMS = ("script", "lomo", "adalomo")


def trained(technique: str | None, device: str, **arguments: Any) -> tuple[list[torch.Tensor], float]:
    """The weights after some steps of four rows each, and the loss of these rows."""
    torch.set_num_threads(1)
    model = runs.language_model(**exact.SIZES)
    data = runs.texts(MICRO_BATCHES * STEPS, exact.SIZES["vocab_size"])
    with tempfile.TemporaryDirectory() as folder:
        settings = {"learning_rate": 1e-3, "optim": "adamw_torch", **arguments}
        trainer = runs.trainer_of(model, technique, device, steps=STEPS, rows=data, folder=folder, **settings)
        trainer.train()
        loss = trainer.evaluate(data)["eval_loss"]
    return [weight.detach() for weight in model.parameters()], loss


def rows(asked: Namespace) -> Iterator[Result]:
    whole = {"per_device_train_batch_size": MICRO_BATCHES, "max_grad_norm": 0.0}
    parts = {"gradient_accumulation_steps": MICRO_BATCHES, "max_grad_norm": 0.0}
    apart = {}
    for name in ALGORITHMS:
        technique = f"low-memory:algorithm={name}"
        (_, one), (_, four) = (trained(technique, asked.device, **way) for way in (whole, parts))
        apart[name] = abs(four / one - 1)
    (_, one), (expected, four) = (trained(None, asked.device, **way) for way in (whole, parts))
    yield report.row(
        *(BENCHMARK, "share of the loss by which 4 buffered micro-batches differ from a batch of 4, and stock's"),
        *(max(apart.values()), abs(four / one - 1)),
        gate=Gate("ours", "<=", 1e-6),
        conditions=report.conditions(asked.device, apart=apart, steps=STEPS),
    )
    weights, buffered = trained("low-memory", asked.device, **parts)
    yield report.row(
        *(BENCHMARK, "optimizers (AdamW) whose weights after 10 steps of 4 buffered micro-batches are stock's"),
        *(float(exact.are_equal(weights, expected)), 1.0),
        gate=Gate("difference", "=", 0),
        conditions=report.conditions(asked.device, steps=STEPS),
    )
    _, folded = trained("low-memory:accumulation=fold", asked.device, **parts)
    yield report.row(
        *(BENCHMARK, "training loss after 10 steps of 4 micro-batches, AdamW: folded against buffered"),
        *(folded, buffered),
        ratio=folded / buffered,
        conditions=report.conditions(asked.device, steps=STEPS),
    )
