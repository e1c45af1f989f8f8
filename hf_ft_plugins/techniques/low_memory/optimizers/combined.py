"""`CombinedOptimizer`: several torch optimizers, each with some of the parameter groups, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .... import mends
from ....errors import PluginError
from ..settings import NAME
from .per_tensor import PerTensorOptimizer
from .state_loading import restore_dtypes

# Of a parameter group: the name of the optimizer that steps it.
OWNER = "hf_ft_optimizer"


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps each parameter group by the optimizer that it was made with.

        CombinedOptimizer({"galore": GaLore(matrices, lr=1e-3), "adamw": AdamW(others, lr=1e-3)})

    It has one list of groups and one state, as any torch optimizer, so that schedulers, checkpoints, and whatever
    splits groups or steps single tensors see nothing unusual. A group carries its optimizer's name under `OWNER`; one
    that is added without it goes to the last optimizer.

    Args:
        members: by name; their groups become this optimizer's, and they must not be stepped by themselves any more.
    """

    def __init__(self, members: Mapping[str, torch.optim.Optimizer]) -> None:
        self._members = dict(members)
        groups = [{**group, OWNER: name} for name, member in members.items() for group in member.param_groups]
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        name = param_group.setdefault(OWNER, list(self._members)[-1])
        member = self._members[name]
        # It fills in its defaults, and appends the group to this optimizer's list.
        member.param_groups, member.state = self.param_groups, self.state
        member.add_param_group(param_group)
        member.param_groups = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, member in self._members.items():
            groups = [group for group in self.param_groups if group[OWNER] == name]
            if groups:
                member.param_groups, member.state = groups, self.state
                try:
                    type(member).step(member)
                finally:
                    member.param_groups = []
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's.

        Raises:
            PluginError: the state is that of other algorithms.
        """
        saved, own = (
            [group.get(OWNER) for group in groups] for groups in (state_dict["param_groups"], self.param_groups)
        )
        if set(saved) != set(own):
            raise PluginError(
                f"{NAME}: the checkpoint's optimizer state is that of {_listed(saved)}, and this run trains with "
                f"{_listed(own)}. Resume with the algorithm that the checkpoint was made with, or load its weights "
                "alone and start a new run.",
                code="checkpoint-other-run",
                mend=[mends.use_checkpoint(None)],
            )
        super().load_state_dict(state_dict)
        exact = {name for name, member in self._members.items() if isinstance(member, PerTensorOptimizer)}
        restore_dtypes(self, state_dict, lambda group: group[OWNER] in exact)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_members": self._members}


def _listed(names: list[str | None]) -> str:
    return " and ".join(name or "another optimizer" for name in dict.fromkeys(names))
