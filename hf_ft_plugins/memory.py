"""How much memory a training run will need, before anything is loaded.

The model is built without numbers (torch's `FakeTensorMode`), trains two steps without computing anything, and torch's
`MemTracker` says what was alive at the peak: parameters, gradients, optimizer, activations and temporary tensors alike,
for any architecture, adapter and torch optimizer. Models with many layers are run with two and with three layers: each
layer more adds the same to either phase, the passes and the optimizer's step, and the larger one is the peak.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import OptionError, PluginError
from .technique import Technique

FEW, MORE = 2, 3
GIB = 2**30
# What the allocator of a GPU holds beyond what is alive, for its blocks' sake.
ALLOCATOR = {"cpu": 1.0, "cuda": 1.08}
# Bytes of a weight of bitsandbytes' linear layers, with the scales of blocks of 64 (NF4) or of rows (int8).
QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
# Sizes that torch.optim cannot show: bytes of state for each trainable parameter, in blocks of 256 with a scale each.
EIGHT_BIT = {"adamw_bnb_8bit": 2 + 8 / 256, "adamw_8bit": 2 + 8 / 256, "lion_8bit": 1 + 4 / 256}
A_LABEL_EACH_TOKEN = ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration", "TokenClassification")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a training step on one device.

    Attributes:
        weights: parameters and buffers, frozen ones included.
        gradients, optimizer: of what is trained; gradients are 0 where the peak comes before they are there.
        activations: what the passes hold at the peak, logits and temporary tensors included.
        peak: all of these together, with the allocator's share.
        phase: "loading", "passes" or "optimizer": when the peak is.
        weights_only: four bytes a parameter, the rule of thumb.
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
    """The peak of one training step of `model` under `args`, or of what comes before it.

    Args:
        model: a `PreTrainedConfig`, or a model, whose configuration is taken.
        args: `TrainingArguments`: `per_device_train_batch_size`, `optim`, `gradient_checkpointing`, `bf16`, `fp16`.
        length: tokens of a row (images: the configuration's own size is taken).
        techniques: what they change of the following three is added (`Technique.memory_effects`).
        change: what is done to the model before it trains, on a model without numbers: `get_peft_model`, freezing.
        quant: "nf4" or "int8": linear layers of the blocks are held so, and frozen, after the model was loaded whole.
        removed: layers of the configuration that the model is without.
        model_class: the model's class, where it cannot be told from the configuration.
        device: "cuda" adds the allocator's 8 %.

    Raises:
        OptionError: `quant` is another, or the optimizer's state is unknown.
        PluginError: the model takes an input that is not known here.
    """
    import torch

    config = copy.deepcopy(getattr(model, "config", model))
    cls = model_class or (type(model) if isinstance(model, torch.nn.Module) else _class_of(config))
    changes, copies = [change] if change is not None else [], 0
    for technique in techniques:
        effects = technique.memory_effects(config)
        quant = effects.get("quant") or quant
        copies += effects.get("copies", 0) + (effects.get("host_copies", 0) if device == "cpu" else 0)
        removed += effects.get("removed", 0)
        changes += [effects["change"]] if "change" in effects else []
    if quant is not None and quant not in QUANTISED:
        raise OptionError(f"memory: there is no quantisation {quant!r}; there are {', '.join(QUANTISED)}.")
    whole = _depth(config)
    if removed and (whole is None or removed >= whole):
        raise OptionError(f"memory: removed={removed} of {whole or 'an unknown number of'} layers; some must be left.")
    depth = whole - removed if whole is not None else None

    def run(layers: int | None) -> _Run:
        return _run(cls, _with_layers(config, layers), args, length, changes, quant)

    if depth is None or depth <= MORE + 1:
        found = run(depth if removed else None)
    else:
        few, more = run(FEW), run(MORE)
        found = few.extended(more, depth - FEW)
    # Layers are removed and weights quantised when all of them are there.
    loaded = found.loaded if whole is None or depth is None else found.loaded * whole / depth
    phases = {
        name: replace(phase, weights=phase.weights + copies * loaded)
        for name, phase in (
            ("passes", found.passes),
            ("optimizer", found.step),
            ("loading", _Phase(loaded, 0, 0, 0)),
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
    """Raise if a run does not fit, naming the change that costs least and makes it fit.

    Args:
        budget: bytes.
        retry: `retry(args, technique)` is the estimate with other arguments and, unless that is None, a technique more,
            told as a string; None if such a technique cannot be added.

    Raises:
        PluginError: the peak is above the budget.
    """
    if estimate.peak <= budget:
        return
    lowest, tried = estimate, []
    for said, changes, technique in _mends(args):
        other = copy.copy(args)
        for name, value in changes.items():
            setattr(other, name, value)
        lower = retry(other, technique)
        if lower is None:
            continue
        if lower.peak <= budget:
            raise PluginError(
                f"memory: the run needs {estimate}, and the budget is {budget / GIB:.2f} GiB. It fits, with "
                f"{lower.peak / GIB:.2f} GiB, by: {said}."
            )
        if lower.peak < lowest.peak:
            lowest, tried = lower, [said]
    least = f"The least that was found is {lowest.peak / GIB:.2f} GiB, by: {tried[0]}. " if tried else ""
    raise PluginError(
        f"memory: the run needs {estimate}, and the budget is {budget / GIB:.2f} GiB. {least}Train a smaller model, or "
        "shorter rows; a model that is too large to be loaded whole can be loaded quantised by the script."
    )


def _mends(args: Any) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """What one may change, cheapest first: nothing but speed, then the optimizer, then what is trained."""
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    said: list[str] = []
    changes: dict[str, Any] = {}
    if size > 1:
        changes |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": size * accumulated}
        said.append(", ".join(f"{name}={value}" for name, value in changes.items()))
        yield said[0], changes, None
    if not args.gradient_checkpointing:
        changes = changes | {"gradient_checkpointing": True}
        said.append("gradient_checkpointing=True")
        yield "; ".join(said), changes, None
    for optim in ("adamw_8bit", "adafactor"):
        yield "; ".join((*said, f"optim={optim}")), changes | {"optim": optim}, None
    for technique in ("peft", "peft:quant=int8", "peft:quant=nf4"):
        yield f"--with {technique}", {}, technique
        if said:
            yield "; ".join((f"--with {technique}", *said)), changes, technique


@dataclass(frozen=True)
class _Phase:
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class _Run:
    """Bytes alive at the peaks of the passes and of the optimizer's step, and of the model as it is loaded; how many
    parameters.
    """

    passes: _Phase
    step: _Phase
    loaded: float
    parameters: float

    def extended(self, more: _Run, layers: int) -> _Run:
        """With `layers` more layers than this has; `more` has one more."""

        def further(one: _Phase, two: _Phase) -> _Phase:
            # The total is what grows evenly; what it consists of may move between the parts.
            parts = {name: value + layers * (asdict(two)[name] - value) for name, value in asdict(one).items()}
            return _Phase(**parts)

        return _Run(
            further(self.passes, more.passes),
            further(self.step, more.step),
            self.loaded + layers * (more.loaded - self.loaded),
            self.parameters + layers * (more.parameters - self.parameters),
        )


def _run(cls: Any, config: Any, args: Any, length: int, changes: list[Callable[[Any], Any]], quant: str | None) -> _Run:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with torch.device("meta"):
        dtype = getattr(config, "dtype", None) or torch.float32
        model = cls._from_config(config, dtype=dtype) if hasattr(cls, "_from_config") else cls(config)
        loaded = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        saved, largest = _quantised(model, quant)
        for change in changes:
            model = change(model)
    with FakeTensorMode():
        _on_cpu(model)
        model.train()
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            if hasattr(model, "enable_input_require_grads"):
                model.enable_input_require_grads()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        optimizer, hidden = _optimizer(trained, args)
        batch = _batch(model, config, args.per_device_train_batch_size, length)
        peaks = []
        for last in (False, True):
            passes, step = MemTracker(), MemTracker()
            for tracker in (passes, step):
                # It would hook the gradients of all parameters, and those of frozen ones cannot be hooked.
                tracker._param_to_grad_hook_handles.update({one: (_NoHook(), _NoHook()) for one in frozen})
            passes.track_external(model, optimizer)
            with passes, _precision(args):
                outputs = model(**batch)
                loss = outputs["loss"] if "loss" in outputs else outputs[0].float().mean()
                del outputs
                loss.backward()
                del loss
            step.track_external(model, optimizer, *[one.grad for one in trained if one.grad is not None])
            with step:
                optimizer.step()
            optimizer.zero_grad()
            # The first step makes the optimizer's state; the second is as all others are.
            if last:
                peaks = [
                    _phase(tracker.get_tracker_snapshot("peak"), hidden, saved, dense)
                    for tracker, dense in ((passes, largest), (step, 0.0))
                ]
    return _Run(peaks[0], peaks[1], loaded, parameters)


class _NoHook:
    def remove(self) -> None:
        """Nothing was put on."""


def _on_cpu(model: Any) -> None:
    """Tensors of the CPU, without numbers, instead of the model's own; what is tied stays tied."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    known = isinstance(tensor, torch.nn.Parameter)
                    made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if known else empty
                tensors[name] = made[id(tensor)]


def _phase(snapshot: Any, hidden: float, saved: float, dense: float) -> _Phase:
    parts: dict[str, float] = {}
    for device in snapshot.values():
        for kind, size in device.items():
            name = str(kind).rsplit(".", 1)[-1].upper()
            parts[name] = parts.get(name, 0.0) + size
    return _Phase(
        weights=parts["PARAM"] + parts["BUFFER"] - saved,
        gradients=parts["GRAD"],
        optimizer=parts["OPT"] + hidden,
        activations=parts["ACT"] + parts["TEMP"] + parts["OTH"] + dense,
    )


@contextmanager
def _precision(args: Any) -> Iterator[None]:
    import torch

    if args.bf16 or args.fp16:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    else:
        yield


def _quantised(model: Any, quant: str | None) -> tuple[float, float]:
    """Freezes the linear layers of the blocks; how many bytes less they take as `quant`, and the largest's, which is
    made dense to compute with.
    """
    import torch

    if quant is None:
        return 0.0, 0.0
    saved, largest = 0.0, 0.0
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weight = module.weight
            saved += weight.numel() * (weight.element_size() - QUANTISED[quant])
            largest = max(largest, float(weight.nbytes))
    return saved, largest


def _optimizer(trained: list[Any], args: Any) -> tuple[Any, float]:
    """An optimizer whose states torch shows, and the bytes of those that it does not."""
    import torch

    name = str(getattr(args.optim, "value", args.optim))
    if name in EIGHT_BIT:
        # Small tensors keep 32 bits; they are small.
        return torch.optim.SGD(trained, lr=1e-3), EIGHT_BIT[name] * sum(one.numel() for one in trained)
    if name in ("adamw_torch", "adamw_torch_fused"):
        fused = name.endswith("fused")
        return torch.optim.AdamW(trained, lr=1e-3, fused=fused, foreach=None if fused else False), 0.0
    if name == "sgd":
        return torch.optim.SGD(trained, lr=1e-3, foreach=False), 0.0
    if name == "adafactor":
        states = sum(one.element_size() * (sum(one.shape[-2:]) if one.dim() > 1 else one.numel()) for one in trained)
        return torch.optim.SGD(trained, lr=1e-3), float(states)
    if name == "adagrad":
        return torch.optim.Adagrad(trained, lr=1e-3, foreach=False), 0.0
    if name == "rmsprop":
        return torch.optim.RMSprop(trained, lr=1e-3, foreach=False), 0.0
    raise OptionError(
        f"memory: the size of optim={name!r} is not known; known are adamw_torch, adamw_torch_fused, sgd, adafactor, "
        f"adagrad, rmsprop, {', '.join(EIGHT_BIT)}."
    )


def _batch(model: Any, config: Any, size: int, length: int) -> dict[str, Any]:
    import torch

    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        side = config.image_size if isinstance(config.image_size, (tuple, list)) else [config.image_size] * 2
        batch = {name: torch.zeros(size, config.num_channels, *side)}
    elif name == "input_ids":
        batch = {name: torch.zeros(size, length, dtype=torch.long)}
    else:
        raise PluginError(f"memory: {type(model).__name__} takes {name}; input_ids and pixel_values are known here.")
    cls = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if any(word in cls for word in A_LABEL_EACH_TOKEN):
        batch["labels"] = torch.zeros(size, length, dtype=torch.long)
    elif "Classification" in cls:
        batch["labels"] = torch.zeros(size, dtype=torch.long)
        # Otherwise told from the labels' numbers, which there are none of.
        config.problem_type = model.config.problem_type = "single_label_classification"
    return batch


def _class_of(config: Any) -> Any:
    import transformers

    return getattr(transformers, (config.architectures or [""])[0], None) or transformers.AutoModelForCausalLM


def _depth(config: Any) -> int | None:
    names = [name for name in ("num_hidden_layers", "num_layers", "n_layer") if hasattr(config, name)]
    # Of an encoder and a decoder, each has its own number: those are run whole.
    if not names or getattr(config, "is_encoder_decoder", False):
        return None
    return int(getattr(config, names[0]))


def _with_layers(config: Any, layers: int | None) -> Any:
    config = copy.deepcopy(config)
    if layers is None:
        return config
    depth = _depth(config)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth and name != "architectures":
            # Lists with one entry a layer; others of that length only change what is printed.
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers
    return config
