"""`PerTensorOptimizer`: the base of optimizers that are one function of a tensor, its gradient and its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....errors import PluginError
from ..settings import NAME
from .state_loading import restore_dtypes


class PerTensorOptimizer(torch.optim.Optimizer):
    """A subclass says what it does to one tensor, in `update`; it can be used in any training loop.

    State consists of tensors and plain numbers alone, so that `torch.load(..., weights_only=True)` reads it.
    """

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change `parameter` and `state` in place, without building a graph.

        Args:
            parameter, gradient: of the same shape and dtype; `gradient` may be overwritten.
            state: of this parameter; empty at its first step.
            group: its parameter group.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient.

        Raises:
            PluginError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise PluginError(
                        f"{NAME}: {type(self).__name__} takes no sparse gradients, and a parameter of shape "
                        f"{tuple(parameter.shape)} has one. Make the layer with sparse=False.",
                        code="model-unsuited",
                    )
                self.update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but tensors of the state keep their dtypes, where torch would cast them to the parameter's."""
        super().load_state_dict(state_dict)
        restore_dtypes(self, state_dict)
