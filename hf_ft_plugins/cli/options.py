"""The options that several commands of `hf-ft` share, and how their errors are shown."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import registry
from ..errors import PluginError
from .completion import recipes, techniques
from .run import one_paragraph

COMMANDS_WITH_A_SCRIPT = ("run", "compare")
errors = Console(stderr=True, soft_wrap=True, highlight=False)


class Asked:
    """How errors are to be shown: set while `hf-ft`'s own options are parsed, so that a script's are not mistaken for
    them.
    """

    debug = False
    as_json = False


def _debug(value: bool) -> bool:
    Asked.debug = Asked.debug or value
    return value


def _json(value: bool) -> bool:
    Asked.as_json = Asked.as_json or value
    return value


With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        "-w",
        autocompletion=techniques,
        help="A technique, as name or name:option=value,option=value. May be repeated.",
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        autocompletion=recipes,
        help="A YAML file with the same list under the key 'techniques'; --with comes after it.",
    ),
]
OnlyBuiltin = Annotated[bool, typer.Option("--only-builtin", help="Keep third-party techniques out.")]
AsModule = Annotated[bool, typer.Option("-m", "--module", help="SCRIPT names a module, as for python -m.")]
Only = Annotated[str | None, typer.Option(help="Act only on trainers of this class (or its subclasses), by its name.")]
AllowChanged = Annotated[
    bool,
    typer.Option("--allow-changed-plugins", help="Resume from a checkpoint that was made with other techniques."),
]
Script = Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or module, with -m).")]
ScriptArguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Its own arguments.")]
AsJson = Annotated[
    bool, typer.Option("--json", callback=_json, is_eager=True, help="Print JSON, an error as {'error': ...}.")
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show our own traceback with an error.")
]


def wants_json(arguments: list[str]) -> bool:
    """Whether an error is to be printed as JSON, also if parsing the command line failed."""
    return Asked.as_json or ("--json" in arguments and arguments[0] not in COMMANDS_WITH_A_SCRIPT)


def show_error(error: PluginError) -> None:
    """One paragraph on stderr; with `--json`, an object on stdout."""
    if Asked.as_json:
        print(json.dumps({"error": one_paragraph(error, debug=Asked.debug)}))
    else:
        errors.print(one_paragraph(error, debug=Asked.debug), markup=False)


def log_to_stderr() -> None:
    """Show our own log on stderr: which techniques run, which checkpoint is resumed; on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("hf-ft: %(message)s"))
        logger = logging.getLogger("hf_ft_plugins")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def keep_third_parties_out(only_builtin: bool) -> None:
    if only_builtin:
        os.environ[registry.ONLY_BUILTIN_VARIABLE] = "1"
