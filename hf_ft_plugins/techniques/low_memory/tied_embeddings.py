"""The gradient of an embedding that is tied to the head, without two more tensors of its size.

Such a weight gets its gradient from the head, first, and from the embedding, last, and autograd makes each of them, and
their sum, a tensor as large as the weight. The embedding's is zero but for the tokens of the batch. So it is kept by
rows, and added in place to the head's, in the order and with the arithmetic of autograd: the sum has the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch

from ...models.embeddings import tied_layers


class TiedEmbedding:
    """Takes over the backward pass of the embeddings that hold `weight`, until `let_go`.

    Args:
        weight: [tokens, width], which something else than embeddings uses, too.
        modules: plain `torch.nn.Embedding` layers that hold it (`can_be_taken`).
    """

    def __init__(self, weight: torch.nn.Parameter, modules: list[torch.nn.Embedding]) -> None:
        self.weight = weight
        self._modules = modules
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in modules:
            module.forward = functools.partial(self._embed, module)

    def let_go(self) -> None:
        """Leave the layers as they were."""
        for module in self._modules:
            vars(module).pop("forward", None)
        self._rows.clear()

    def _embed(self, module: torch.nn.Embedding, input: torch.Tensor) -> Any:
        return _Lookup.apply(module.weight, input, module.padding_idx, self._rows)

    @torch.no_grad()
    def complete(self) -> None:
        """Add what the embeddings have kept to the weight's gradient, which has the other parts."""
        if self._rows and self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        for tokens, gradient in self._rows:
            assert self.weight.grad is not None
            self.weight.grad.index_add_(0, tokens, gradient)
        self._rows.clear()


class _Lookup(torch.autograd.Function):
    """`torch.nn.functional.embedding`, whose backward pass keeps the gradient's rows instead of returning it."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, tokens: torch.Tensor, padding: int | None, rows: list[Any]) -> Any:
        ctx.save_for_backward(tokens)
        ctx.padding, ctx.rows = padding, rows
        return torch.nn.functional.embedding(tokens, weight, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (tokens,), (gradient,) = ctx.saved_tensors, gradients
        if ctx.padding is not None:
            gradient = gradient.masked_fill((tokens == ctx.padding).unsqueeze(-1), 0.0)
        found, places = torch.unique(tokens, return_inverse=True)
        summed = torch.ops.aten.embedding_dense_backward(gradient, places, len(found), -1, False)
        ctx.rows.append((found, summed))
        return None, None, None, None


def tied_embeddings(model: torch.nn.Module, weights: Collection[int]) -> list[TiedEmbedding]:
    """Take over each embedding of `model` that is tied to a layer of another kind, where that changes no bit.

    Args:
        weights: the ids of those weights that may be taken.
    """
    taken = []
    for paths in tied_layers(model).values():
        owners = [model.get_submodule(path.rpartition(".")[0]) for path in paths]
        weight = model.get_parameter(paths[0])
        embeddings = [one for one in owners if isinstance(one, torch.nn.Embedding)]
        if (
            0 < len(embeddings) < len(owners)
            and all(map(can_be_taken, embeddings))
            and id(weight) in weights
            and not hasattr(weight, "full_tensor")
        ):
            taken.append(TiedEmbedding(weight, embeddings))
    return taken


def can_be_taken(module: torch.nn.Embedding) -> bool:
    """Whether a layer does what `torch.nn.functional.embedding` does, and nothing more."""
    plain = type(module).forward is torch.nn.Embedding.forward and "forward" not in vars(module)
    return plain and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
