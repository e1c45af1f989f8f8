"""How a refusal leaves `hf-ft`: a paragraph on stderr, or with `--json` an object that a program can act on."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import registry
from ..error_codes import page_of, table
from ..errors import PluginError

# Their stdout, or what they print, is that of somebody else's script.
COMMANDS_WITH_A_SCRIPT = ("run", "compare", "suggest")
COMMAND_LINE = "command-line"
errors = Console(stderr=True, soft_wrap=True, highlight=False)


class Asked:
    """How errors are to be shown: set while `hf-ft`'s own options are parsed, so that a script's are not mistaken for
    them.
    """

    debug = False
    as_json = False


def wants_json(arguments: list[str]) -> bool:
    """Whether an error is to be printed as JSON, also if parsing the command line failed, or a technique's own command
    has read the option.
    """
    if arguments[:1] and arguments[0] in COMMANDS_WITH_A_SCRIPT:
        return Asked.as_json or arguments[1:2] == ["--json"]
    return Asked.as_json or "--json" in arguments


def show_refusal(error: PluginError, arguments: list[str]) -> None:
    """Print a refusal of ours."""
    trace = f"{''.join(traceback.format_exception(error))}\n" if Asked.debug else ""
    text = one_paragraph(error)
    if wants_json(arguments):
        _print_object(as_object(trace + text, error.code, error.mend, technique_of(error)), arguments)
    else:
        errors.print(f"{trace}hf-ft: {text}\n{how_to_read_on(error.code)}", markup=False)


def show_complaint(error: Any, arguments: list[str]) -> None:
    """Print click's complaint about the command line."""
    if wants_json(arguments):
        _print_object(as_object(error.format_message(), COMMAND_LINE, [], None), arguments)
    else:
        error.show()
        errors.print(how_to_read_on(COMMAND_LINE), markup=False)


def _print_object(found: dict[str, Any], arguments: list[str]) -> None:
    """On stdout; of `run`, whose stdout is the script's, as a line of its own at the end of stderr."""
    if arguments[:1] == ["run"]:
        # A progress bar may have left its line unfinished.
        print(f"\n{json.dumps(found)}", file=sys.stderr, flush=True)
    else:
        print(json.dumps(found))


def as_object(text: str, code: str, mend: list[dict[str, Any]], technique: str | None) -> dict[str, Any]:
    """What a program reads of a refusal."""
    page = page_of(code) if code in table() else None
    return {"error": text, "code": code, "mend": mend, "technique": technique, "page": page}


def object_at_the_end(log: Path) -> dict[str, Any] | None:
    """The refusal that a process with `--json` has left at the end of its output; None where it left none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        found = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"error", "code", "mend"} <= found.keys() else None


def how_to_read_on(code: str) -> str:
    return f"(hf-ft explain {code})"


def technique_of(error: PluginError) -> str | None:
    """The technique that a text begins with, as ours do; None where it is of none."""
    name = str(error).partition(":")[0]
    return name if name in registry.names() else None


def one_paragraph(error: PluginError) -> str:
    """The text of an error and its notes."""
    return f"{error}" + "".join(f"\n  ({note})" for note in getattr(error, "__notes__", []))
