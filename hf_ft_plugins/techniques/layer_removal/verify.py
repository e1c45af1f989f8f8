"""Is a model what its configuration says, with a cache and without, and after it was saved and loaded?"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

from ...errors import PluginError
from .stacks import NAME

CLOSE, ROUNDED = 1e-4, 5e-2
# What differs between two builds of one architecture and means nothing.
INCIDENTAL: tuple[str, ...] = (
    "training",
    "gradient_checkpointing",
    "name_or_path",
    "call_super_init",
    "dump_patches",
    "is_quantized",
)
# Trainers set the padding token of a model that has none.
INCIDENTAL += ("padding_idx",)


def check_structure(model: Any) -> None:
    """Compare the model with a new one of its configuration: classes, parameters' shapes, and numbers kept in modules.

    Raises:
        PluginError: they differ; it names the first places.
    """
    config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
    with torch.device("meta"):
        expected = type(model)(config)
    ours, theirs = _described(model), _described(expected)
    odd = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if odd:
        told = "; ".join(
            f"{name} is {ours.get(name, 'not there')}, saved and loaded again {theirs.get(name, 'not there')}"
            for name in odd[:3]
        )
        raise PluginError(
            f"{NAME}: {type(model).__name__} cannot be told by its configuration without these layers, "
            f"{len(odd)} places differ: {told}. Remove others, or none."
        )


def _described(model: Any) -> dict[str, Any]:
    described: dict[str, Any] = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules():
        described[f"{name} (class)"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, (bool, int, float, str)) and not key.startswith("_") and key not in INCIDENTAL:
                described[f"{name}.{key}"] = value
    return described


@torch.no_grad()
def verify_model(model: Any, *, input_ids: torch.Tensor | None = None, new_tokens: int = 8) -> None:
    """Check that the model is whole: its structure, generation with and without a cache, and logits after a reload.

    Args:
        input_ids: int64 [B, L], what to run it on; drawn from the vocabulary where not given.

    Raises:
        PluginError: something differs; it says what, and by how much.
    """
    check_structure(model)
    verify_cache(model, input_ids=input_ids, new_tokens=new_tokens)
    device, training = model.device, model.training
    input_ids = _drawn(model) if input_ids is None else input_ids.to(device)
    model.train(False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder, dtype=model.dtype).to(device)
        again.train(False)
        difference = _difference(_logits(model, input_ids), _logits(again, input_ids))
        if not difference <= CLOSE:
            raise PluginError(
                f"{NAME}: {type(model).__name__} is another after it is saved and loaded: outputs differ "
                f"by {difference:.1g}. Remove other layers, or none."
            )
    finally:
        model.train(training)


@torch.no_grad()
def verify_cache(model: Any, *, input_ids: torch.Tensor | None = None, new_tokens: int = 8) -> None:
    """Check that generation with and without a cache is the same; of a model that does not generate, nothing.

    In lower precision than float32 scores differ by rounding, and soon the tokens: then two are compared, roughly.

    Raises:
        PluginError: they differ; it says by how much.
    """
    if not model.can_generate():
        return
    training = model.training
    model.train(False)
    try:
        _compare_caches(
            model,
            _drawn(model) if input_ids is None else input_ids.to(model.device),
            *((new_tokens, CLOSE) if model.dtype == torch.float32 else (2, ROUNDED)),
        )
    finally:
        model.train(training)


def _drawn(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(min(3, vocabulary - 1), vocabulary, (2, 12), generator=generator).to(model.device)


def _compare_caches(model: Any, input_ids: torch.Tensor, new_tokens: int, close: float) -> None:
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    try:
        with_cache, without = (
            torch.stack(model.generate(input_ids, use_cache=cached, **settings).scores) for cached in (True, False)
        )
    except (IndexError, AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise PluginError(
            f"{NAME}: {type(model).__name__} no longer generates: {type(error).__name__}: {error}. {_mend(model)}"
        ) from error
    difference = _difference(with_cache, without)
    if not difference <= close:
        raise PluginError(
            f"{NAME}: {type(model).__name__} generates otherwise with a cache: scores differ by {difference:.1g}. "
            f"{_mend(model)}"
        )


def _mend(model: Any) -> str:
    # The stock T5 fails with a cache where its decoder is the deeper of the two.
    first = " If the encoder lost some, take as many from the decoder before: side=decoder."
    return "Remove other layers, or none." + (first if model.config.is_encoder_decoder else "")


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest, relative to the largest finite value; infinities that both have are equal."""
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one[finite].float(), other[finite].float()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))


def _logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": input_ids} if model.config.is_encoder_decoder else {}
    outputs = model(input_ids=input_ids, **more)
    return outputs["logits"] if "logits" in outputs else outputs[0]
