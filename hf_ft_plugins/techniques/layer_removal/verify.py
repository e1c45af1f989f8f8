"""Does a model without layers give the same with a cache and without, and after it was saved and loaded?

A check that the whole model fails, too, is only logged. The whole model can be checked while the `Removal` exists, so
keep that until the model is verified.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...errors import PluginError
from ...models.unchanged import evaluating
from .config_agreement import check_structure
from .remove import whole_again
from .stacks import NAME
from .trial_inputs import forward, main_output, trial_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


__all__ = ["check_structure", "verify_cache", "verify_model"]

logger = logging.getLogger(__name__)

CLOSE, ROUNDED = 1e-4, 5e-2


class NoGeneration(PluginError):
    """The model does not generate at all."""

    DEFAULT_CODE = "model-unsuited"


@torch.no_grad()
def verify_model(
    model: PreTrainedModel,
    *,
    input_ids: torch.Tensor | None = None,
    new_tokens: int = 8,
    inputs: dict[str, Any] | None = None,
) -> None:
    """Check that the model is whole: its structure, generation with and without a cache, and logits after a reload.

    Args:
        input_ids: int64 [B, L], what to run it on; drawn from the vocabulary where not given.
        inputs: all that is to be given to it instead, where its main input is no ids.

    Raises:
        PluginError: something differs; it says what, and by how much.
    """
    _check_as_whole(model, check_structure)
    given = inputs or trial_inputs(model, input_ids)
    _check_as_whole(model, lambda one: _compare_caches(one, given, new_tokens))
    _check_as_whole(model, lambda one: _compare_reloaded(one, given))


@torch.no_grad()
def verify_cache(
    model: PreTrainedModel,
    *,
    input_ids: torch.Tensor | None = None,
    new_tokens: int = 8,
    inputs: dict[str, Any] | None = None,
) -> None:
    """Check that generation with and without a cache is the same; of a model that does not generate, nothing.

    In lower precision than float32 scores differ by rounding, and soon the tokens: then two are compared, roughly.

    Raises:
        PluginError: they differ; it says by how much.
    """
    if model.can_generate():
        given = inputs or trial_inputs(model, input_ids)
        _check_as_whole(model, lambda one: _compare_caches(one, given, new_tokens))


def _check_as_whole(model: PreTrainedModel, check: Callable[[Any], None]) -> None:
    with evaluating(model):
        try:
            check(model)
        except PluginError as error:
            with whole_again(model) as there:
                if not there:
                    raise
                try:
                    check(model)
                except PluginError as of_whole:
                    if not isinstance(error, NoGeneration) or isinstance(of_whole, NoGeneration):
                        logger.warning("%s This is of the whole model, so it is no fault of the removal.", of_whole)
                        return
            # The whole model passes.
            raise PluginError(
                str(error).replace("does not generate", "no longer generates", 1), code=error.code
            ) from error


def _compare_caches(model: PreTrainedModel, inputs: dict[str, Any], new_tokens: int) -> None:
    from transformers import GenerationMixin

    if not model.can_generate():
        return
    new_tokens, close = (new_tokens, CLOSE) if model.dtype == torch.float32 else (2, ROUNDED)
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0}
    if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        settings["decoder_start_token_id"] = 0
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_") and name != "labels"}
    # Whisper's own `generate` cuts its output into segments.
    generate = GenerationMixin.generate
    try:
        with_cache, without = (
            torch.stack(generate(model, **given, use_cache=cached, **settings).scores) for cached in (True, False)
        )
    except Exception as error:
        raise NoGeneration(
            f"{NAME}: {type(model).__name__} does not generate: {type(error).__name__}: {error}. {_remedy(model)}"
        ) from error
    difference = _difference(with_cache, without)
    if not difference <= close:
        raise PluginError(
            f"{NAME}: {type(model).__name__} generates otherwise with a cache: scores differ by {difference:.1g}. "
            f"{_remedy(model)}",
            code="model-unsuited",
        )


def _compare_reloaded(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    device: Any = model.device
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            if getattr(model, "hf_quantizer", None) is not None:
                # A quantised model has to be loaded onto its device.
                again = type(model).from_pretrained(folder, dtype=model.dtype, device_map={"": device})
            else:
                again = type(model).from_pretrained(folder, dtype=model.dtype).to(device)
    except Exception as error:
        raise PluginError(
            f"{NAME}: {type(model).__name__} cannot be saved and loaded: {type(error).__name__}: {error}. "
            "Remove other layers, or none.",
            code="model-unsuited",
        ) from error
    again.eval()
    difference = _difference(main_output(forward(model, inputs)), main_output(forward(again, inputs)))
    if not difference <= CLOSE:
        raise PluginError(
            f"{NAME}: {type(model).__name__} is another after it is saved and loaded: outputs differ "
            f"by {difference:.1g}. Remove other layers, or none.",
            code="model-unsuited",
        )


def _remedy(model: PreTrainedModel) -> str:
    # Stock T5 fails with a cache if its decoder is deeper than its encoder.
    first = " If the encoder lost some, take as many from the decoder before: side=decoder."
    return "Remove other layers, or none." + (first if model.config.is_encoder_decoder else "")


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest, relative to the largest finite value; infinities that both have are equal."""
    finite = one.isfinite() & other.isfinite()
    if not torch.equal(one.isfinite(), other.isfinite()):
        return float("inf")
    one, other = one[finite].float(), other[finite].float()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))
