"""Whether penalties are what they should be: against autograd in 64 bits, and whatever a step accumulates."""

from __future__ import annotations

import dataclasses
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer

from benchmarks import report
from benchmarks.report import Gate, Result
from benchmarks.sequential.runs import arguments, trainer_of
from benchmarks.sequential.tasks import DigitsConfig, DigitsModel, permuted_digits
from hf_ft_plugins.techniques.sequential.penalties import EWC, L2SP
from hf_ft_plugins.techniques.sequential.penalty_callback import PenaltyCallback

BENCHMARK = "sequential"
WEIGHT = 0.3


def rows(asked: Namespace) -> Iterator[Result]:
    torch.set_num_threads(1)
    common = report.conditions(asked.device)
    for name, apart in (("l2sp", _apart(fisher=False)), ("ewc", _apart(fisher=True))):
        yield report.row(
            *(BENCHMARK, f"{name}: largest difference of a gradient from autograd's, 64 bits", apart),
            gate=Gate("ours", "<=", 1e-10),
            conditions=common,
        )
    whole, parts = _trained(32, 1, asked.device), _trained(8, 4, asked.device)
    in_loss = [_trained(*each, asked.device, in_loss=True) for each in ((32, 1), (8, 4))]
    yield report.row(
        *(BENCHMARK, "l2sp: largest difference of a weight, 4 accumulated batches from one; and in the loss"),
        *(_largest(whole, parts), _largest(*in_loss)),
        gate=Gate("ours", "<=", 1e-10),
        conditions={**common, "steps": 10},
    )


def _apart(*, fisher: bool) -> float:
    """The largest difference between a penalty's gradient and autograd's."""
    random = torch.Generator().manual_seed(0)

    def drawn() -> torch.Tensor:
        return torch.randn(40, 30, dtype=torch.float64, generator=random)

    parameter, start, importance = torch.nn.Parameter(drawn()), drawn(), drawn().square()
    parameter.grad = torch.zeros_like(parameter)
    if fisher:
        EWC(WEIGHT, {"w": start}, {"w": importance}).add_gradients({"w": parameter})
    else:
        L2SP(WEIGHT, {"w": start}).add_gradients({"w": parameter})
    penalty = WEIGHT / 2 * ((importance if fisher else 1) * (parameter - start).square()).sum()
    (wanted,) = torch.autograd.grad(penalty, parameter)
    return float((parameter.grad - wanted).abs().max())


class Counting(DigitsModel):
    """Its loss is divided by the targets of a whole step, as those of language models are."""

    def forward(self, pixels: torch.Tensor, labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        found = super().forward(pixels, labels)
        if num_items_in_batch is None or labels is None:
            return found
        found["loss"] = found["loss"] * len(labels) / num_items_in_batch
        return found


class InLoss(Trainer):
    """The penalty where it does not belong: in the loss."""

    start: dict[str, torch.Tensor]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        apart = ((one - self.start[name]).square().sum() for name, one in model.named_parameters())
        return loss + WEIGHT / 2 * sum(apart)


def _trained(batch: int, accumulated: int, device: str, *, in_loss: bool = False) -> dict[str, torch.Tensor]:
    task = permuted_digits(0, 38)
    more = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated, "optim": "sgd"}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(task, folder, 0, device, max_steps=10, learning_rate=0.05, max_grad_norm=0, **more)
        task = dataclasses.replace(task, model=lambda start: Counting(DigitsConfig()).double())
        trainer = trainer_of(task, None, args, _double(task.stages[0].train), None, InLoss if in_loss else Trainer)
        if in_loss:
            trainer.start = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
        else:
            penalty = PenaltyCallback(l2sp=WEIGHT)
            trainer.add_callback(penalty)
            penalty.set_trainer(trainer)
        trainer.train()
        return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}


def _double(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "pixels": row["pixels"].double()} for row in rows]


def _largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
