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
    from .techniques.text2text import Text2Text

_HOMES = {
    "AdaptiveLR": "techniques.adaptive_lr",
    "AdaptiveLRCallback": "techniques.adaptive_lr",
    "ConflictError": "errors",
    "OptionError": "errors",
    "PluginError": "errors",
    "Technique": "technique",
    "Text2Text": "techniques.text2text",
    "option": "technique",
    "with_plugins": "host.trainer",
}

__all__ = [
    "AdaptiveLR",
    "AdaptiveLRCallback",
    "ConflictError",
    "OptionError",
    "PluginError",
    "Technique",
    "Text2Text",
    "option",
    "with_plugins",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
