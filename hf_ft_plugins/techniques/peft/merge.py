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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import PluginError
from .layers import NAME
from .quantization import dequantized, is_quantized

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
    if not hasattr(model, "merge_and_unload"):
        raise PluginError(f"{NAME}: a {model.peft_config[name].peft_type.value} adapter cannot be merged.")
    twin = copy.deepcopy(model)
    if any(is_quantized(module) for module in model.modules()):
        state = {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
        config = copy.deepcopy(model.peft_config[name])
        # Before the adapter is taken off: IA3 refuses even that where a model says that it is quantised.
        _forget_quantisation(twin.get_base_model())
        base = _dense(twin.unload(), _dtype(model.get_base_model()))
        twin = get_peft_model(base, config, adapter_name=name)
        left = set_peft_model_state_dict(twin, state, adapter_name=name).unexpected_keys
        if left:
            raise PluginError(f"{NAME}: the merged model has no place for {left[0]}.")
    try:
        merged = twin.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        kind = model.peft_config[name].peft_type.value
        raise PluginError(f"{NAME}: a {kind} adapter cannot be merged ({error}). Use export=adapter.") from error
    # A trainer's own way through this model (TRL's fused head, autocast) is no part of it.
    merged.__dict__.pop("forward", None)
    return merged.train(False)


def _dense(model: Any, dtype: torch.dtype) -> Any:
    """Turn layers of bitsandbytes back, in place, into what they were made of."""
    from transformers.pytorch_utils import Conv1D

    for path, module in list(model.named_modules()):
        if not is_quantized(module):
            continue
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


def _forget_quantisation(model: Any) -> None:
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer", "is_quantized"):
        model.__dict__.pop(mark, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _dtype(model: Any) -> torch.dtype:
    """That of the weights which are not quantised."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    dtypes = [parameter.dtype for parameter in (embeddings or model).parameters() if parameter.is_floating_point()]
    return dtypes[0] if dtypes else torch.float32


def logits_error(model: Any, merged: Any, batch: Mapping[str, Any]) -> float:
    """How far the merged model's logits are from the trained one's: norm of the difference / norm of the logits.

    Args:
        model: a `PeftModel`.
        merged: what `merge_exactly` made of it.
        batch: of the model's inputs; positions with `attention_mask` 0 do not count.
    """
    trained, found = (_logits(one, batch) for one in (model.get_base_model(), merged))
    mask = batch.get("attention_mask")
    if mask is not None and trained.shape[:2] == mask.shape:
        trained, found = trained[mask.bool()], found[mask.bool()]
    return float((found - trained).norm() / trained.norm())


def _logits(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            # The class's own, past what a trainer has put over this one.
            outputs = type(model).forward(model, **inputs)
    finally:
        model.train(training)
    logits = getattr(outputs, "logits", None)
    return (outputs[0] if logits is None else logits).float()


def verified_merge(model: Any, batch: Mapping[str, Any], folder: Path) -> float:
    """Merge, compare the logits on `batch`, save, reload, and compare every tensor with what was saved.

    Returns:
        `logits_error` on the batch.

    Raises:
        PluginError: the merged model is not what was trained, or the reloaded one is not what was saved; then nothing
            is left in the folder that could be taken for it.
    """
    merged = merge_exactly(model)
    error, dtype = logits_error(model, merged, batch), _dtype(merged)
    int8 = any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters())
    most = max(TOLERANCE.get(dtype, 3e-2), INT8_TOLERANCE if int8 else 0.0)
    if not error <= most:
        raise PluginError(
            f"{NAME}: the merged model's logits differ by {error:.2%} from the trained one's, more than {most:.1%}, so "
            "it is not saved. Keep the adapter: export=adapter."
        )
    merged.save_pretrained(folder)
    again = type(merged).from_pretrained(folder).state_dict()
    for name, tensor in merged.state_dict().items():
        if name not in again or not torch.equal(again[name].to(tensor.device, tensor.dtype), tensor):
            for file in folder.glob("*.safetensors"):
                file.unlink()
            raise PluginError(f"{NAME}: saved and reloaded, the merged model's {name} is another. It has been removed.")
    return error
