"""The outputs by which two models are compared, and the inputs to compare them on, found before training.

A batch of the training data is what the loss is computed from, which need not be what the model is called with: the
decoder begins with what the labels make of it, a preference batch holds answers under names of its own, a script's
collator may nest them. So calls are tried, the likeliest first, until the model answers one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...errors import PluginError
from ...models.embeddings import output_embeddings, token_embeddings
from ...models.inputs import bare, decoder_inputs, main_input_name
from .layers import NAME

# How many training rows are compared, and how many tokens a made-up row has.
PROMPTS, TOKENS = 8, 16
LABELS = ("labels", "label", "label_ids")
# Outputs of a model that are no predictions.
INSIDE = ("loss", "past_key_values", "hidden_states", "attentions", "cross_attentions", "mems", "cache_params")


def call_for(model: Any, batch: Any, label_names: tuple[str, ...] = ()) -> dict[str, Any]:
    """What to call the model with, from a collated batch of the training data, or, of token ids, from its vocabulary.

    Args:
        model: a transformers model, under a PEFT wrapper or not; its random state and its mode are left as they are.
        batch: as it was collated, on any device; None: there is none.
        label_names: further names of what the loss alone needs.

    Raises:
        PluginError: the model accepts none of the calls; the text has its error for the likeliest one.
    """
    failures: list[str] = []
    for call in _calls(model, batch, label_names):
        try:
            found = answers(model, call)
        except Exception as error:
            failures.append(f"{', '.join(call)}: {type(error).__name__}: {error}")
            continue
        if found and all(bool(one.isfinite().any()) for one in found):
            return call
        failures.append(f"{', '.join(call)}: no logits, or none that is finite")
    first = f" ({failures[0][:300]})" if failures else ""
    raise PluginError(
        f"{NAME}: no batch of the training data, as it is collated, can be given to a {type(bare(model)).__name__} by "
        f"its names{first}",
        code="data-columns",
    )


def answers(model: Any, call: Mapping[str, Any]) -> list[torch.Tensor]:
    """The model's logits, float32, on the CPU, in evaluation mode; all its outputs if none is named so.

    A model that draws numbers (masks, samples) draws the same in every call.
    """
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in call.items()}
    config = getattr(model, "active_peft_config", None)
    # Prompts, and adapters that need to know where in the text they are, live in the wrapper.
    called = model if getattr(config, "is_prompt_learning", False) else bare(model)
    with _evaluating(model), torch.no_grad():
        # The class's own forward, not one that a trainer has set on the instance.
        outputs = type(called).forward(called, **inputs)
    named = outputs.items() if isinstance(outputs, Mapping) else {"": outputs}.items()
    logits = [(name, value) for name, value in named if "logits" in name]
    parts = logits or [(name, value) for name, value in named if name not in INSIDE and not name.endswith("_loss")]
    found = [tensor for _, value in parts for tensor in _tensors(value)]
    return [tensor.to("cpu", torch.float32) for tensor in found if tensor.is_floating_point()]


def relative_error(wanted: list[torch.Tensor], found: list[torch.Tensor], call: Mapping[str, Any]) -> float:
    """Norm of the difference / norm of `wanted`; positions with `attention_mask` 0 do not count."""
    mask, difference, whole = call.get("attention_mask"), 0.0, 0.0
    for one, other in zip(wanted, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if isinstance(mask, torch.Tensor) and one.shape[:2] == mask.shape:
            one, other = one[mask.cpu().bool()], other[mask.cpu().bool()]
        if not torch.equal(one.isfinite(), other.isfinite()):
            return float("inf")
        one, other = (torch.nan_to_num(part, posinf=0.0, neginf=0.0) for part in (one, other))
        difference += float(torch.linalg.vector_norm(other - one, dtype=torch.float64)) ** 2
        whole += float(torch.linalg.vector_norm(one, dtype=torch.float64)) ** 2
    return (difference / whole) ** 0.5 if whole else float(difference > 0)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _calls(model: Any, batch: Any, label_names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    dtype = next((one.dtype for one in bare(model).parameters() if one.is_floating_point()), torch.float32)
    likely = list(_from_batch(model, batch, {*LABELS, *label_names})) if isinstance(batch, Mapping) else []
    rows = [_first_rows(call, count) for count in (PROMPTS, 1) for call in likely]
    # The whole batch, too: the first dimension may count image patches instead of rows.
    for call in [*rows, *likely, *_from_vocabulary(model, batch)]:
        if call:
            yield call
    if dtype in (torch.float16, torch.bfloat16):
        for call in likely:
            yield {name: _in(value, dtype) for name, value in call.items()}


def _from_batch(model: Any, batch: Mapping[str, Any], labels: set[str]) -> Iterator[dict[str, Any]]:
    parameters = inspect.signature(type(bare(model)).forward).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    taken = {name: value for name, value in batch.items() if name in parameters}
    given = {name: value for name, value in taken.items() if name not in labels}
    if "labels" in batch and "decoder_input_ids" in parameters and "decoder_input_ids" not in given:
        begun = _decoder_ids(model, batch["labels"])
        if begun is not None:
            yield given | {"decoder_input_ids": begun}
    yield given
    yield taken
    if anything:
        yield {name: value for name, value in batch.items() if name not in labels}
        yield dict(batch)


def _decoder_ids(model: Any, labels: Any) -> Any:
    """None where the model cannot make them of these labels, which need not be tokens."""
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    try:
        return decoder_inputs(model, labels, NAME)
    except (PluginError, ValueError, TypeError, AttributeError, RuntimeError):
        return None


def _first_rows(call: dict[str, Any], count: int) -> dict[str, Any]:
    rows = next((len(value) for value in call.values() if isinstance(value, torch.Tensor) and value.dim()), 0)
    return {name: value[:count] if _length(value) == rows else value for name, value in call.items()}


def _length(value: Any) -> int | None:
    is_tensor = isinstance(value, torch.Tensor)
    return len(value) if (is_tensor and value.dim()) or isinstance(value, list) else None


def _from_vocabulary(model: Any, batch: Any) -> Iterator[dict[str, Any]]:
    """Token ids of the batch under any name, then ids that are made up."""
    embeddings = token_embeddings(bare(model))
    if main_input_name(model) != "input_ids" or embeddings is None:
        return
    found = [ids for name, ids in _named(batch) if name.endswith(("input_ids", "_ids", "tokens")) and _are_ids(ids)]
    most = int(embeddings.weight.shape[0])
    output = output_embeddings(bare(model))
    outputs = most if output is None else int(output.weight.shape[0])
    drawn = torch.randint(most, (4, TOKENS), generator=torch.Generator().manual_seed(0))
    for ids in [*(one[:PROMPTS] for one in found if int(one.max()) < most and int(one.min()) >= 0), drawn]:
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield {"input_ids": ids}
        yield {"input_ids": ids, "decoder_input_ids": ids.clamp(max=outputs - 1)}


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(part, str(key))
    else:
        yield name, value


def _are_ids(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.dtype == torch.long and value.numel() > 0


def _in(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
