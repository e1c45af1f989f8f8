"""The options that several commands of `hf-ft` share."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from .. import registry
from .completion import recipes, techniques
from .refusals import Asked


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
    bool, typer.Option("--json", callback=_json, is_eager=True, help="Print JSON, a refusal with its code and mend.")
]
RefusalAsJson = Annotated[
    bool,
    typer.Option("--json", callback=_json, is_eager=True, help="Put a refusal, as JSON, on the last line of stderr."),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_debug, is_eager=True, help="Show our own traceback with an error.")
]


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
