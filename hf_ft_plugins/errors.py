"""What goes wrong with a technique, said so that the reader knows what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class PluginError(Exception):
    """A technique, its options or its host cannot do what was asked.

    The text names the technique, the option or hook, the value seen and the mend; `hf-ft` prints it without a
    traceback.

    Args:
        text: one paragraph.
        code: the kind of fault, one of `error_codes.yaml`; None: the class's own.
        mend: steps of `mends.py`, any of which mends it, the best first; none where only a human can decide.
    """

    DEFAULT_CODE: ClassVar[str] = "unclassified"

    def __init__(self, text: str = "", *, code: str | None = None, mend: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__(text)
        self.code = code or self.DEFAULT_CODE
        self.mend = list(mend)


class OptionError(PluginError, ValueError):
    """An option has an unknown name, a wrong type or a value out of range."""

    DEFAULT_CODE = "option-value"


class UnknownTechniqueError(PluginError, LookupError):
    """No installed distribution offers a technique of this name."""

    DEFAULT_CODE = "technique-unknown"


class MissingPackageError(PluginError):
    """A package that a technique needs with its options is not installed."""

    DEFAULT_CODE = "package-missing"


class ConflictError(PluginError):
    """Two techniques, or a technique and the script, want to decide the same thing."""

    DEFAULT_CODE = "technique-conflict"


class CheckpointError(PluginError, ValueError):
    """A checkpoint is damaged, incomplete, or was made with other techniques.

    A `ValueError` too, as Trainer's own is, for scripts that train afresh where there is nothing to resume.
    """

    DEFAULT_CODE = "checkpoint-damaged"
