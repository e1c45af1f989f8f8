"""What `text2text` must know of a model's class: is it causal, what may a batch hold, what does its decoder begin with.

All of it is asked of the model, not of its config's word: decoder-only classes of encoder-decoders' families (BART's,
Marian's) may carry a config that says `is_encoder_decoder`.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import PluginError
from ...models.inputs import bare, decoder_inputs
from .loss import IGNORED

NAME = "text2text"


def is_causal(model: Any) -> bool:
    """Whether the model has no decoder of its own beside an encoder, so that prompt and target are one sequence."""
    model = bare(model)
    if not getattr(model.config, "is_encoder_decoder", False):
        return True
    takes = inspect.signature(model.forward).parameters
    return "input_ids" in takes and "decoder_input_ids" not in takes


def inputs_of(model: Any) -> frozenset[str]:
    """Names of the tensors that the model's forward pass takes; also its encoder's, where it hands on what it gets."""
    model = bare(model)
    takes = inspect.signature(model.forward).parameters
    names = set(takes)
    if any(one.kind is one.VAR_KEYWORD for one in takes.values()) and hasattr(model, "get_encoder"):
        encoder = model.get_encoder()
        names |= set(inspect.signature(encoder.forward).parameters) if encoder is not None else set()
    return frozenset(names)


@dataclass(frozen=True)
class DecoderStart:
    """Makes `decoder_input_ids` of labels: the model's own way, or one token for all rows.

    Attributes:
        model: the model, or a copy of its class and config without weights; None: `start` begins every row.
        start: begins every row where no model is asked.
        padding: stands for -100 there, and behind what begins a row that has no label.
    """

    model: Any
    start: int | None
    padding: int

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """int64 [rows, tokens], of labels of the same shape, -100 where nothing is scored; they are left as they are.

        Raises:
            PluginError: the model's config lacks a token.
        """
        if self.model is None:
            started = torch.full_like(labels, self.start or 0)
            started[:, 1:] = labels[:, :-1]
            return started.masked_fill(started == IGNORED, self.padding)
        # Of a row without a label mBART has no last token to begin with. Any will do, since nothing is scored.
        none = (labels == IGNORED).all(dim=1)
        asked = labels.clone()
        asked[none, 0] = 1 if self.padding == 0 else 0
        made = _asked(self.model, asked)
        made[none, 1:] = self.padding
        return made


def new_decoder_start(model: Any, start: int | None, padding: int) -> DecoderStart:
    """How the decoder's input of `model` is made of labels.

    Args:
        start: what the script says begins every row; it goes before the model's own way. None: the model is asked.
        padding: the tokenizer's, where the model's config has none.

    Raises:
        PluginError: the model's config lacks the token to begin with.
    """
    if start is not None or model is None:
        return DecoderStart(None, start, padding)
    model = bare(model)
    if _has_a_way(model):
        return DecoderStart(_without_weights(model, padding), None, _padding_of(model, padding))
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise PluginError(_no_start(model), code="model-unsuited")
    return DecoderStart(None, start, padding)


def _has_a_way(model: Any) -> bool:
    """Whether there is a way of the model's own at all."""
    modules = (inspect.getmodule(cls) for cls in type(model).mro())
    return hasattr(model, "prepare_decoder_input_ids_from_labels") or any(
        hasattr(module, "shift_tokens_right") for module in modules
    )


def _padding_of(model: Any, padding: int) -> int:
    own = getattr(model.config, "pad_token_id", None)
    return padding if own is None else own


def _without_weights(model: Any, padding: int) -> Any:
    """The model's class with its config alone, since a collator goes to worker processes; the model where that makes
    something else."""
    cls: Any = type(model)
    shell = cls.__new__(cls)
    torch.nn.Module.__init__(shell)
    shell.config = model.config
    if getattr(model.config, "pad_token_id", None) is None:
        shell.config = copy.copy(model.config)
        shell.config.pad_token_id = padding
    probe = torch.tensor([[5, 6, 7, IGNORED], [IGNORED, 6, 7, 8]])
    try:
        without_weights = _asked(shell, probe.clone())
    except AttributeError:
        return model  # Its way needs more of it than its config.
    if shell.config is not model.config or torch.equal(without_weights, _asked(model, probe.clone())):
        return shell
    return model


def _asked(model: Any, labels: torch.Tensor) -> torch.Tensor:
    try:
        made: torch.Tensor = decoder_inputs(model, labels, NAME)
    except (ValueError, AssertionError, TypeError) as error:
        if getattr(model.config, "decoder_start_token_id", None) is None:
            raise PluginError(_no_start(model), code="model-unsuited") from error
        raise
    return made


def _no_start(model: Any) -> str:
    return (
        f"{NAME}: the config of {type(model).__name__} has no decoder_start_token_id, so the decoder's input cannot be "
        "made from the labels. Set model.config.decoder_start_token_id (the tokenizer's pad_token_id for T5, "
        "bos_token_id for others)."
    )
