"""One name of another library that we build on, and whether it is still what we expect.

Nothing is imported for it: what is not imported is not looked at. A function's users are read from its byte code, which
is there without its source and takes microseconds.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A name of another library and what we expect of it.

    Attributes:
        module: where it is; the first part is the library and its distribution.
        path: what it is called there, with dots: `Trainer._run_epoch`.
        used_in: the parts of `hf_ft_plugins` that use it, as paths, separated by spaces: `host techniques/peft`.
        promise: what does not hold any more if it changes, as a sentence without its dot.
        takes: names of parameters that must be there, in this order, separated by spaces; None: it is not called.
            All others must have defaults, unless `...` follows.
        used_by: functions in whose code the name must stand (`CLASS.FUNCTION`, of another module
            `MODULE:CLASS.FUNCTION`), separated by spaces: they call what we override, or read what we set.
        by_name: what `used_by` must pass as keyword arguments, each of them in some call.
        made_in: for what only instances have, the function of the same module that sets it.
    """

    module: str
    path: str
    used_in: str
    promise: str
    takes: str | None = None
    used_by: str = ""
    by_name: str = ""
    made_in: str = ""

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]

    def users(self) -> list[tuple[str, str]]:
        """Module and path of each function of `used_by`."""
        split = [user.rpartition(":") for user in self.used_by.split()]
        return [(module or self.module, path) for module, _, path in split]

    def is_used_in(self, part: str) -> bool:
        """Whether `part` of hf_ft_plugins, such as `techniques/peft`, uses it; `techniques` stands for all of them."""
        return any(part == one or part.startswith(f"{one}/") for one in self.used_in.split())

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"


def problem_with(name: Name) -> str | None:
    """What is not as expected; None if nothing is, or the module of the name is not imported.

    What somebody else has put in the place of a library's function is not judged.
    """
    module = sys.modules.get(name.module)
    if module is None:
        return None
    if name.made_in:
        if _mentions(name, name.module, name.made_in) is False:
            return f"{name.made_in} does not set it any more"
    else:
        found = _at(module, name.path)
        if found is None:
            return "it is not there any more"
        wrong = _wrong_parameters(name, found)
        if wrong is not None:
            return wrong
    for user_module, path in name.users():
        if _mentions(name, user_module, path) is False:
            return f"{path} does not use it any more"
    return None


_MISSING = object()


def _at(module: types.ModuleType, path: str) -> Any:
    """What is at `path`; None if nothing is. (What is there and None counts as there.)"""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, _MISSING)
        if found is _MISSING:
            return None
    return _MISSING if found is None else found


def _wrong_parameters(name: Name, found: Any) -> str | None:
    if name.takes is None or _is_replaced(found, name.library):
        return None
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # Written in C.
        return None
    wanted = name.takes.split()
    rest_is_free = "..." in wanted
    wanted = [one for one in wanted if one != "..."]
    there = [one for one in parameters if one in wanted]
    if there != wanted:
        missing = [one for one in wanted if one not in there]
        return f"it takes no {' and no '.join(missing)}" if missing else f"it takes {', '.join(there)} in this order"
    required = [
        one
        for one, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and one not in ("self", *wanted)
    ]
    return None if rest_is_free or not required else f"it needs {' and '.join(required)}, too"


def _mentions(name: Name, module: str, path: str) -> bool | None:
    """Whether the name stands in the code of the function at `path`; None if its code is not known."""
    if module not in sys.modules:
        return None
    function = _at(sys.modules[module], path)
    if function is None:
        return False
    if _is_replaced(function, module.partition(".")[0]):
        return None
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else any(name.last in (*one.co_names, *one.co_consts) for one in _codes(code))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_replaced(function: Any, library: str) -> bool:
    """Whether another library has put its own in this place, or this one itself has, as torch.compile does."""
    if "<locals>" in getattr(function, "__qualname__", ""):
        return True
    module = getattr(function, "__module__", None)
    return module is not None and module.partition(".")[0] != library
