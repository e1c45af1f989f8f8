"""From a chatbot's log to preferences: who answered what, what people did about it, and what that teaches.

Nothing here knows of training: neither torch nor the host is imported. `preferences_from_log` is the way in.
"""

from ..lazy import lazily

_HOMES = {
    "load_feedback": "preferences",
    "load_good_answers": "preferences",
    "preferences_from_log": "preferences",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
