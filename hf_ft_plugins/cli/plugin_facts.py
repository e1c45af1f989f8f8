"""What `hf-ft list`, `hf-ft --help` and completion tell of an offered technique, found by importing it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import typer

from .. import mends, registry
from ..errors import PluginError
from ..technique import Technique


@dataclass(frozen=True)
class Facts:
    """What is told of an offered technique.

    Attributes:
        row: what `hf-ft list --json` prints; with `error` in place of summary, hooks and options where it cannot be
            imported.
        choices: of the options that take few values, these values as a command line gives them.
        commands: gives name and help of each sub-command of `hf-ft` that it brings, its own name first.
    """

    row: dict[str, Any]
    choices: dict[str, list[str]] = field(default_factory=dict)
    commands: Callable[[], list[tuple[str, str]]] = list


def read_facts(offer: registry.Offer) -> Facts:
    """The facts of an offer, from its class."""
    try:
        technique = offer.load()
    except PluginError as error:
        return Facts(_origin(offer) | {"error": str(error.__cause__ or error)})
    return Facts(row_of(offer, technique), technique.option_choices(), functools.partial(_commands, technique))


def row_of(offer: registry.Offer, technique: type[Technique]) -> dict[str, Any]:
    """What `hf-ft show NAME --json` prints, and `hf-ft list --json` for each technique."""
    return _origin(offer) | {
        "summary": technique.summary,
        "hooks": technique.hooks(),
        "options": [vars(info) for info in technique.option_infos()],
    }


def command_of(technique: type[Technique]) -> Any:
    """What `hf-ft NAME` runs; None where the technique has no commands.

    Raises:
        PluginError: its `ft_commands` fails, or gives no typer app.
    """
    if "ft_commands" not in technique.hooks():
        return None
    try:
        app = technique.ft_commands()  # type: ignore[attr-defined]
    except Exception as error:
        raise PluginError(
            f"{technique.name}: ft_commands failed ({type(error).__name__}: {error}). Repair or uninstall its plug-in.",
            code="plugin-broken",
            mend=[mends.remove_technique(technique.name)],
        ) from error
    if not isinstance(app, typer.Typer):
        raise PluginError(
            f"{technique.name}: ft_commands gave a {type(app).__name__}; it must give a typer.Typer with the "
            f"sub-commands of `hf-ft {technique.name}`.",
            code="plugin-broken",
        )
    command = typer.main.get_command(app)
    command.name = technique.name
    return command


def _origin(offer: registry.Offer) -> dict[str, Any]:
    return {"name": offer.name, "distribution": offer.distribution, "version": offer.version}


def _commands(technique: type[Technique]) -> list[tuple[str, str]]:
    try:
        own = command_of(technique)
    except PluginError:
        # Its own name says what is wrong with it; no other command depends on it.
        return []
    if own is None:
        return []
    below = getattr(own, "commands", {})
    told = {technique.name: own} | {name: below[name] for name in technique.shortcuts if name in below}
    return [(name, command.help or "") for name, command in told.items()]
