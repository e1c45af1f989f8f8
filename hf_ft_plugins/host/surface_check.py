"""Checks the names of the installed libraries that we build on (`surface.py`), and reports what a change breaks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from ..errors import PluginError
from ..registry import is_on
from .surface import SURFACE, TESTED
from .surface_name import Name, problem_with

logger = logging.getLogger(__name__)

ALLOW_VARIABLE = "HF_FT_ALLOW_CHANGED_LIBRARIES"

# As expected in this process; what an error names is looked at again.
_as_expected: set[Name] = set()


def check_surface(parts: Iterable[str]) -> None:
    """Look at each name that these parts of `hf_ft_plugins` use, once a process.

    Args:
        parts: paths in the package, such as `host` or `techniques/NAME`.

    Raises:
        PluginError: names are gone or have changed; it says which, what does not hold any more, and what to install.
            With the environment variable `HF_FT_ALLOW_CHANGED_LIBRARIES=1` it is a warning.
    """
    wanted = set(parts)
    names = [name for name in SURFACE if name not in _as_expected and any(map(name.is_used_in, wanted))]
    problems = {name: problem for name in names for problem in [problem_with(name)] if problem is not None}
    _as_expected.update(name for name in names if name.module in sys.modules and name not in problems)
    if not problems:
        return
    if is_on(ALLOW_VARIABLE):
        logger.warning("%s", message(problems))
        _as_expected.update(problems)
        return
    raise PluginError(
        f"{message(problems)} Or go on without these promises: {ALLOW_VARIABLE}=1.", code="library-changed"
    )


def message(problems: Mapping[Name, str]) -> str:
    """What has changed in which version, what does not hold any more, and what to install instead."""
    libraries = sorted({name.library for name in problems})
    installed = ", ".join(f"{library} {_installed(library)}" for library in libraries)
    lines = "".join(f"\n  {name}: {problem}. Lost: {name.promise}." for name, problem in problems.items())
    pins = " ".join(f"{library}=={TESTED[library]}" for library in libraries)
    return f"hf-ft-plugins builds on names that are other ones in {installed}:{lines}\nInstall: pip install {pins}."


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "of an unknown version"
