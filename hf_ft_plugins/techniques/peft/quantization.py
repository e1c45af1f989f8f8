"""Quantised linear layers of bitsandbytes in a model that is loaded already, in place, on CPU and GPU.

    quantize(model, "nf4")
    model = get_peft_model(model, LoraConfig(...))

`from_pretrained(quantization_config=...)` does so while it loads; here the script's own model is changed, and gets what
Trainer, peft and `save_pretrained` look for in one that was loaded so. The head and the embeddings are kept. NF4 in
blocks of 64 is that of Dettmers et al. 2023 (arXiv:2305.14314); int8 by rows is LLM.int8() (arXiv:2208.07339), here
without its outliers in higher precision (threshold 0), whose gradients would differ from the merged model's.

bitsandbytes 0.50 repacks NF4 weights in the first forward pass in evaluation mode on CPUs with AVX512-BF16. The
gradients of later steps, and merges, then read them as if they were not repacked; here repacking is switched off.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch

from ... import mends
from ...errors import PluginError
from ...models.linear_layers import is_linear, linear_layers_of_blocks
from ...models.unchanged import unchanged_on_error
from ...progress import progress
from .layers import NAME, block_stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


logger = logging.getLogger(__name__)

Kind = Literal["nf4", "int8"]


def quantize(model: PreTrainedModel, kind: Kind, *, compute_dtype: torch.dtype | None = None) -> int:
    """Turn the linear layers of a model's blocks into bitsandbytes', in place; they are frozen.

    Args:
        model: a transformers model without adapters, on its device.
        kind: `nf4` (4.5 bits a weight) or `int8`.
        compute_dtype: of NF4 layers' products; None: that of the first input.

    The layers that are replaced are kept on the CPU until all are turned: if one fails, the model is as it was.

    Returns:
        How many layers were turned.

    Raises:
        PluginError: bitsandbytes is not there or does not know the device, or the model is quantised already.
    """
    bnb = _bitsandbytes()
    if getattr(model, "hf_quantizer", None) is not None:
        raise PluginError(
            f"{NAME}: quant={kind}, and the script's model is quantised already. Leave out quant.",
            code="technique-conflict",
            mend=[mends.remove_option(NAME, "quant")],
        )
    dtype, turned = model.dtype, 0
    with unchanged_on_error(model, storages=False):
        block_stacks(model)
        for path, module in progress(list(linear_layers_of_blocks(model)), f"{NAME}: {kind}", unit="layers"):
            if not isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
                model.set_submodule(path, _quantized(bnb, module, kind, compute_dtype))
                module.weight.data = module.weight.data.to("cpu")
                turned += 1
        _say_that_it_is(model, kind, compute_dtype or dtype)
        never_repack(model)
    return turned


def never_repack(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking NF4 weights of `model` for evaluation on CPUs with AVX512-BF16."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(module: Any) -> bool:
    """Whether it is a linear layer of bitsandbytes."""
    return type(module.weight).__name__ in ("Params4bit", "Int8Params") if hasattr(module, "weight") else False


def kind_of(model: PreTrainedModel) -> Kind | None:
    """How the layers of a model are quantised by bitsandbytes, if they are."""
    for module in model.modules():
        if is_quantized(module):
            return "int8" if type(module.weight).__name__ == "Int8Params" else "nf4"
    return None


def other_quantisation(model: PreTrainedModel) -> str | None:
    """How the model is quantised, if not by bitsandbytes (gptq, awq, fp8, ...): transformers' name of it."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None or kind_of(model) is not None:
        return None
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))


def dequantized(module: Any) -> torch.Tensor:
    """The weight, [outputs, inputs], that a layer of bitsandbytes computes with; of another layer, its own.

    The dtype is that of the weight before it was quantised; int8: float32.
    """
    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        return _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
    if type(weight).__name__ == "Int8Params":
        state = module.state
        # The first forward pass moves both from the weight to the state.
        rows = state.SCB if state.SCB is not None else weight.SCB
        return _bitsandbytes().functional.int8_vectorwise_dequant(weight.data, rows)
    return weight.data


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise PluginError(
            f"{NAME}: quant needs bitsandbytes, which is not installed: pip install bitsandbytes>=0.50.",
            code="package-missing",
            mend=[mends.install("bitsandbytes>=0.50")],
        ) from error
    return bitsandbytes


def _quantized(bnb: Any, module: Any, kind: Kind, compute_dtype: torch.dtype | None) -> Any:
    from transformers.pytorch_utils import Conv1D

    weight = module.weight.data
    # Conv1D holds [inputs, outputs].
    weight = weight.T.contiguous() if isinstance(module, Conv1D) else weight
    outputs, inputs = weight.shape
    with torch.device("meta"):
        if kind == "int8":
            new = bnb.nn.Linear8bitLt(inputs, outputs, module.bias is not None, has_fp16_weights=False, threshold=0.0)
        else:
            new = bnb.nn.Linear4bit(inputs, outputs, module.bias is not None, compute_dtype, False, "nf4")
    if kind == "int8":
        new.weight = bnb.nn.Int8Params(weight.to("cpu"), requires_grad=False, has_fp16_weights=False).to(weight.device)
    else:
        quantised = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=new
        )
        new.weight = quantised.to(weight.device)
    if module.bias is not None:
        new.bias = torch.nn.Parameter(module.bias.data, requires_grad=False)
    new.source_cls = type(module)
    new.train(module.training)
    return new


def _say_that_it_is(model: PreTrainedModel, kind: Kind, compute_dtype: torch.dtype) -> None:
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    settings = (
        {"load_in_8bit": True, "llm_int8_threshold": 0.0}
        if kind == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute_dtype}
    )
    inside = tuple(f"{stack}." for stack in block_stacks(model))
    kept = [path for path, module in model.named_modules() if is_linear(module) and not path.startswith(inside)]
    config = BitsAndBytesConfig(**settings, llm_int8_skip_modules=kept)
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.is_quantized = True
    setattr(model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True)
