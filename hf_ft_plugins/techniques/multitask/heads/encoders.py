"""Which models are encoders of several tasks, and how they are made again from their config."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_MAPPING, AutoModel, AutoModelForTextEncoding, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from ....errors import PluginError
from ....models.inputs import main_input_name
from ..tasks import NAME


def encoder_of(config: Any, attention: str | None = None) -> PreTrainedModel:
    """A new encoder of this config; of T5's kind, which has a decoder too, the class that is the encoder alone."""
    alone = not config.is_encoder_decoder and _encoder_class(config) is not None
    auto = AutoModelForTextEncoding if alone else AutoModel
    known = MODEL_MAPPING.get(type(config), None)
    known = known[0] if isinstance(known, tuple) else known
    if attention == "sdpa" and not getattr(known, "_supports_sdpa", True):
        # What transformers took for the whole, since the whole says it can; the encoder chooses its own.
        attention = None
    return auto.from_config(config, attn_implementation=attention)


def _encoder_class(config: Any) -> str | None:
    """The name of the class that is an encoder-decoder's encoder, if there is one."""
    name = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type)
    return name if isinstance(name, str) and name.endswith("EncoderModel") else None


def refuse_encoder(model: Any) -> None:
    """Raise a `PluginError` where a model cannot be the encoder of rows of tokens."""
    called = f"{NAME}: a {type(model).__name__}"
    if main_input_name(model) != "input_ids":
        raise PluginError(
            f"{called} takes {main_input_name(model)}, and rows here are tokens. Use a text encoder: "
            "AutoModel.from_pretrained('answerdotai/ModernBERT-base')."
        )
    if model.config.is_encoder_decoder:
        alone = _encoder_class(model.config)
        advice = (
            f"Pass its encoder as a model: {alone}.from_pretrained(...)."
            if alone
            else "transformers has no class of its encoder alone, by which a saved model could be loaded: use another, "
            "such as T5EncoderModel.from_pretrained(...) or a BERT."
        )
        raise PluginError(f"{called} has an encoder and a decoder, and tasks are heads on one of them. {advice}")
    head = next((name for name in ("classifier", "score", "lm_head", "qa_outputs") if hasattr(model, name)), None)
    if head is not None:
        raise PluginError(
            f"{called} has a head of its own ({head}), and tasks have theirs. Pass the model without it: "
            "model.base_model, or AutoModel.from_pretrained(...)."
        )
