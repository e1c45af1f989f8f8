"""Of a model of several modalities, what is the text's: its configuration and its module."""

from __future__ import annotations

from typing import Any


def text_config(model: Any) -> Any:
    """The configuration of the model's text part, which is its own where there is one modality; None without one."""
    config = getattr(model, "config", None)
    return config if config is None or not hasattr(config, "get_text_config") else config.get_text_config()


def text_part(model: Any) -> Any:
    """The first module that has the text's configuration; the model itself where no part has one of its own."""
    text = text_config(model)
    if text is None or text is model.config:
        return model
    return next((module for module in model.modules() if getattr(module, "config", None) is text), model)
