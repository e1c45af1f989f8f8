"""The one learning-rate arbiter: base schedule times a product of named factors.

Schedulers overwrite what a callback writes into `group["lr"]`, or compound it. So no technique writes `group["lr"]`.
It contributes a named factor to a parameter group's entry `KEY`; the product of all factors is applied while the
optimizer steps, by torch's own step hooks, and taken back right after, so that schedulers never see it.

The factors are saved and restored with the optimizer's state, since they are entries of its parameter groups; the host
takes them up again (`take_up`), so that a resumed run steps with them from its first step on.

Not every optimizer steps with the rate of its groups: a factor is first tried on a small twin (`lr_probe.py`), and
where it would change the log and no weight it is refused. Those that step inside the backward pass are known by name:
layer-wise GaLore and APOLLO have a rate of their own; LOMO takes the one that the Trainer logs, which under the host is
the scaled one, for all its groups. DeepSpeed's optimizers step a torch optimizer that they hold, which factors act on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch

from . import mends
from .errors import PluginError
from .lr_probe import Unequal, Unprobed, deaf_groups

logger = logging.getLogger(__name__)

KEY = "hf_ft_lr_scale"  # not `lr_scale`, which is a number in the groups of timm and MAE
_INSTALLED = "_hf_ft_lr_scale_base"
_PROBED = "_hf_ft_lr_scale_probed"
# Of the classes that no probe can tell: why, and what else to use.
IN_BACKWARD = "steps inside the backward pass with a rate of its own"
ONE_RATE = "steps inside the backward pass with one rate for all weights"
# Of a parameter group; neither are the entries of techniques, whose names begin with `hf_ft_`.
NOT_SETTINGS = ("params", "lr", "initial_lr")
UNFIT = {"LayerWiseDummyOptimizer": IN_BACKWARD}
UNFIT_BY_GROUP = {"Lomo": ONE_RATE, "AdaLomo": ONE_RATE}
ADVICE = {
    "Adafactor": "Give it relative_step=False and lr=...",
    "LayerWiseDummyOptimizer": "Use the variant of optim= without layerwise",
    "LBFGS": "Leave out its line_search_fn",
}


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer under accelerate's, DeepSpeed's and other wrappers."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        if not isinstance(inner, torch.optim.Optimizer):
            # DeepSpeed's is no torch optimizer, and holds one.
            inner = getattr(inner, "optimizer", None)
            if not isinstance(inner, torch.optim.Optimizer):
                break
        optimizer = inner
    return optimizer


def split_groups(optimizer: Any, parameters: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    """Split the parameter groups of an optimizer that has not stepped yet, in place, so that each holds only some of
    `parameters` or none.

    Returns:
        The groups that hold some.
    """
    chosen = {id(parameter) for parameter in parameters}
    inner = innermost(optimizer)
    split: list[dict[str, Any]] = []
    for group in inner.param_groups:
        parts: tuple[list[Any], list[Any]] = ([], [])
        for parameter in group["params"]:
            parts[id(parameter) in chosen].append(parameter)
        split += [{**group, "params": part} for part in parts if part]
    inner.param_groups[:] = split
    return [group for group in split if id(group["params"][0]) in chosen]


def set_scale(optimizer: Any, name: str, factor: float, groups: list[dict[str, Any]] | None = None) -> None:
    """Set the factor `name` of parameter `groups` (all of the optimizer's when None) from the next step on.

    Args:
        optimizer: a torch optimizer, wrapped or not.
        name: who contributes: a technique's name, alone or followed by `/` and anything; a later call with the same
            name replaces the factor.
        factor: finite and not negative; 1.0 changes nothing.

    Raises:
        ValueError: the factor is negative or not finite.
        PluginError: the factor is not 1 and would reach no weight: of this optimizer (`refuse_unfit`), or because
            there are no groups, or none of them holds any.
    """
    if not math.isfinite(factor) or factor < 0:
        raise ValueError(f"lr_scale: the factor {name}={factor!r} must be finite and not negative.")
    inner = innermost(optimizer)
    if factor != 1:
        refuse_unfit(inner, name, groups)
        if not _is_emptied_between_steps(optimizer):
            _refuse_empty(name, factor, inner.param_groups if groups is None else groups)
    for group in inner.param_groups if groups is None else groups:
        # A new mapping: groups that were split from one share theirs.
        group[KEY] = {**group.get(KEY, {}), name: float(factor)}
    _install(inner)


def _is_emptied_between_steps(optimizer: Any) -> bool:
    """Whether it is ZeRO-3's, which gives each group its weights only while it steps them."""
    return hasattr(getattr(optimizer, "optimizer", None), "sub_group_to_group_id")


def _refuse_empty(name: str, factor: float, groups: list[dict[str, Any]]) -> None:
    # A shard of FSDP may hold no numbers here: it counts as a weight, which other ranks have a part of.
    if not any(group["params"] for group in groups):
        held = f"the {len(groups)} parameter groups given hold no weights" if groups else "no parameter group is given"
        raise PluginError(
            f"{_who(name)}: {held}, so that the factor {name}={factor!r} on the learning rate would have no effect. "
            "Pass groups of the optimizer's param_groups that hold weights, or leave out groups= for all of them.",
            code="part-misused",
        )


def _install(optimizer: torch.optim.Optimizer) -> None:
    if not hasattr(optimizer, _INSTALLED):
        setattr(optimizer, _INSTALLED, [])
        optimizer.register_step_pre_hook(_apply)
        optimizer.register_step_post_hook(_take_back)


def refuse_unfit(optimizer: Any, name: str, groups: list[dict[str, Any]] | None = None) -> None:
    """Refuse an optimizer whose weights do not follow the rate of parameter `groups` (None: all of them).

    Each group is tried once. Where that is not possible, a warning says so, and the factor is taken to act.

    Raises:
        PluginError: it names the contributor, the optimizer, the reason and a mend.
    """
    inner, kind = innermost(optimizer), type(innermost(optimizer)).__name__
    if not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise _refusal(name, kind, "is no torch optimizer, so nothing can act on its rate while it steps")
    reason = UNFIT.get(kind) or (UNFIT_BY_GROUP.get(kind) if groups is not None else None)
    if any(group.get("line_search_fn") for group in inner.param_groups):
        reason = "searches for the length of each step (line_search_fn)"
    if reason is not None:
        raise _refusal(name, kind, reason)
    probed: set[tuple[Any, ...]] = vars(inner).setdefault(_PROBED, set())
    chosen = inner.param_groups if groups is None else groups
    apart = len(chosen) < len(inner.param_groups)
    scaled = [
        group
        for group in chosen
        if any(weight.numel() for weight in group["params"]) and (apart, *_settings(group)) not in probed
    ]
    # To be tried, an optimizer has to step with gradients.
    if not scaled or kind in UNFIT_BY_GROUP or getattr(inner, "steps_without_gradients", False):
        return
    try:
        deaf = deaf_groups(inner, scaled)
    except Unequal as reason:
        raise _refusal(name, kind, f"does not take groups of different rates ({reason})") from reason
    except Unprobed as reason:
        logger.warning("%s: whether %s follows a factor on its rate was not tried: %s.", _who(name), kind, reason)
        deaf = []
    if deaf:
        raise _refusal(name, kind, "does not step with the rate of its parameter groups, as it is set up here")
    probed.update((apart, *_settings(group)) for group in scaled)


def _settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """What decides whether a group's weights follow its rate: groups alike in it are tried once."""
    weight = next(one for one in group["params"] if one.numel())
    names = sorted(name for name in group if name not in NOT_SETTINGS and not str(name).startswith("hf_ft_"))
    options = ((name, repr(group[name])) for name in names)
    return (group.get("lr") is None, weight.dtype, weight.device, weight.dim(), *options)


def refuse_when_built(trainer: Any, name: str, *, by_group: bool = False) -> None:
    """`refuse_unfit`, as far as a trainer that has not begun to train knows its optimizer.

    Args:
        by_group: whether parameter groups are to have factors of their own.
    """
    optimizer, recipe = trainer.optimizer, getattr(trainer, "optimizer_cls_and_kwargs", None)
    if optimizer is None and recipe is not None:
        try:
            optimizer = recipe[0]([torch.nn.Parameter(torch.ones(16, 16))], **recipe[1])
        except Exception:  # It wants the model; it will be tried once it is made.
            return
    if optimizer is not None:
        inner = innermost(optimizer)
        refuse_unfit(inner, name, getattr(inner, "param_groups", []) if by_group else None)
        return
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "layerwise" in optim or (by_group and "lomo" in optim):
        raise PluginError(
            f"{_who(name)}: optim={optim!r} {IN_BACKWARD if 'layerwise' in optim else ONE_RATE}, which no factor "
            f"reaches. {'Use the variant without layerwise' if 'layerwise' in optim else 'Use another optim='}.",
            code="training-arguments",
            mend=[
                mends.set_argument("optim", optim.replace("_layerwise", "") if "layerwise" in optim else "adamw_torch")
            ],
        )


def _refusal(name: str, kind: str, reason: str) -> PluginError:
    advice = ADVICE.get(kind, "Use another optimizer, such as torch.optim.AdamW")
    return PluginError(
        f"{_who(name)}: the optimizer {kind} {reason}, so that a factor on the learning rate would stand in the log "
        f"and reach no weight. {advice}, or leave out what changes the rate.",
        code="optimizer-unsuited",
        mend=[mends.remove_technique(_who(name))],
    )


def _who(name: str) -> str:
    return name.partition("/")[0]


def factors_of(optimizer: Any) -> list[dict[str, float] | None]:
    """The named factors of each parameter group; None of one without."""
    return [dict(group[KEY]) if KEY in group else None for group in innermost(optimizer).param_groups]


def put_factors(optimizer: Any, factors: Iterable[dict[str, float] | None]) -> None:
    """Give each parameter group what `factors_of` gave; `take_up` then has them applied."""
    for group, found in zip(innermost(optimizer).param_groups, factors, strict=True):
        if found is not None:
            group[KEY] = dict(found)


def take_up(optimizer: Any, kept: Iterable[str]) -> None:
    """Let the factors that a checkpoint has restored act from the next step on: those named in `kept`, or `KEPT/...`.

    The others, of techniques that this run is without, are removed.
    """
    kept = tuple(kept)
    for group in innermost(optimizer).param_groups:
        for name in set(group.get(KEY, {})):
            if _who(name) not in kept:
                del group[KEY][name]
    if is_scaled(optimizer):
        _install(innermost(optimizer))


def scale_of(group: dict[str, Any]) -> float:
    """The product of a parameter group's factors; 1.0 where it has none."""
    return math.prod(group.get(KEY, {}).values())


def effective_lrs(optimizer: Any) -> list[float]:
    """The rate that each parameter group is stepped with: base schedule times `scale_of`."""
    return [float(group["lr"]) * scale_of(group) for group in innermost(optimizer).param_groups]


def is_scaled(optimizer: Any) -> bool:
    """Whether anybody has contributed a factor to this optimizer."""
    return optimizer is not None and any(KEY in group for group in innermost(optimizer).param_groups)


def _apply(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # A step that raised left its scaled rates behind; they are taken back before the next one scales again.
    _take_back(optimizer)
    for group in optimizer.param_groups:
        scale = scale_of(group)
        if scale != 1.0:
            getattr(optimizer, _INSTALLED).append((group, group["lr"]))
            group["lr"] = group["lr"] * scale


def _take_back(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    bases = getattr(optimizer, _INSTALLED)
    for group, base in bases:
        group["lr"] = base
    bases.clear()
