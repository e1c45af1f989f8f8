"""Which layers go: those that are named, or those that the model needs least by a measure on training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedModel

from ... import mends
from ...errors import OptionError, PluginError
from .score import Batches, gives_loss, removal_order
from .stacks import NAME

FRACTION = 0.2
# Methods that need no data.
BLIND = ("last", "random")


@dataclass(frozen=True)
class Choice:
    """How many layers of a stack go, and by what they are chosen.

    Attributes:
        layers: these, numbered from 0; or else `number` of them; or else `fraction` of them.
        method: "perplexity", "block_influence", "angular", "taylor", "last" or "random"; "auto": "perplexity" if the
            model writes text, else "block_influence".
        protect_first, protect_last: layers at either end that stay.
    """

    layers: Sequence[int] = ()
    number: int | None = None
    fraction: float | None = None
    method: str = "auto"
    protect_first: int = 1
    protect_last: int = 1

    @property
    def needs_data(self) -> bool:
        return not self.layers and self.method not in BLIND

    def count(self, depth: int) -> int:
        """How many of `depth` layers go."""
        if self.layers:
            return len(set(self.layers))
        if self.number is not None:
            return self.number
        return max(1, round((FRACTION if self.fraction is None else self.fraction) * depth))

    def order(self, model: PreTrainedModel, batches: Batches, side: str, depth: int) -> tuple[list[int], str]:
        """The layers of a stack of `depth`, the least needed one first, and how they were chosen.

        Args:
            batches: training rows that the model can be called with; none where `needs_data` is False.
            side: of an encoder-decoder, whose layers.

        Raises:
            OptionError: a named layer is protected.
            PluginError: there is no data to choose by, or it gives no loss and the method needs one.
        """
        if self.layers:
            self._refuse_protected(depth)
            return sorted(set(self.layers)), "named"
        method = self.method
        loss = gives_loss(model, batches)
        if method == "auto":
            method = "perplexity" if model.can_generate() and loss else "block_influence"
        if method in ("perplexity", "taylor") and batches and not loss:
            raise PluginError(
                f"{NAME}: method={method} needs batches with labels, and the training data's give this model no "
                "loss. Say method=block_influence, or name the layers: layers=...",
                code="option-combination",
                mend=[mends.set_option(NAME, "method", "block_influence")],
            )
        if not batches and method not in BLIND:
            raise PluginError(
                f"{NAME}: there is no training data to choose by (method={method}). Name the layers, as "
                f"`hf-ft {NAME} curve MODEL` shows them: layers=...",
                code="data-missing",
                mend=[mends.set_option(NAME, "method", "last")],
            )
        order = removal_order(
            model, batches, self.count(depth), method, side, self.protect_first, self.protect_last, seed=0
        )
        return order, method

    def _refuse_protected(self, depth: int) -> None:
        kept = [*range(self.protect_first), *range(depth - self.protect_last, depth)]
        protected = sorted(set(self.layers) & set(kept))
        if protected:
            raise OptionError(
                f"{NAME}: layers={'+'.join(map(str, self.layers))} holds {protected}, which "
                f"protect_first={self.protect_first} and protect_last={self.protect_last} of {depth} layers keep. "
                "Set these lower, or name others.",
                code="option-combination",
                mend=[
                    mends.all_of(mends.set_option(NAME, "protect_first", 0), mends.set_option(NAME, "protect_last", 0))
                ],
            )


def as_first_rank(order: list[int], world_size: int) -> list[Any]:
    """The first rank's order, on every rank: equal scores may differ in the last bits."""
    found = [order]
    if world_size > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]
