"""Trainer mix-in: a technique that orders the training rows is refused where the trainer's class does so itself.

Else one of the two orders would be lost without a word: that of the class, where Trainer is to draw from its sampler,
or the technique's, where the class makes its own data loader.
"""

from __future__ import annotations

from typing import Any

from .. import mends
from ..errors import PluginError
from . import hooks
from .hook_calls import CallsHooks

ORDER_HOOKS = ("ft_sampler", "ft_batch_sampler")
# What a class has of its own where it does not leave the order to Trainer.
ORDERS, LOADS = "_get_train_sampler", "get_train_dataloader"
# Their classes ask the host, and KTOTrainer, which has a method for the order, hands it over to Trainer's.
LEAVES_IT = ("transformers", "hf_ft_plugins")
HANDS_OVER = ("KTOTrainer",)


def own_order(trainer_class: type) -> tuple[type, tuple[str, ...]] | None:
    """The class, of those that a trainer's is made of, that orders or loads the training rows itself, and by which
    methods; None where all leave it to Trainer.
    """
    for cls in trainer_class.__mro__:
        own = tuple(name for name in (ORDERS, LOADS) if name in vars(cls))
        if own and cls.__module__.partition(".")[0] not in LEAVES_IT and cls.__name__ not in HANDS_OVER:
            return cls, own
    return None


class OwnOrder(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Inputs`."""

    _asked_for_order = False

    def get_train_dataloader(self) -> Any:
        self._asked_for_order = False
        loader = super().get_train_dataloader()
        if not self._asked_for_order:
            self._refuse_own_order(LOADS)
        return loader

    def _ask_for_order(self, hook: str, **arguments: Any) -> Any:
        """What a technique orders the rows by; None where none does."""
        self._asked_for_order = True
        answer = self._ask_owner(hook, **arguments)
        if answer is not None:
            self._refuse_own_order(ORDERS)
        return answer

    def _refuse_own_features(self, error: Exception) -> None:
        """Refuse a class that makes its model's inputs in its own loader, where Trainer could not read the rows."""
        found = own_order(type(self))
        if found is not None and LOADS in found[1]:
            raise PluginError(
                f"{found[0].__name__} makes its own batches ({LOADS}), so that none can be made before the run for the "
                "technique that needs some. Leave out that technique.",
                code="trainer-unsuited",
            ) from error

    def _refuse_own_order(self, method: str) -> None:
        found = own_order(type(self))
        orders = (hooks.owner(self._ft_techniques, hook, type(self)) for hook in ORDER_HOOKS)
        technique = next((one for one in orders if one is not None), None)
        if found is None or method not in found[1] or technique is None:
            return
        raise PluginError(
            f"{technique.name}: it orders the training rows, and {found[0].__name__} has an order of its own "
            f"({', '.join(found[1])}). Leave out {technique.name}, or use a trainer without these methods.",
            code="trainer-unsuited",
            mend=[mends.remove_technique(technique.name)],
        )
