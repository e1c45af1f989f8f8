"""Twenty steps within the backward pass against the same optimizer stepped after it: the weights, bit for bit."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import report
from benchmarks.low_memory import runs
from benchmarks.report import Gate, Result

BENCHMARK = "low_memory"
STEPS = 20
OPTIMS = ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_bnb_8bit", "lion_8bit", "rmsprop", "adagrad")
ALGORITHMS = ("lomo", "adalomo", "compact-adamw", "galore", "apollo", "apollo-mini", "sinkgd", "muon")
# Large enough for bitsandbytes to keep its state in 8 bits.
SIZES = {**runs.SMALL, "hidden_size": 96, "intermediate_size": 128, "vocab_size": 256}


def weights(technique: str | None, device: str, **arguments: Any) -> list[torch.Tensor]:
    """Of the small model after its steps."""
    torch.set_num_threads(1)
    model = runs.language_model(**SIZES)
    settings = {"max_grad_norm": 0.0, "weight_decay": 0.1, "learning_rate": 1e-3, **arguments}
    with tempfile.TemporaryDirectory() as folder:
        rows = runs.texts(STEPS, SIZES["vocab_size"])
        runs.trainer_of(model, technique, device, steps=STEPS, rows=rows, folder=folder, **settings).train()
    return [weight.detach() for weight in model.parameters()]


def are_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def rows(asked: Namespace) -> Iterator[Result]:
    device = asked.device
    found = {}
    for optim in OPTIMS:
        stock = weights(None, device, optim=optim)
        assert not are_equal(stock, weights(None, device, optim=optim, learning_rate=1.1e-3)), "the control is equal"
        found[optim] = are_equal(stock, weights("low-memory", device, optim=optim))
    for name in ALGORITHMS:
        technique = f"low-memory:algorithm={name}" + (",rank=24" if name in ("galore", "apollo") else "")
        after = weights(f"{technique},fused=false", device)
        assert not are_equal(after, weights(technique, device, learning_rate=1.1e-3)), "the control is equal"
        found[name] = are_equal(after, weights(technique, device))
    yield report.row(
        *(BENCHMARK, f"optimizers whose weights are bit-identical after {STEPS} steps: within the backward, after it"),
        *(float(sum(found.values())), float(len(found))),
        gate=Gate("difference", "=", 0),
        conditions=report.conditions(device, equal=found),
    )
