"""Two training steps on tensors without numbers, and the memory in use at their peaks, for `estimate_memory`.

The model is built without numbers (torch's `FakeTensorMode`), and torch's `MemTracker` records every tensor that a real
run would allocate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from .. import mends
from ..errors import OptionError, PluginError
from ..host.surface_check import check_surface
from ..models.linear_layers import linear_layers_of_blocks

# Bytes of a weight of bitsandbytes' linear layers, with the scales of blocks of 64 (NF4) or of rows (int8).
QUANTISED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
# Optimizers of other libraries: bytes of state for each trainable parameter, in blocks of 256 with a scale each.
EIGHT_BIT = {"adamw_bnb_8bit": 2 + 8 / 256, "adamw_8bit": 2 + 8 / 256, "lion_8bit": 1 + 4 / 256}
A_LABEL_EACH_TOKEN = ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration", "TokenClassification")


@dataclass(frozen=True)
class OptimizerMemory:
    """What a technique's optimizer takes, where it is not that of `args.optim`.

    Attributes:
        state: `state(model)`: bytes that it keeps for what is trained; None: as `args.optim`.
        temporary: `temporary(parameter)`: bytes while it steps that parameter.
        in_backward: each parameter is stepped, and its gradient freed, as soon as the gradient is complete.
        forward_only: there is no backward pass.
    """

    state: Callable[[Any], float] | None = None
    temporary: Callable[[Any], float] = lambda parameter: 0.0
    in_backward: bool = False
    forward_only: bool = False


@dataclass(frozen=True)
class Phase:
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Run:
    """Bytes in use at the peak of the passes, at that of the optimizer's step, and by the loaded model; and the number
    of parameters.
    """

    passes: Phase
    step: Phase
    loaded: float
    parameters: float

    def extended(self, more: Run, layers: float) -> Run:
        """Extrapolated: this run, plus `layers` times the difference between `more` and this run."""

        def further(one: Phase, two: Phase) -> Phase:
            # The total grows linearly; its division into weights, activations and so on may not.
            parts = {name: value + layers * (asdict(two)[name] - value) for name, value in asdict(one).items()}
            return Phase(**parts)

        return Run(
            further(self.passes, more.passes),
            further(self.step, more.step),
            self.loaded + layers * (more.loaded - self.loaded),
            self.parameters + layers * (more.parameters - self.parameters),
        )


def trial_run(
    cls: Any,
    config: Any,
    args: Any,
    length: int,
    changes: list[Callable[[Any], Any]],
    quant: str | None,
    own_optimizer: OptimizerMemory | None = None,
) -> Run:
    """Build the model without numbers, change it, and train it for two steps under `args` on rows of `length` tokens.

    Raises:
        OptionError: the optimizer's state is unknown.
        PluginError: the model takes an input that is not known here.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    from .grouped_products import GroupedProducts

    check_surface(["memory"])
    with torch.device("meta"):
        dtype = getattr(config, "dtype", None) or torch.float32
        model = cls._from_config(config, dtype=dtype) if hasattr(cls, "_from_config") else cls(config)
        loaded = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        saved, largest = _quantised(model, quant)
        for change in changes:
            model = change(model)
    with FakeTensorMode(), GroupedProducts():
        _on_cpu(model)
        model.train()
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            if hasattr(model, "enable_input_require_grads"):
                model.enable_input_require_grads()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        own = own_optimizer or OptimizerMemory()
        if own.state is None:
            optimizer, hidden = _optimizer(trained, args)
        else:
            optimizer, hidden = torch.optim.SGD(trained, lr=1e-3, foreach=False), own.state(model)
        batch = _batch(model, config, args.per_device_train_batch_size, length)
        peaks = []
        for last in (False, True):
            passes, step = MemTracker(), MemTracker()
            for tracker in (passes, step):
                # MemTracker registers a hook on each parameter's gradient, which fails for frozen parameters.
                tracker._param_to_grad_hook_handles.update({one: (_NoHook(), _NoHook()) for one in frozen})
            passes.track_external(model, optimizer)
            with passes, _precision(args), torch.set_grad_enabled(not own.forward_only):
                outputs = model(**batch)
                loss = outputs["loss"] if "loss" in outputs else outputs[0].float().mean()
                del outputs
                if not own.forward_only:
                    with _stepping_in_backward(trained, optimizer, own):
                        loss.backward()
                del loss
            step.track_external(model, optimizer, *[one.grad for one in trained if one.grad is not None])
            with step:
                optimizer.step()
            optimizer.zero_grad()
            # The first step creates the optimizer's state; the second is like all that follow.
            if last:
                peaks = [
                    _phase(tracker.get_tracker_snapshot("peak"), hidden, saved, dense)
                    for tracker, dense in ((passes, largest), (step, 0.0))
                ]
    return Run(peaks[0], peaks[1], loaded, parameters)


@contextmanager
def _stepping_in_backward(trained: list[Any], optimizer: Any, own: OptimizerMemory) -> Iterator[None]:
    """Gradients are freed as they come, after what stepping them takes was there, where the optimizer does so."""
    import torch

    def step(parameter: Any) -> None:
        groups = optimizer.param_groups
        optimizer.param_groups = [{**groups[0], "params": [parameter]}]
        optimizer.step()
        optimizer.param_groups = groups
        torch.empty(round(own.temporary(parameter)), dtype=torch.uint8)
        parameter.grad = None

    # After the tracker's own hooks, which look at the gradient.
    hooked = trained if own.in_backward else []
    handles = [one.register_post_accumulate_grad_hook(step) for one in hooked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _NoHook:
    def remove(self) -> None:
        """Nothing was put on."""


def _on_cpu(model: Any) -> None:
    """Replace the model's tensors by CPU tensors without numbers; tied parameters stay tied."""
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


def _phase(snapshot: Any, hidden: float, saved: float, dense: float) -> Phase:
    parts: dict[str, float] = {}
    for device in snapshot.values():
        for kind, size in device.items():
            name = str(kind).rsplit(".", 1)[-1].upper()
            parts[name] = parts.get(name, 0.0) + size
    return Phase(
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
    """Freezes the model. Returns how many bytes the linear layers of its blocks save if stored as `quant`, and the size
    of the largest one, which is dequantised for its computation.
    """
    if quant is None:
        return 0.0, 0.0
    saved, largest = 0.0, 0.0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, module in linear_layers_of_blocks(model):
        weight = module.weight
        saved += weight.numel() * (weight.element_size() - QUANTISED[quant])
        largest = max(largest, float(weight.nbytes))
    return saved, largest


def _optimizer(trained: list[Any], args: Any) -> tuple[Any, float]:
    """An optimizer with the state of `args.optim`, and the bytes of state that it does not hold itself."""
    import torch

    name = str(getattr(args.optim, "value", args.optim))
    if name in EIGHT_BIT:
        # The states of small tensors stay in 32 bits; their size is negligible.
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
        f"adagrad, rmsprop, {', '.join(EIGHT_BIT)}.",
        code="training-arguments",
        mend=[mends.set_argument("optim", "adamw_torch")],
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
        raise PluginError(
            f"memory: {type(model).__name__} takes {name}; input_ids and pixel_values are known here.",
            code="model-unsuited",
        )
    cls = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if any(word in cls for word in A_LABEL_EACH_TOKEN):
        batch["labels"] = torch.zeros(size, length, dtype=torch.long)
    elif "Classification" in cls:
        batch["labels"] = torch.zeros(size, dtype=torch.long)
        # Without it the model would read the labels' numbers, and they have none.
        config.problem_type = model.config.problem_type = "single_label_classification"
    return batch
