"""One situation, and the verdict on it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_ft_plugins.errors import PluginError

Verdict = Literal["right", "refused", "wrong", "raw error"]


class Wrong(AssertionError):
    """What came of a situation is not what the reference says."""


@dataclass(frozen=True)
class Situation:
    """An input as somebody brings it.

    Attributes:
        kind: what is enumerated: "heads", "layouts of preferences", ...
        name: which of them; unique within its kind.
        run: does it, in an empty folder that is the current one; raises `Wrong` where the reference says otherwise.
        mend: where it may be refused: a regular expression that the text of the refusal must hold; None where not.
        quick: whether the quick run holds it.
    """

    kind: str
    name: str
    run: Callable[[], None]
    mend: str | None = None
    quick: bool = True


def judge(situation: Situation) -> tuple[Verdict, str]:
    """The verdict on a situation, and why."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            # Trainer prints what it logs.
            with contextlib.redirect_stdout(io.StringIO()):
                situation.run()
        except Wrong as error:
            return "wrong", str(error)
        except PluginError as error:
            well = situation.mend is not None and re.search(situation.mend, str(error))
            return ("refused" if well else "wrong"), str(error)
        except Exception as error:
            return "raw error", f"{type(error).__name__}: {error}"
        finally:
            os.chdir(here)
    return "right", ""
