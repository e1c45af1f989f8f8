"""Properties of an encoder, from its configuration: its width, whether it is causal, the dropout of a head on it."""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from ..errors import PluginError

WIDTHS = ("hidden_size", "d_model", "dim", "n_embd", "hidden_sizes")


def hidden_size(config: Any, asker: str) -> int:
    """The width of an encoder's outputs; of an encoder for several modalities, that of the text.

    Args:
        asker: the technique, for the error.

    Raises:
        PluginError: the configuration does not say it.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, name, None) for name in WIDTHS)
    # Of a network whose stages differ, the last one's.
    sizes = (size[-1] if isinstance(size, list | tuple) else size for size in sizes)
    size = next((size for size in sizes if size is not None), None)
    if size is not None:
        return int(size)
    raise PluginError(
        f"{asker}: the config of the encoder, a {type(config).__name__}, does not say its width: hidden_size.",
        code="model-unsuited",
    )


def reads_forward(config: Any) -> bool:
    """Whether models of this config are language models that see only what comes before a token."""
    kinds = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
    causal, masked = (type(config) in mapping for mapping in kinds)
    return causal and not masked


def head_dropout(config: Any) -> float:
    """The share of features that a plain model of this encoder drops before its head."""
    for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob", "dropout"):
        share = getattr(config, name, None)
        if isinstance(share, (int, float)):
            return float(share)
    return 0.0
