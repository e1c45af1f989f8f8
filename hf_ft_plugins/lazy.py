"""Public names that are imported at their first use: `hf-ft list` reads a technique and needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: each name of `homes` comes from the module that it maps to, relative to the package.

    `"collator"` is a module of the package, `"..feedback.preferences"` is one beside the package's parent.
    """

    def get(name: str) -> Any:
        if name in homes:
            return getattr(import_module(f".{homes[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
