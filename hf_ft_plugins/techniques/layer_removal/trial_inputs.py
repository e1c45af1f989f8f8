"""Made-up inputs to run a model on where there is no data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ...errors import PluginError
from ...models.inputs import bare, main_input_name
from .stacks import NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROWS, TOKENS = 2, 12


@torch.no_grad()
def trial_inputs(model: PreTrainedModel, input_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the model's forward pass: token ids from its vocabulary, or noise of a size that it takes.

    Args:
        input_ids: int64 [B, L], taken instead if the model reads ids.

    Raises:
        PluginError: its main input is no ids, and none of the usual sizes is taken.
    """
    name = main_input_name(model)
    if name == "input_ids":
        ids = _ended(model, _drawn(model)) if input_ids is None else input_ids.to(model.device)
        return {name: ids} | _decoder_ids(model, ids)
    tried = None
    for shape in _shapes(model.config, name):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(ROWS, *shape, generator=generator).to(model.device, model.dtype)
        inputs = {name: noise} | _decoder_ids(model, _drawn(model) if _reads_ids(model) else None)
        try:
            forward(model, inputs)
        except Exception as error:
            tried = error
            continue
        return inputs
    raise PluginError(
        f"{NAME}: {type(model).__name__} takes {name}, and of which size could not be found ({tried}). Give some: "
        "verify_model(model, inputs={...}).",
        code="model-unsuited",
    )


def forward(model: PreTrainedModel, inputs: dict[str, Any]) -> Any:
    """The outputs, without a cache, always drawn alike (some models mask at random)."""
    cached = {"use_cache": False} if takes_cache(model) else {}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return model(**inputs, **cached)


def takes_cache(model: PreTrainedModel) -> bool:
    return "use_cache" in inspect.signature(bare(model).forward).parameters


def main_output(outputs: Any) -> torch.Tensor:
    """The logits, or else the first tensor."""
    if "logits" in outputs:
        return outputs["logits"]
    return next(one for one in outputs.to_tuple() if torch.is_tensor(one))


def _reads_ids(model: PreTrainedModel) -> bool:
    return "decoder_input_ids" in inspect.signature(bare(model).forward).parameters


def _decoder_ids(model: PreTrainedModel, ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    # The configuration of an encoder taken from an encoder-decoder may still say that it is the whole.
    return (
        {"decoder_input_ids": ids} if model.config.is_encoder_decoder and ids is not None and _reads_ids(model) else {}
    )


def _drawn(model: PreTrainedModel) -> torch.Tensor:
    config = model.config
    sizes = [getattr(one, "vocab_size", None) for one in (config, config.get_text_config(), *vars(config).values())]
    vocabulary = min(size for size in sizes if isinstance(size, int))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(min(3, vocabulary - 1), vocabulary, (ROWS, TOKENS), generator=generator)
    return drawn.to(model.device)


def _ended(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    # A classifier may read the state at the end-of-sequence token (BART).
    end = getattr(model.config.get_text_config(), "eos_token_id", None)
    if not model.can_generate() and isinstance(end, int) and end < int(ids.max()) + 1:
        ids[:, -1] = end
    return ids


def _shapes(config: Any, name: str) -> Iterator[tuple[int, ...]]:
    """Sizes of one row."""

    def known(*names: str) -> Iterator[Any]:
        for one in (config, *vars(config).values()):
            yield from (
                getattr(one, name) for name in names if isinstance(getattr(one, name, None), (int, list, tuple))
            )

    if name == "pixel_values":
        channels = next(known("num_channels"), 3)
        for size in [*known("image_size"), 224, 64]:
            sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
            yield (channels, *sides)
            yield from ((frames, channels, *sides) for frames in known("num_frames"))
    elif name == "input_values":
        yield from ((4000,), (16000,))
        yield from ((length, bins) for length in known("max_length") for bins in known("num_mel_bins"))
    else:
        sizes = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim", "feature_size")
        for bins in dict.fromkeys([*known(*sizes), 80]):
            for length in dict.fromkeys([*(2 * one for one in known("max_source_positions")), 64, 128, 3000]):
                yield from ((bins, length), (length, bins))
