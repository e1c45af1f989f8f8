"""Sub-commands that techniques bring: `hf-ft NAME ...`, NAME being the technique's, and their `shortcuts`.

Nothing of a plug-in is imported until its name is typed, or the list of commands is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from .. import mends, registry
from ..errors import PluginError
from ..technique import Technique


class WithTechniqueCommands(TyperGroup):
    """The commands of `hf-ft`, and behind them one for each installed technique that answers `ft_commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = super().list_commands(ctx)
        theirs = [offer for offer in registry.offers() if offer.name not in ours and _has_commands(offer)]
        return [*ours, *(name for offer in theirs for name in (offer.name, *offer.load().shortcuts))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        if any(offer.name == cmd_name for offer in registry.offers()):
            return _command_of(registry.find(cmd_name).load())
        return next((_command_of(one).get_command(ctx, cmd_name) for one in _with_shortcut(cmd_name)), None)


def _with_shortcut(name: str) -> Iterator[type[Technique]]:
    """The techniques that have `name` among their shortcuts, our own first: where one has it, no other is imported."""
    for offer in sorted(registry.offers(), key=lambda offer: offer.distribution != registry.DISTRIBUTION):
        if _has_commands(offer) and name in offer.load().shortcuts:
            yield offer.load()


def _has_commands(offer: registry.Offer) -> bool:
    try:
        return _command_of(offer.load()) is not None
    except PluginError:
        # Its own name says what is wrong with it, and so does `hf-ft list`; no other command depends on it.
        return False


def _command_of(technique: type[Technique]) -> Any:
    """What `hf-ft NAME` runs; None where the technique has no commands."""
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
