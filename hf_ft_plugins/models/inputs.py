"""What a model takes: its main input, and what its decoder begins with."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from ..errors import PluginError


def bare(model: Any) -> Any:
    """The model under a PEFT wrapper, if there is one."""
    # `peft_config` stands on the model under the wrapper, too, and on one with an adapter and no wrapper.
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def main_input_name(model: Any) -> str:
    """What the model calls its main input: `input_ids`, `input_features`, `pixel_values`, ..."""
    name = getattr(bare(model), "main_input_name", "input_ids")
    return name if isinstance(name, str) else next(iter(name))


def decoder_inputs(model: Any, labels: Any, asker: str) -> Any:
    """The `decoder_input_ids` that the model itself makes of labels in its forward pass: it is asked, since what stands
    first differs (a token of its own, of mBART and PLBart the last one of each row).

    Args:
        labels: int64 [rows, tokens], -100 where nothing is scored; left as it is.
        asker: the technique, for the error.

    Raises:
        PluginError: the model tells no way.
    """
    model = bare(model)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        # A copy: FSMT's way replaces the labels' -100 in place.
        return model.prepare_decoder_input_ids_from_labels(labels=labels.clone())
    # Whisper, M2M100 and others have the function that their forward pass calls beside them only.
    modules = (sys.modules.get(cls.__module__) for cls in type(model).mro())
    shift = next(filter(None, (getattr(module, "shift_tokens_right", None) for module in modules)), None)
    if shift is None:
        raise PluginError(
            f"{asker}: a {type(model).__name__} tells no way to make decoder_input_ids of labels. Have the script's "
            "collator give decoder_input_ids.",
            code="model-unsuited",
        )
    config = model.config
    known = {"pad_token_id": config.pad_token_id, "decoder_start_token_id": config.decoder_start_token_id}
    wanted = inspect.signature(shift).parameters
    return shift(labels.clone(), **{name: value for name, value in known.items() if name in wanted})
