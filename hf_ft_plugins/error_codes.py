"""The table of the codes that refusals carry (`error_codes.yaml`), and how one is explained.

A code is a kind of fault, not a place in the code, and it stays when texts change. `unclassified` is for techniques of
other distributions that give none.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from . import mends


@dataclass(frozen=True)
class Explanation:
    """One code.

    Attributes:
        meaning: one sentence.
        causes: what usually causes it.
        by_hand: how to mend it.
        mend: what `PluginError.mend` may look like; empty where only a human can decide.
        example: the text of one such refusal.
    """

    code: str
    meaning: str
    causes: list[str]
    by_hand: str
    mend: list[mends.Step]
    example: str

    @property
    def page(self) -> str:
        """Where it is explained, in the repository."""
        return page_of(self.code)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "page": self.page}

    def as_text(self) -> str:
        """All of it, in Markdown that reads as plain text, too."""
        causes = "\n".join(f"- {cause}" for cause in self.causes)
        steps = "\n".join(f"    {json.dumps(step)}" for step in self.mend)
        program = f"One of these, or the like:\n\n{steps}" if steps else "None: a human has to decide."
        example = "\n".join(f"    {line}" for line in self.example.splitlines())
        return (
            f"{self.meaning}\n\nUsual causes:\n\n{causes}\n\nTo mend it by hand: {self.by_hand}\n\n"
            f"For a program, `mend`: {program}\n\nFor example:\n\n{example}\n"
        )


@functools.cache
def table() -> dict[str, Explanation]:
    """All codes, in the order of the file."""
    text = files(__package__).joinpath("error_codes.yaml").read_text(encoding="utf-8")
    return {code: Explanation(code, **entry) for code, entry in yaml.safe_load(text).items()}


def page_of(code: str) -> str:
    """The page of a code in the repository."""
    return f"docs/errors/{code}.md"
