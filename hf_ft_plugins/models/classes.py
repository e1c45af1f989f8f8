"""Which class of transformers a model is of, read from its configuration and transformers' own tables."""

from __future__ import annotations

import copy
from typing import Any


def class_of(config: Any, default: Any = None) -> Any:
    """The model class that the configuration names first in `architectures`; `default` (None: `AutoModelForCausalLM`)
    where it names none, or one that transformers does not have.
    """
    import transformers

    (named, *_) = getattr(config, "architectures", None) or [""]
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    # Any other name of the package is no model: `set_seed` would be called.
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else default or transformers.AutoModelForCausalLM


def model_on_meta(config: Any, cls: Any = None) -> Any:
    """A model of this configuration without numbers, on torch's meta device; the configuration stays as it is.

    Args:
        cls: its class; None: what `class_of` reads, or `AutoModel`.
    """
    import torch
    from transformers import AutoModel

    cls = cls or class_of(config, AutoModel)
    make = getattr(cls, "_from_config", None) or getattr(cls, "from_config", None) or cls
    with torch.device("meta"):
        return make(copy.deepcopy(config))


def encoder_class(config: Any) -> str | None:
    """The name of the class that is an encoder-decoder's encoder alone, if there is one: `T5EncoderModel`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

    name = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type)
    return name if isinstance(name, str) and name.endswith("EncoderModel") else None


def encoder_of(config: Any, attention: str | None = None) -> Any:
    """A new encoder of this configuration, without weights to load; of T5's kind, which has a decoder too, the class
    that is the encoder alone.

    Args:
        attention: transformers' `attn_implementation`; None for its own choice.
    """
    from transformers import MODEL_MAPPING, AutoModel, AutoModelForTextEncoding

    alone = not config.is_encoder_decoder and encoder_class(config) is not None
    auto = AutoModelForTextEncoding if alone else AutoModel
    known = MODEL_MAPPING.get(type(config), None)
    known = known[0] if isinstance(known, tuple) else known
    if attention == "sdpa" and not getattr(known, "_supports_sdpa", True):
        # What transformers took for the whole, since the whole says it can; the encoder chooses its own.
        attention = None
    return auto.from_config(config, attn_implementation=attention)
