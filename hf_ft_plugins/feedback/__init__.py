"""From a chatbot's log to preferences: who answered what, what people did about it, and what that teaches.

Nothing here knows of training: neither torch nor the host nor a technique is imported. These names are the only ones
that the rest of the package takes from here, beside the sub-command (`command.py`).
"""

from ..lazy import lazily

_HOMES = {
    "label_of": "adapters.column_names",
    "load_feedback": "preferences",
    "load_good_answers": "preferences",
    "preferences_from_log": "preferences",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
