"""The way out: a trained adapter as a plain model, merged into the weights it was trained on, and verified.

    merged = merge_exactly(trainer.model)
    print(logits_error(trainer.model, merged, batch))
    merged.save_pretrained("merged")

peft merges into a quantised layer by quantising the sum once more, which loses a part of the adapter, and into the
original, unquantised base, whose weights the adapter has never seen. Here the sum is of what the adapter was trained
with: the quantised base, dequantised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...models.embeddings import input_embeddings
from ...progress import progress
from .layers import NAME
from .model_outputs import answers, relative_error
from .quantization import dequantized, is_quantized
from .tied_weights import adapters_are_tied, copied, joined, other_places, separated, tensors_that_differ
from .whole_folders import quiet, written_whole

# Relative difference of the logits, above which a merged model is not what was trained: rounding of its dtype, and, of
# int8, of the activations, which the merged model does not round.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
INT8_TOLERANCE = 5e-2


def merge_exactly(model: Any) -> Any:
    """The trained model as one without adapters, in the dtype of its weights; `model` is left as it is.

    Args:
        model: a `PeftModel` with one active adapter of a method that can be merged, its base quantised or not. Beside
            it there must be room for the merged model on its device.

    Returns:
        A model of the base's class; its weights are the base's, dequantised, and the adapter's change of them.

    Raises:
        PluginError: the method cannot be merged.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    name = model.active_adapters[0]
    config = model.peft_config[name]
    if not hasattr(model, "merge_and_unload"):
        raise PluginError(f"{NAME}: a {config.peft_type.value} adapter cannot be merged.", code="model-unsuited")
    twin = copied(model)
    if any(is_quantized(module) for module in model.modules()):
        state = {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
        # Before the adapter is taken off: IA3 refuses even that where a model says that it is quantised.
        forget_quantisation(twin.get_base_model())
        base = dense(twin.unload(), dtype_of(model.get_base_model()))
        twin = get_peft_model(base, copy.deepcopy(config), adapter_name=name)
        left = set_peft_model_state_dict(twin, state, adapter_name=name).unexpected_keys
        # Rows of tokens of an output layer that is tied are those of the embeddings.
        left = [key for key in left if ".token_adapter." not in key]
        if left:
            raise PluginError(f"{NAME}: the merged model has no place for {left[0]}.", code="quality-gate")
    places, shared = other_places(twin.get_base_model()), separated(twin.get_base_model())
    try:
        merged = twin.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        kind = config.peft_type.value
        raise PluginError(
            f"{NAME}: a {kind} adapter cannot be merged ({error}). Use export=adapter.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "export", "adapter")],
        ) from error
    for place, path in places.items():
        merged.set_submodule(place, merged.get_submodule(path))
    joined(merged, shared, adapters_are_tied(config))
    # A trainer's own way through this model (TRL's fused head, autocast) is no part of it.
    merged.__dict__.pop("forward", None)
    return merged.eval()


def dense(model: Any, dtype: torch.dtype) -> Any:
    """Turn layers of bitsandbytes back, in place, into what they were made of."""
    from transformers.pytorch_utils import Conv1D

    quantised = [(path, module) for path, module in model.named_modules() if is_quantized(module)]
    for path, module in progress(quantised, f"{NAME}: dequantising", unit="layers"):
        weight, bias = dequantized(module).to(dtype), module.bias
        outputs, inputs = weight.shape
        transposed = getattr(module, "source_cls", None) is Conv1D
        with torch.device("meta"):
            new = Conv1D(outputs, inputs) if transposed else torch.nn.Linear(inputs, outputs, bias=bias is not None)
        new.weight = torch.nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
        if bias is not None:
            new.bias = torch.nn.Parameter(bias.data.to(dtype), requires_grad=False)
        model.set_submodule(path, new)
    return model


def forget_quantisation(model: Any) -> None:
    """Take off, in place, what says that a model is quantised, when its layers no longer are."""
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer", "is_quantized"):
        model.__dict__.pop(mark, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def dtype_of(model: Any) -> torch.dtype:
    """The dtype of the weights which are not quantised."""
    embeddings = input_embeddings(model)
    dtypes = [parameter.dtype for parameter in (embeddings or model).parameters() if parameter.is_floating_point()]
    return dtypes[0] if dtypes else torch.float32


def logits_error(model: Any, merged: Any, batch: Mapping[str, Any]) -> float:
    """How far the merged model's logits are from the trained one's: norm of the difference / norm of the logits.

    Args:
        model: a `PeftModel`.
        merged: what `merge_exactly` made of it.
        batch: of the model's inputs; positions with `attention_mask` 0 do not count.
    """
    return relative_error(answers(model.get_base_model(), batch), answers(merged, batch), batch)


def verified_merge(model: Any, batch: Mapping[str, Any], folder: Path, processing_class: Any = None) -> float:
    """Merge, compare the logits on `batch`, save, reload, and compare every tensor with what was saved.

    Args:
        processing_class: a tokenizer or processor to save with it.

    Returns:
        `logits_error` on the batch.

    Raises:
        PluginError: the merged model is not what was trained, or the reloaded one is not what was saved; then nothing
            is left in the folder that could be taken for it.
    """
    steps = _verified_merge(model, batch, folder, processing_class)
    *_, error = progress(steps, f"{NAME}: merging, comparing, saving, reading back", total=4, unit="steps")
    return error


def _verified_merge(model: Any, batch: Mapping[str, Any], folder: Path, processing_class: Any) -> Iterator[float]:
    """After each of four steps the logits' error as far as it is known."""
    merged = merge_exactly(model)
    yield math.nan
    error, most = logits_error(model, merged, batch), tolerance(model)
    if not error <= most:
        raise PluginError(
            f"{NAME}: the merged model's logits differ by {error:.2%} from the trained one's, more than {most:.1%}, so "
            "it is not saved. Keep the adapter: export=adapter.",
            code="quality-gate",
            mend=[mends.set_option(NAME, "export", "adapter")],
        )
    yield error
    with written_whole(folder) as scratch:
        merged.save_pretrained(scratch)
        yield error
        with quiet():
            again = type(merged).from_pretrained(scratch).state_dict()
        changed = tensors_that_differ(again, merged.state_dict())
        if changed:
            raise PluginError(
                f"{NAME}: saved and reloaded, the merged model's {changed[0]} is another, so it is not kept. Keep the "
                "adapter: export=adapter.",
                code="quality-gate",
                mend=[mends.set_option(NAME, "export", "adapter")],
            )
        if processing_class is not None:
            processing_class.save_pretrained(scratch)
    yield error


def tolerance(model: Any) -> float:
    """Relative difference of the logits, above which a model is not what was trained."""
    int8 = any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters())
    return max(TOLERANCE.get(dtype_of(model), 3e-2), INT8_TOLERANCE if int8 else 0.0)
