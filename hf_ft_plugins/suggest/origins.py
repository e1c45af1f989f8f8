"""Where the models of a run are from: what `from_pretrained` has given, and the weights that it had none for.

Imports nothing heavy: it watches transformers while a script imports it.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class LoadedFrom:
    """Of a model that `from_pretrained` has given: the folder or name, and the weights that it had none for."""

    name: str
    missing: frozenset[str]


# Of every model that `from_pretrained` has given, where it is from.
Loaded = WeakKeyDictionary[Any, LoadedFrom]


def watch_loading(modeling_utils: types.ModuleType, loaded: Loaded) -> None:
    """Let transformers' `from_pretrained` note in `loaded` what it gives."""
    cls = modeling_utils.PreTrainedModel
    load = cls.from_pretrained.__func__

    @functools.wraps(load)
    def from_pretrained(model_class: Any, *args: Any, **kwargs: Any) -> Any:
        name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        asked = kwargs.pop("output_loading_info", False)
        model, info = load(model_class, *args, output_loading_info=True, **kwargs)
        loaded[model] = LoadedFrom(str(name or ""), frozenset(info["missing_keys"]))
        return (model, info) if asked else model

    cls.from_pretrained = classmethod(from_pretrained)
