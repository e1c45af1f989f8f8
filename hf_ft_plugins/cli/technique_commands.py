"""Sub-commands that techniques bring: `hf-ft NAME ...`, NAME being the technique's, and their `shortcuts`.

Nothing of a third party's is imported until its name is typed, or all commands are asked for; then it is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from .. import registry
from ..technique import Technique
from .plugin_facts import command_of
from .remembered_facts import facts_of


class WithTechniqueCommands(TyperGroup):
    """The commands of `hf-ft`, and behind them one for each installed technique that answers `ft_commands`."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        if any(offer.name == cmd_name for offer in registry.offers()):
            return command_of(registry.find(cmd_name).load())
        with_shortcut = _with_shortcut(cmd_name, importing=not ctx.resilient_parsing)
        return next((command_of(one).get_command(ctx, cmd_name) for one in with_shortcut), None)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._add_those_of_techniques(importing=True)
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        # Who presses the TAB key has asked for no third party's code.
        self._add_those_of_techniques(importing=False)
        return super().shell_complete(ctx, incomplete)

    def _add_those_of_techniques(self, *, importing: bool) -> None:
        """As names with their help, to be shown."""
        for facts in facts_of(registry.offers(), importing=importing):
            for name, text in facts.commands() if facts is not None else ():
                self.commands.setdefault(name, TyperCommand(name, help=text))


def _with_shortcut(name: str, *, importing: bool) -> Iterator[type[Technique]]:
    """The techniques that have `name` among their shortcuts, our own first: where one has it, no other is imported."""
    for offer in sorted(registry.offers(), key=lambda offer: offer.distribution != registry.DISTRIBUTION):
        for facts in facts_of([offer], importing=importing):
            if facts is not None and name in dict(facts.commands()):
                yield offer.load()
