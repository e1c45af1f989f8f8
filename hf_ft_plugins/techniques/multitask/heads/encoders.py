"""Which models are encoders of several tasks."""

from __future__ import annotations

from typing import Any

from ....errors import PluginError
from ....models.classes import encoder_class
from ....models.inputs import main_input_name
from ..tasks import NAME


def refuse_encoder(model: Any) -> None:
    """Raise a `PluginError` where a model cannot be the encoder of rows of tokens."""
    called = f"{NAME}: a {type(model).__name__}"
    if main_input_name(model) != "input_ids":
        raise PluginError(
            f"{called} takes {main_input_name(model)}, and rows here are tokens. Use a text encoder: "
            "AutoModel.from_pretrained('answerdotai/ModernBERT-base').",
            code="model-unsuited",
        )
    if model.config.is_encoder_decoder:
        alone = encoder_class(model.config)
        advice = (
            f"Pass its encoder as a model: {alone}.from_pretrained(...)."
            if alone
            else "transformers has no class of its encoder alone, by which a saved model could be loaded: use another, "
            "such as T5EncoderModel.from_pretrained(...) or a BERT."
        )
        raise PluginError(
            f"{called} has an encoder and a decoder, and tasks are heads on one of them. {advice}",
            code="model-unsuited",
        )
    head = next((name for name in ("classifier", "score", "lm_head", "qa_outputs") if hasattr(model, name)), None)
    if head is not None:
        raise PluginError(
            f"{called} has a head of its own ({head}), and tasks have theirs. Pass the model without it: "
            "model.base_model, or AutoModel.from_pretrained(...).",
            code="model-unsuited",
        )
