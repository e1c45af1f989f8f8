"""What goes wrong with a technique, said so that the reader knows what to do next."""

from __future__ import annotations


class PluginError(Exception):
    """A technique, its options or its host cannot do what was asked.

    The text names the technique, the option or hook, the value seen and the mend; `hf-ft` prints it without a
    traceback.
    """


class OptionError(PluginError, ValueError):
    """An option has an unknown name, a wrong type or a value out of range."""


class UnknownTechniqueError(PluginError, LookupError):
    """No installed distribution offers a technique of this name."""


class MissingPackageError(PluginError):
    """A package that a technique needs with its options is not installed."""


class ConflictError(PluginError):
    """Two techniques, or a technique and the script, want to decide the same thing."""


class CheckpointError(PluginError, ValueError):
    """A checkpoint is damaged, incomplete, or was made with other techniques.

    A `ValueError` too, as Trainer's own is, for scripts that train afresh where there is nothing to resume.
    """
