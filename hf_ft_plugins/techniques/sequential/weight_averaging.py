"""The end of a stage: the mean of the weights that it began with and those that it has come to.

    average_with_start(model, start, 0.5)       # half way between

WiSE-FT (Wortsman et al. 2021, arXiv:2109.01903, equation 1), who average the zero-shot and the fine-tuned model;
`alpha` is the share of the fine-tuned one, as there. It needs stages that one basin holds: after a stage far from the
one before, the mean of two good models can be good at neither. Deviations: floating buffers are averaged as weights are
(running means and variances of batch normalisation are what the layer subtracts and divides by, so they belong to the
weights of their side; the exact ones would need a pass over data); under an adapter its factors are averaged,
so of LoRA the product B @ A is not the mean of the products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...shards import own_part, placed_like
from .settings import NAME


@torch.no_grad()
def average_with_start(model: torch.nn.Module, start: Mapping[str, torch.Tensor], alpha: float) -> None:
    """theta = (1 - alpha) x theta_start + alpha x theta, in place, for what `start` names; the rest stays.

    The arithmetic is in float32 at least, and the result is rounded once. Tied weights are averaged once, whichever
    names of theirs are given. Sharded weights (DTensor) are averaged shard by shard; every rank has to call it.

    Args:
        model: as the trainer has it (unwrapped).
        start: name -> full tensor, on any device, as in `named_parameters` and `named_buffers`.
        alpha: the stage's share: 0 puts the start back, 1 changes nothing.

    Raises:
        PluginError: alpha is out of range, or a name or shape is not the model's; then nothing is changed.
    """
    if not 0 <= alpha <= 1:
        raise PluginError(
            f"{NAME}: wise={alpha}: it is the stage's share, between 0 and 1.",
            code="option-value",
            mend=[mends.remove_option(NAME, "wise")],
        )
    pairs = _pairs(model, start)
    for weight, then in pairs:
        own, then = own_part(weight), own_part(placed_like(then, weight))
        if not own.is_floating_point():
            continue
        precise = torch.promote_types(own.dtype, torch.float32)
        begun = then.to(precise)
        mean = begun * (1 - alpha) + own.to(precise) * alpha
        # The mean of two equal numbers may be rounded to another.
        own.copy_(torch.where(begun == own, own, mean.to(own.dtype)))


def _pairs(model: torch.nn.Module, start: Mapping[str, torch.Tensor]) -> list[tuple[Any, torch.Tensor]]:
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    found: dict[int, tuple[Any, torch.Tensor]] = {}
    for name, then in start.items():
        if name not in named or named[name].shape != then.shape:
            own = list(named[name].shape) if name in named else "no such weight"
            raise PluginError(
                f"{NAME}: wise averages with the weights that the stage began with, of which {name} has "
                f"{list(then.shape)}, and the model {own}. Let the model and its adapter keep their shape from the "
                "stage's start to its end, or leave out wise.",
                code="model-unsuited",
                mend=[mends.remove_option(NAME, "wise")],
            )
        found.setdefault(id(named[name]), (named[name], then))
    return list(found.values())
