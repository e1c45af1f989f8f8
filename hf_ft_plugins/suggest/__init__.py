"""Which techniques would help a run, from what is measured of it before its first step: `hf-ft suggest`.

A technique decides for itself (`Technique.suggestion`), by facts that are measured once (`facts.py`).
"""

from ..lazy import lazily

_HOMES = {
    "Because": "suggestion",
    "Figure": "suggestion",
    "RunFacts": "facts",
    "Suggestion": "suggestion",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
