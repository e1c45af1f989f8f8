"""A plug-in whose dependency is missing: `hf-ft list` shows why, and only a run that names it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import hf_ft_no_such_library  # noqa: F401

from hf_ft_plugins import Technique


@dataclass(frozen=True, kw_only=True)
class Broken(Technique):
    """The technique `broken`, which is never reached."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "nothing: its module cannot be imported"
