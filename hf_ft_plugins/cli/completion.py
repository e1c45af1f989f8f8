"""What the shell offers when the TAB key is pressed: commands, techniques, their options and values, recipes.

typer answers the shells, and finds out what is being completed; the scripts in `shells/` ask it. typer's own script for
bash takes words as bash cuts them, at each ':' and '=' of `--with name:option=value`.
"""

from __future__ import annotations

import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Literal

from typer.completion import install

from .. import registry
from ..option_text import CLOSING
from .remembered_facts import facts_of

PROGRAM = "hf-ft"
# By which typer recognises a shell's question.
VARIABLE = "_HF_FT_COMPLETE"
LONGEST_HELP = 60
Shell = Literal["bash", "zsh", "fish"]


def technique_names(incomplete: str) -> list[tuple[str, str]]:
    """Installed techniques with their summaries; one that has never been imported has none."""
    offers = registry.offers()
    known = facts_of(offers, importing=False)
    return [
        (offer.name, "" if facts is None else _short(facts.row.get("summary", "")))
        for offer, facts in zip(offers, known, strict=True)
    ]


def techniques(incomplete: str) -> list[tuple[str, str]]:
    """How `name:option=value,option=value` may go on, each with help; nothing where the plug-in is of no use."""
    name, colon, options = incomplete.partition(":")
    if not colon:
        return technique_names(incomplete)
    found = facts_of(offer for offer in registry.offers() if offer.name == name)
    if len(found) != 1 or found[0] is None or "error" in found[0].row:
        return []
    start = _start_of_last(options)
    before = f"{name}:{options[:start]}"
    option, sign, _ = options[start:].partition("=")
    if sign:
        return [(f"{before}{option}={value}", "") for value in found[0].choices.get(option.strip(), []) if value]
    given = {part.partition("=")[0].strip() for part in options[:start].split(",")}
    infos = found[0].row["options"]
    return [(f"{before}{info['name']}=", _short(info["help"])) for info in infos if info["name"] not in given]


def recipes(incomplete: str) -> list[str]:
    """YAML files, and folders in which there may be some."""
    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") or not incomplete else begun.parent
    if not folder.is_dir():
        return []
    written = incomplete[: len(incomplete) - len(incomplete.rpartition("/")[2])]
    entries = sorted(folder.iterdir())
    folders = [f"{written}{entry.name}/" for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return [f"{written}{entry.name}" for entry in entries if entry.suffix in (".yaml", ".yml")] + folders


def _short(text: str) -> str:
    return textwrap.shorten(text, LONGEST_HELP, placeholder=" ...")


def _start_of_last(options: str) -> int:
    """Where the last `option=value` of several begins; commas in brackets and quotes do not separate."""
    start, depth, quoted = 0, 0, False
    for position, character in enumerate(options):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in CLOSING.values():
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            start = position + 1
    return start


def script_of(shell: Shell) -> str:
    """The script that a shell reads."""
    return files(__package__).joinpath("shells", f"{PROGRAM}.{shell}").read_text(encoding="utf-8")


def install_script(shell: Shell) -> Path:
    """Let a shell read the script whenever it starts; the file that it stands in."""
    # typer makes the shell read a file of its own, whose content is ours.
    _, file = install(shell, PROGRAM, VARIABLE)
    file.write_text(script_of(shell), encoding="utf-8")
    return file
