"""Trainer mix-in: an exception that comes out of a technique's part says whose it is.

A part is what a technique answers hooks with: callbacks, samplers, collators, data sets, loss functions, schedulers,
metrics. It is found in the traceback; of an error in a worker of a DataLoader, in the worker's traceback, which torch
makes the text of the error.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

from ..technique import Technique
from .hook_calls import CallsHooks
from .hooks import add_note

# torch's words of an error that a worker of a DataLoader has raised, and a line of the traceback that follows them.
IN_WORKER = "in DataLoader worker process"
TRACEBACK_LINE = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>\S+)$', re.MULTILINE)


class Blame(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self._blaming():
            return super().predict(*args, **kwargs)

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            for where, technique in owners_of(error, self._ft_owned_parts):
                add_note(error, where, technique)
            raise


def owners_of(error: BaseException, parts: Iterable[tuple[Any, Technique]]) -> list[tuple[str, Technique]]:
    """Of the parts that an exception came through, the function, as `Class.method`, and the technique."""
    parts = list(parts)
    found = []
    trace = error.__traceback__
    while trace is not None:
        found += [(_shown(part, trace.tb_frame.f_code), owner) for part, owner in parts if _runs(part, trace.tb_frame)]
        trace = trace.tb_next
    text = str(error)
    if IN_WORKER in text:
        codes = [(part, code, owner) for part, owner in parts for code in _codes(part)]
        for line in TRACEBACK_LINE.finditer(text):
            place = line["file"], line["function"]
            found += [
                (_shown(part, code), owner)
                for part, code, owner in codes
                if place == (code.co_filename, code.co_name) and _has_line(code, int(line["line"]))
            ]
    return found


def _runs(part: Any, frame: FrameType) -> bool:
    """Whether a frame is a method of `part`, or `part` itself where that is a function."""
    function = _function(part)
    return frame.f_locals.get("self") is part or (function is not None and frame.f_code is function.__code__)


def _function(part: Any) -> Any:
    while isinstance(part, functools.partial):
        part = part.func
    part = getattr(part, "__func__", part)
    return part if inspect.isfunction(part) else None


def _codes(part: Any) -> Iterator[CodeType]:
    """The code that a part brings along: its function's, or its methods', those inherited from other packages apart."""
    function = _function(part)
    if function is not None:
        yield function.__code__
        return
    package = _package(type(part))
    for cls in type(part).__mro__:
        if _package(cls) == package:
            yield from (value.__code__ for value in vars(cls).values() if inspect.isfunction(value))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _has_line(code: CodeType, line: int) -> bool:
    return any(line == covered for _, _, covered in code.co_lines())


def _shown(part: Any, code: CodeType) -> str:
    return code.co_qualname if _function(part) is not None else f"{type(part).__name__}.{code.co_name}"
