"""Products of experts' weights on tensors without numbers.

transformers computes mixtures of experts by `torch.nn.functional.grouped_mm`. torch multiplies any floating type so,
but what it has for tensors without numbers refuses all types but bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class GroupedProducts(TorchDispatchMode):
    """Within it, after `FakeTensorMode`, a grouped product of any type is an empty tensor of the product's shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return _empty_product(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _empty_product(
    first: torch.Tensor, second: torch.Tensor, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """Of [rows, in] and [groups, in, out]: [rows, out]; of two matrices, cut along what is summed: [groups, ., .]."""
    shape = [first.shape[-2], second.shape[-1]]
    if first.dim() == second.dim():
        shape.insert(0, offs.shape[0] if first.dim() == 2 else first.shape[0])
    return torch.empty(shape, dtype=out_dtype or first.dtype, device=first.device)
