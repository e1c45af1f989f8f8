"""How much memory a training run will need, before anything is loaded.

The model is built without numbers (torch's `FakeTensorMode`) and trained for two steps without computing anything;
torch's `MemTracker` records which tensors are alive at the peak: parameters, gradients, optimizer state, activations
and temporary tensors, for any architecture, adapter and torch optimizer. A deep model is not run whole but twice, with
two and with three layers (if its layers differ in kind: with enough for every kind, and with one period more). Every
further layer adds the same number of bytes to each of the two phases, forward and backward passes and optimizer step;
the larger phase is the peak.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import mends
from ..errors import OptionError, PluginError
from ..models.classes import class_of
from ..option_text import parse_spec
from ..progress import progress
from ..registry import offers
from ..technique import Technique
from .fewer_layers import kinds_of, stack_of, trial_depths, with_layers
from .trial_run import QUANTISED, Phase, Run, trial_run

FEW, MORE = 2, 3
GIB = 2**30
# Reserved by the allocator, relative to what is alive: a GPU's allocator reserves memory in blocks.
ALLOCATOR = {"cpu": 1.0, "cuda": 1.08}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step on one device.

    Attributes:
        weights: parameters and buffers, frozen ones included.
        gradients, optimizer: of the trained parameters; gradients are 0 if the peak comes before they exist.
        activations: tensors of the forward and backward passes at the peak, logits and temporary tensors included.
        peak: the sum of these, with what the allocator reserves.
        phase: when the peak occurs: "loading", "passes" or "optimizer".
        weights_only: four bytes a parameter, for comparison.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    phase: str
    weights_only: int

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {getattr(self, name) / GIB:.2f}" for name in ("weights", "gradients", "optimizer", "activations")
        )
        return (
            f"{self.peak / GIB:.2f} GiB at the peak, in the {self.phase} ({parts}); "
            f"4 bytes a parameter would be {self.weights_only / GIB:.2f}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate_memory(
    model: Any,
    args: Any,
    *,
    length: int,
    techniques: Iterable[Technique] = (),
    change: Callable[[Any], Any] | None = None,
    quant: str | None = None,
    removed: int = 0,
    model_class: Any = None,
    device: str = "cpu",
) -> MemoryEstimate:
    """The peak of one training step of `model` under `args`, or of loading it, if that is higher.

    Args:
        model: a `PreTrainedConfig`, or a model, whose configuration is taken.
        args: `TrainingArguments`: `per_device_train_batch_size`, `optim`, `gradient_checkpointing`, `bf16`, `fp16`.
        length: tokens of a row (images: the configuration's own size is taken).
        techniques: their effects (`Technique.memory_effects`) are added to the following three arguments.
        change: function that changes the model, which has no numbers, before it trains: `get_peft_model`, freezing.
        quant: "nf4" or "int8": after the whole model is loaded, it is frozen, and linear layers of the blocks are
            stored in this type.
        removed: how many layers of the configuration are removed.
        model_class: the model's class; None: read from the configuration.
        device: "cuda" adds the allocator's 8 %.

    Raises:
        OptionError: `quant` has another value, or the size of the optimizer's state is unknown.
        PluginError: the model's main input is neither `input_ids` nor `pixel_values`.
    """
    import torch

    config = copy.deepcopy(getattr(model, "config", model))
    cls = model_class or (type(model) if isinstance(model, torch.nn.Module) else class_of(config))
    changes, copies, own_optimizer = [change] if change is not None else [], 0, None
    for technique in techniques:
        effects = technique.memory_effects(config)
        quant = effects.get("quant") or quant
        copies += effects.get("copies", 0) + (effects.get("host_copies", 0) if device == "cpu" else 0)
        removed += effects.get("removed", 0)
        changes += [effects["change"]] if "change" in effects else []
        own_optimizer = effects.get("optimizer", own_optimizer)
    if quant is not None and quant not in QUANTISED:
        raise OptionError(f"memory: there is no quantisation {quant!r}; there are {', '.join(QUANTISED)}.")
    stack = stack_of(cls, config)
    whole = stack.depth if stack is not None else None
    if removed and (whole is None or removed >= whole):
        raise OptionError(f"memory: removed={removed} of {whole or 'an unknown number of'} layers; some must be left.")
    depth = whole - removed if whole is not None else None

    def run(layers: int | None) -> Run:
        return trial_run(cls, with_layers(config, stack, layers), args, length, changes, quant, own_optimizer)

    few_and_more = None
    if stack is not None and depth is not None and depth > MORE + 1:
        few_and_more = trial_depths(kinds_of(stack)[:depth], FEW)
    if few_and_more is None or depth is None:
        found = run(depth if removed else None)
    else:
        few, more = few_and_more
        one, other = (run(layers) for layers in progress(few_and_more, "memory: trial steps", unit="models"))
        found = one.extended(other, (depth - few) / (more - few))
    # The whole model is loaded before layers are removed and weights quantised.
    loaded = found.loaded if whole is None or depth is None else found.loaded * whole / depth
    phases = {
        name: replace(phase, weights=phase.weights + copies * loaded)
        for name, phase in (
            ("passes", found.passes),
            ("optimizer", found.step),
            ("loading", Phase(loaded, 0, 0, 0)),
        )
    }
    phase = max(phases, key=lambda name: phases[name].total)
    peak = phases[phase]
    return MemoryEstimate(
        weights=round(peak.weights),
        gradients=round(peak.gradients),
        optimizer=round(peak.optimizer),
        activations=round(peak.activations),
        peak=round(peak.total * ALLOCATOR[device]),
        phase=phase,
        weights_only=round(4 * found.parameters),
    )


def refuse_over_budget(estimate: MemoryEstimate, budget: int, retry: Callable[..., MemoryEstimate], args: Any) -> None:
    """Raise if a run does not fit into `budget`; the error names the least costly change by which it fits.

    Args:
        budget: bytes.
        retry: `retry(args, technique)` returns the estimate with other arguments and, unless `technique` is None, with
            that technique (its string form) added; it returns None if the technique cannot be added.

    Raises:
        PluginError: the peak is above the budget.
    """
    if estimate.peak <= budget:
        return
    lowest, tried = estimate, []
    for advice, changes, technique in progress(_savings(args), "memory: what would make it fit", unit="trials"):
        other = copy.copy(args)
        for name, value in changes.items():
            setattr(other, name, value)
        lower = retry(other, technique)
        if lower is None:
            continue
        if lower.peak <= budget:
            raise PluginError(
                f"memory: the run needs {estimate}, and the budget is {budget / GIB:.2f} GiB. It fits, with "
                f"{lower.peak / GIB:.2f} GiB, by: {advice}.",
                code="memory-over-budget",
                mend=[mends.all_of(*_steps(changes, technique))],
            )
        if lower.peak < lowest.peak:
            lowest, tried = lower, [advice]
    least = f"The least that was found is {lowest.peak / GIB:.2f} GiB, by: {tried[0]}. " if tried else ""
    raise PluginError(
        f"memory: the run needs {estimate}, and the budget is {budget / GIB:.2f} GiB. {least}Train a smaller model, or "
        "shorter rows; a model that is too large to be loaded whole can be loaded quantised by the script.",
        code="memory-over-budget",
    )


def _savings(args: Any) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Advice, changed arguments and an added technique, least costly first: changes that cost only speed, then other
    optimizers, then training fewer parameters.
    """
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice: list[str] = []
    changes: dict[str, Any] = {}
    if size > 1:
        changes |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": size * accumulated}
        advice.append(", ".join(f"{name}={value}" for name, value in changes.items()))
        yield advice[0], changes, None
    if not args.gradient_checkpointing:
        changes = changes | {"gradient_checkpointing": True}
        advice.append("gradient_checkpointing=True")
        yield "; ".join(advice), changes, None
    for optim in ("adamw_8bit", "adafactor"):
        yield "; ".join((*advice, f"optim={optim}")), changes | {"optim": optim}, None
    for technique in _offered_savings():
        yield f"--with {technique}", {}, technique
        if advice:
            yield "; ".join((f"--with {technique}", *advice)), changes, technique


def _steps(changes: dict[str, Any], technique: str | None) -> list[mends.Step]:
    """What `_savings` changes, as steps of a mend."""
    name, options = parse_spec(technique) if technique is not None else ("", {})
    added = [mends.add_technique(name, options)] if name else []
    return [*added, *(mends.set_argument(*change) for change in changes.items())]


def _offered_savings() -> Iterator[str]:
    for offer in offers():
        try:
            yield from offer.load().memory_savings()
        except PluginError:
            # `hf-ft list` shows plug-ins that cannot be imported; here they are left out.
            continue
