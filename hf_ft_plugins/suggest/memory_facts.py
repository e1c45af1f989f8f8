"""The memory that a training step takes, as it is estimated, and what the run's device has."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..errors import PluginError
from ..memory.estimate import GIB, MemoryEstimate, estimate_memory, refuse_over_budget
from ..models.inputs import bare
from ..shards import holds_pieces
from ..technique import Technique
from .data_facts import DataFacts

# Where a container may hold less memory than the machine has.
LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """Attributes:
    available: bytes that the device has, or the budget that was given.
    device: in words.
    needed: bytes at the peak of a training step, estimated for the widest of the batches that were looked at; None
        where that cannot be told, `why_unknown`.
    activations: bytes of it that are neither weights nor what is kept for each of them.
    needed_with: the same with a technique, by its string form; None where that cannot be told.
    advice: the change that costs least by which it fits, or what else to do; empty where it fits.
    """

    available: int
    device: str
    needed: int | None = None
    activations: int = 0
    why_unknown: str = ""
    advice: str = ""
    needed_with: Callable[[str], int | None] = lambda spec: None

    @property
    def is_short(self) -> bool:
        """More is needed than there is."""
        return self.needed is not None and self.needed > self.available

    def with_(self, forms: tuple[str, ...]) -> tuple[str, int] | None:
        """The first of these forms of a technique by which the run fits, and its bytes."""
        tried = ((form, self.needed_with(form)) for form in forms)
        return next(((form, found) for form, found in tried if found is not None and found <= self.available), None)


def memory_facts(trainer: Any, data: DataFacts, budget: float | None) -> MemoryFacts:
    """Of a trainer whose batches are like `data`; `budget`: GiB that there are, instead of the device's."""
    available, device = _device(trainer.args.device)
    if budget is not None:
        available, device = round(budget * GIB), "the budget that was given"
    why = _why_not(trainer, data)
    if why:
        return MemoryFacts(available=available, device=device, why_unknown=why)
    args = trainer.args
    reference = getattr(trainer, "ref_model", None)
    beside = 0 if reference is None else sum(one.nbytes for one in reference.parameters())
    estimate = functools.partial(_estimate, trainer, data, beside)
    try:
        found = estimate(args)
    except Exception as error:
        # An estimate is of help and not needed: a model that cannot be built without numbers has none.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return MemoryFacts(available=available, device=device, why_unknown=reason)

    @functools.cache
    def needed_with(spec: str) -> int | None:
        lower = _or_none(estimate, args, spec)
        return None if lower is None else lower.peak

    advice = ""
    if found.peak > available:
        try:
            retry: Any = functools.partial(_or_none, estimate)
            refuse_over_budget(found, available, retry, args)
        except PluginError as error:
            advice = str(error)
    return MemoryFacts(
        available=available,
        device=device,
        needed=found.peak,
        activations=found.activations,
        advice=advice,
        needed_with=needed_with,
    )


def _why_not(trainer: Any, data: DataFacts) -> str:
    if not isinstance(trainer.model, torch.nn.Module) or not hasattr(bare(trainer.model), "config"):
        return "the model has no configuration to build it from"
    if hasattr(trainer.model, "peft_config") or getattr(bare(trainer.model), "quantization_method", None):
        return "the script's model has an adapter, or is quantised"
    if holds_pieces(trainer):
        return "the weights lie in pieces on several devices"
    return "" if data.rows else "no batch was looked at"


def _estimate(
    trainer: Any, data: DataFacts, beside: int, args: Any, technique: Technique | None = None
) -> MemoryEstimate:
    model = trainer.model
    config = copy.deepcopy(model.config)
    weights = next(model.parameters())
    config.dtype = weights.dtype
    learns = {name: weight.requires_grad for name, weight in model.named_parameters()}

    def frozen_alike(empty: Any) -> Any:
        for name, weight in empty.named_parameters():
            weight.requires_grad_(learns.get(name, True))
        return empty

    args = copy.copy(args)
    # Of a pair of answers to one prompt, a batch has two rows.
    rows_each = max(1, round(data.rows / trainer.args.train_batch_size))
    args.per_device_train_batch_size *= rows_each
    # Both halves of an encoder-decoder are given rows of one length.
    length = (data.width + data.target_width) // 2 if data.target_width else data.width
    with warnings.catch_warnings():
        # torch's tracker, of modules that a trial before has had; what is alive is counted all the same.
        warnings.filterwarnings("ignore", "Module is None", UserWarning)
        found = estimate_memory(
            config,
            args,
            length=max(1, length),
            techniques=() if technique is None else (technique,),
            change=None if all(learns.values()) else frozen_alike,
            model_class=type(model),
            device="cuda" if weights.device.type == "cuda" else "cpu",
        )
    return MemoryEstimate(**{**found.as_dict(), "weights": found.weights + beside, "peak": found.peak + beside})


def _or_none(estimate: Callable[..., MemoryEstimate], args: Any, spec: str | None) -> MemoryEstimate | None:
    """None where a technique cannot be used, as its package is not installed, or cannot be followed on this model."""
    try:
        return estimate(args, None if spec is None else registry.resolve(spec))
    except Exception:
        # As above.
        return None


def _device(device: Any) -> tuple[int, str]:
    """Bytes of memory, and whose."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.total_memory, f"{device} ({properties.name})"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else ""
    return min(memory, int(limit)) if limit.isdecimal() else memory, "this machine's memory"
