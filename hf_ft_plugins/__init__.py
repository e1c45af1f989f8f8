"""Fine-tuning techniques as plug-ins for the Hugging Face Trainer.

Importing this package imports neither torch nor transformers; each public name is loaded at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .errors import ConflictError, OptionError, PluginError
    from .host.trainer import with_plugins
    from .technique import Technique, option
    from .techniques.adaptive_lr import AdaptiveLR, AdaptiveLRCallback
    from .techniques.behavioral import Behavioral
    from .techniques.layer_removal import LayerRemoval
    from .techniques.low_memory import LowMemory
    from .techniques.multitask import MultiTask
    from .techniques.peft import Peft
    from .techniques.sequential import Sequential
    from .techniques.task import Task
    from .techniques.text2text import Text2Text
    from .techniques.transfer import Transfer

_HOMES = {
    "AdaptiveLR": "techniques.adaptive_lr",
    "AdaptiveLRCallback": "techniques.adaptive_lr",
    "Behavioral": "techniques.behavioral",
    "ConflictError": "errors",
    "LayerRemoval": "techniques.layer_removal",
    "LowMemory": "techniques.low_memory",
    "MultiTask": "techniques.multitask",
    "OptionError": "errors",
    "Peft": "techniques.peft",
    "PluginError": "errors",
    "Sequential": "techniques.sequential",
    "Task": "techniques.task",
    "Technique": "technique",
    "Text2Text": "techniques.text2text",
    "Transfer": "techniques.transfer",
    "option": "technique",
    "with_plugins": "host.trainer",
}

__all__ = [
    "AdaptiveLR",
    "AdaptiveLRCallback",
    "Behavioral",
    "ConflictError",
    "LayerRemoval",
    "LowMemory",
    "MultiTask",
    "OptionError",
    "Peft",
    "PluginError",
    "Sequential",
    "Task",
    "Technique",
    "Text2Text",
    "Transfer",
    "option",
    "with_plugins",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
