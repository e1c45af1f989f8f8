"""How far losses and gradients of `behavioral` are from their references, and how far a control is that must fail."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import report
from benchmarks.report import Gate, Result
from hf_ft_plugins.techniques.behavioral.collator import COLUMNS, FLIP, WEIGHT
from hf_ft_plugins.techniques.behavioral.prefix_sharing import Packed
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_preferences, tiny_setting

CLOSE = 1e-5
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 384}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
WEIGHED = ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm", "sigmoid+nca_pair")
Gradient = torch.Tensor


def exactness(common: dict[str, Any]) -> list[Result]:
    """Largest relative differences: of shared prefixes from stock's rows, of weights and flips from sums by hand."""
    results = []
    for kind in ("llama", "qwen2", "qwen3"):
        apart, leaky = zip(*(_shared(kind, checkpointing) for checkpointing in (False, True)), strict=True)
        what = f"shared prefixes: loss, gradients and metrics, {kind}, with and without checkpointing"
        results.append(_row(what, max(apart), min(leaky), common))
    apart, unweighted = zip(*map(_weighed, WEIGHED), strict=True)
    more = {"losses": WEIGHED}
    results.append(_row("weights: gradients", max(apart), min(unweighted), common | more))
    apart, one_rate = zip(*map(_flipped, ("robust", "cdpo")), strict=True)
    results.append(_row("flip probabilities: loss and gradients", max(apart), min(one_rate), common))
    return results


def _row(what: str, ours: float, control: float, common: dict[str, Any]) -> Result:
    return report.row(
        *("behavioral", f"relative difference, {what}", ours, control),
        gate=Gate("ours", "<=", CLOSE),
        also={"the control (baseline) is above it": control > CLOSE},
        conditions=common,
    )


def _built(*technique: str, kind: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZE, **HEADS))
    reference = copy.deepcopy(model)
    for parameter in reference.parameters():
        # A reference that is the model would make every log-ratio 0.
        parameter.data += 0.1 * torch.randn_like(parameter)
    setting = tiny_setting("dpo", per_device_train_batch_size=4, eval_strategy="no", **changes)
    setting |= {"model": model, "ref_model": reference, "train_dataset": tiny_preferences(24, turns=2)}
    with tempfile.TemporaryDirectory() as folder:
        return tiny_trainer(Path(folder), *technique, **setting)


def _batch(trainer: Any) -> dict[str, Any]:
    return dict(next(iter(trainer.get_train_dataloader())))


def _measured(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, Gradient]:
    return _differentiated(trainer.model, lambda: trainer.compute_loss(trainer.model, dict(batch)))


def _differentiated(model: Any, loss: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Gradient]:
    """The loss, and the gradient of all parameters as one vector."""
    model.zero_grad()
    value = loss()
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return value.detach(), torch.cat(gradients)


def _apart(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def _shared(kind: str, checkpointing: bool) -> tuple[float, float]:
    settings: dict[str, Any] = {"kind": kind, "gradient_checkpointing": checkpointing}
    shared, stock = _built("behavioral:share_prefixes=on", **settings), _built(**settings)
    batch = {name: value for name, value in _batch(shared).items() if name not in COLUMNS}
    # Unweighed, so that stock is the reference; its loss is the sigmoid one, at a flip probability of 0.
    batch_of_ours = batch | {FLIP: torch.zeros(4)}
    expected_loss, expected = _measured(stock, batch)

    def difference() -> float:
        shared._metrics["train"].clear()
        loss, gradient = _measured(shared, batch_of_ours)
        metrics = [
            abs(shared._metrics["train"][name][0] - value) / max(abs(value), 1.0)
            for name, (value,) in stock._metrics["train"].items()
            # Counted from the run's start.
            if name != "num_tokens"
        ]
        return max(_apart(loss, expected_loss), _apart(gradient, expected), *metrics)

    def leaky(packed: Any) -> torch.Tensor:
        size = packed.pair.shape[1]
        return torch.ones(size, size, dtype=torch.bool).tril().expand(len(packed.pair), 1, size, size)

    exact = difference()
    with mock.patch.object(Packed, "mask", leaky):
        return exact, difference()


def _weighed(loss_type: str) -> tuple[float, float]:
    settings = {"loss_type": loss_type.split("+"), "label_smoothing": 0.1}
    ours, stock = _built("behavioral:noise=off", **settings), _built(**settings)
    batch = _batch(ours)
    weights = batch[WEIGHT]
    _, gradient = _measured(ours, batch)
    plain = {name: value for name, value in batch.items() if name not in COLUMNS}
    by_hand = torch.zeros_like(gradient)
    for pair, weight in enumerate(weights):
        rows = [pair, pair + len(weights)]
        by_hand += weight / len(weights) * _measured(stock, {name: value[rows] for name, value in plain.items()})[1]
    return _apart(gradient, by_hand), _apart(_measured(stock, plain)[1], by_hand)


def _flipped(noise: str) -> tuple[float, float]:
    trainer = _built(f"behavioral:noise={noise},weights=false")
    batch = _batch(trainer)
    flip = batch[FLIP]

    def scores(model: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        return (tokens * batch["completion_mask"][:, 1:]).sum(1)

    with torch.no_grad():
        reference = scores(trainer.ref_model)

    def by_hand() -> torch.Tensor:
        chosen, rejected = (scores(trainer.model) - reference).chunk(2)
        z = trainer.beta * (chosen - rejected)
        losses = -(1 - flip) * logsigmoid(z), flip * logsigmoid(-z)
        mean = (losses[0] + losses[1]) / (1 - 2 * flip) if noise == "robust" else losses[0] - losses[1]
        return mean.mean()

    loss, gradient = _measured(trainer, batch)
    expected_loss, expected = _differentiated(trainer.model, by_hand)
    one_rate = _measured(trainer, batch | {FLIP: torch.full_like(flip, float(flip.mean()))})[1]
    return max(_apart(loss, expected_loss), _apart(gradient, expected)), _apart(one_rate, expected)
