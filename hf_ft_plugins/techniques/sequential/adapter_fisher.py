"""Elastic weight consolidation under LoRA: of what the adapter adds to a layer's weight, not of its two matrices.

A and B can change much while B A does not, and neither has a gradient of its own where the other is 0. So the Fisher
information is that of Delta W = scaling B A, [out, in] like the layer's weight, the penalty is
lambda/2 sum F (Delta W - Delta W0)^2, and the chain rule takes its gradient to A and B. As EWC-LoRA (arXiv:2602.17559);
theirs keeps one F over all tasks, here it is estimated anew (see `fisher.py`).

The gradient of Delta W is made of what enters a layer and of the gradient of what leaves it, in the backward pass, one
layer at a time; the layer's own weight gets none, and may be frozen or quantised. F takes as much memory as the weights
of all adapted layers in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from .fisher import Batches, empty_like_full, for_each_row, learning, means
from .log_likelihood import Kind
from .lora_layers import LoraLayer, matrix
from .penalties import Parameters, add_in_full
from .settings import NAME
from .start_weights import moving_parameters


def estimate_adapter_fisher(
    model: torch.nn.Module,
    layers: Sequence[LoraLayer],
    batches: Batches,
    *,
    rows: int,
    kind: Kind = "sampled",
    seed: int = 0,
    parameters: Mapping[str, torch.nn.Parameter] | None = None,
    loss_scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """As `estimate_fisher`, with each layer's Delta W under `delta_name` in the place of its A and B.

    Raises:
        PluginError: as there; a matrix is sharded over ranks.
    """
    parameters = moving_parameters(model) if parameters is None else parameters
    matrices = {name for layer in layers for name in (layer.a, layer.b)}
    others = {name: one for name, one in parameters.items() if name not in matrices}
    refuse_shards(parameters[name] for name in matrices)
    total = {name: empty_like_full(one) for name, one in others.items()}
    for layer in layers:
        a, b = parameters[layer.a], parameters[layer.b]
        full = torch.promote_types(a.dtype, torch.float32)
        total[delta_name(layer)] = torch.zeros(len(b), a.shape[1], dtype=full, device=a.device)

    def add_squares() -> None:
        for name, parameter in others.items():
            if parameter.grad is not None:
                gradient = parameter.grad.to(total[name].dtype) / loss_scale
                total[name].addcmul_(gradient, gradient)

    with learning(others.values()), _squares_added(layers, total, loss_scale):
        count = for_each_row(model, batches, add_squares, rows=rows, kind=kind, seed=seed, loss_scale=loss_scale)
    return means(total, count)


def delta_name(layer: LoraLayer) -> str:
    """What the Fisher information of a layer's Delta W goes by."""
    return f"{layer.path}.delta_weight"


@dataclass(frozen=True)
class AdapterEWC:
    """weight/2 sum F (Delta W - Delta W0)^2 over layers with LoRA.

    Attributes:
        weight: 0 or more.
        layers: with their A and B.
        start: of A and B, by name.
        fisher: by `delta_name`, [out, in], in 32 bits or more.
    """

    weight: float
    layers: Sequence[LoraLayer]
    start: Mapping[str, torch.Tensor]
    fisher: Mapping[str, torch.Tensor]

    @torch.no_grad()
    def add_gradients(self, parameters: Parameters) -> None:
        for layer in self.layers:
            a, b = parameters[layer.a], parameters[layer.b]
            if a.grad is None and b.grad is None:
                continue
            # Of Delta W.
            gradient = self.weight * layer.scaling * self.fisher[delta_name(layer)] * self._distance(layer, a, b)
            if a.grad is not None:
                add_in_full(a.grad, matrix(b).T @ gradient)
            if b.grad is not None:
                add_in_full(b.grad, gradient @ matrix(a).T)

    @torch.no_grad()
    def value(self, parameters: Parameters) -> float:
        squares = (
            self.fisher[delta_name(layer)] * self._distance(layer, parameters[layer.a], parameters[layer.b]).square()
            for layer in self.layers
        )
        return self.weight / 2 * sum(float(one.sum()) for one in squares)

    def _distance(self, layer: LoraLayer, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        before = matrix(self.start[layer.b]) @ matrix(self.start[layer.a])
        return layer.scaling * (matrix(b) @ matrix(a) - before)


@contextmanager
def _squares_added(layers: Sequence[LoraLayer], total: dict[str, torch.Tensor], loss_scale: float) -> Iterator[None]:
    """In a backward pass, the squared gradient of each layer's Delta W is added to `total`."""
    handles = [layer.module.register_forward_hook(_Squares(total[delta_name(layer)], loss_scale)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Squares:
    """A layer's forward hook; where it is called several times in a row, the gradients are summed before the square."""

    def __init__(self, total: torch.Tensor, loss_scale: float) -> None:
        self.total, self.loss_scale = total, loss_scale
        self.waiting = 0
        self.sum: torch.Tensor | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        if not output.requires_grad:
            return
        inputs = args[0].detach()
        self.waiting += 1

        def add(gradient: torch.Tensor) -> None:
            full = self.total.dtype
            left, right = gradient.flatten(0, -2).to(full), inputs.flatten(0, -2).to(full)
            product = left.T @ right / self.loss_scale
            self.sum = product if self.sum is None else self.sum + product
            self.waiting -= 1
            if self.waiting == 0:
                self.total.addcmul_(self.sum, self.sum)
                self.sum = None

        output.register_hook(add)


def refuse_shards(matrices: Iterable[torch.Tensor]) -> None:
    """Raise `PluginError` where FSDP has cut up A and B: a rank would need those of others for its part of Delta W."""
    if any(hasattr(one, "full_tensor") for one in matrices):
        raise PluginError(
            f"{NAME}: ewc with LoRA needs whole matrices on each rank, and FSDP cuts them up. Train without FSDP, or "
            "use l2sp, olora or replay.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "ewc", 0)],
        )
