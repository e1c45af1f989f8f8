"""`hf-ft NAME`: sub-commands that a technique brings, whoever offers it."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from hf_ft_plugins import Technique, registry
from hf_ft_plugins.cli.app import app
from hf_ft_plugins.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class Counting(Technique):
    name: ClassVar[str] = "counting"
    summary: ClassVar[str] = "count"

    @classmethod
    def ft_commands(cls) -> Any:
        commands = typer.Typer(help="Numbers, counted.")

        @commands.callback()
        def counting() -> None:
            """Numbers, counted."""

        @commands.command()
        def upto(number: int) -> None:
            print(" ".join(map(str, range(1, number + 1))))

        return commands


@dataclass(frozen=True, kw_only=True)
class Silent(Technique):
    name: ClassVar[str] = "silent"
    summary: ClassVar[str] = "has no commands"


@dataclass(frozen=True, kw_only=True)
class Wrong(Technique):
    name: ClassVar[str] = "wrong"
    summary: ClassVar[str] = "gives something else"

    @classmethod
    def ft_commands(cls) -> Any:
        return "upto"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """A distribution of somebody else's that offers these techniques, and one that cannot be imported."""
    names = {"counting": "Counting", "silent": "Silent", "wrong": "Wrong", "broken": "NotThere"}
    offers = [
        registry.Offer(name, "theirs", "1.0", EntryPoint(name, f"{__name__}:{cls}", registry.GROUP))
        for name, cls in names.items()
    ]
    monkeypatch.setattr(registry, "offers", lambda: offers)


def test_a_techniques_commands_run_under_its_name():
    ran = CliRunner().invoke(app, ["counting", "upto", "3"])
    assert (ran.exit_code, ran.stdout) == (0, "1 2 3\n")


def test_the_list_of_commands_names_them_and_leaves_out_what_has_none_or_is_broken():
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert "Numbers, counted." in text
    assert "compare" in text
    for name in ("silent", "broken"):
        assert f"│ {name} " not in text


@pytest.mark.parametrize("name", ["silent", "unheard-of"])
def test_a_technique_without_commands_is_no_command(name):
    ran = CliRunner().invoke(app, [name, "upto", "3"])
    assert ran.exit_code == 2
    assert f"No such command '{name}'" in ran.output


def test_a_technique_that_cannot_be_imported_is_an_error_only_where_it_is_named():
    ran = CliRunner().invoke(app, ["broken", "upto"])
    assert isinstance(ran.exception, PluginError)
    assert "theirs 1.0 cannot be imported" in str(ran.exception)


def test_commands_of_another_kind_are_refused_by_name():
    ran = CliRunner().invoke(app, ["wrong", "upto"])
    assert isinstance(ran.exception, PluginError)
    assert str(ran.exception).startswith("wrong: ft_commands gave a str")


# ---- shortcuts ----


@dataclass(frozen=True, kw_only=True)
class Short(Counting):
    name: ClassVar[str] = "short"
    shortcuts: ClassVar[tuple[str, ...]] = ("upto", "list", "absent")


@pytest.fixture
def with_short(monkeypatch):
    entry = EntryPoint("short", f"{__name__}:Short", registry.GROUP)
    offers = [*registry.offers(), registry.Offer("short", "theirs", "1.0", entry)]
    monkeypatch.setattr(registry, "offers", lambda: offers)


@pytest.mark.usefixtures("with_short")
def test_a_shortcut_runs_a_techniques_command_without_its_name():
    words = [["upto", "3"], ["short", "upto", "3"]]
    assert [CliRunner().invoke(app, one).stdout for one in words] == ["1 2 3\n"] * 2
    assert "│ upto " in CliRunner().invoke(app, ["--help"]).stdout


@pytest.mark.usefixtures("with_short")
def test_a_shortcut_of_a_name_that_is_taken_leaves_it_to_its_owner():
    assert "counting" in CliRunner().invoke(app, ["list"]).stdout


@pytest.mark.usefixtures("with_short")
def test_a_shortcut_to_no_command_is_none():
    ran = CliRunner().invoke(app, ["absent"])
    assert ran.exit_code == 2
    assert "No such command 'absent'" in ran.output


def test_without_its_technique_a_shortcut_is_no_command():
    ran = CliRunner().invoke(app, ["upto", "3"])
    assert ran.exit_code == 2
    assert "No such command 'upto'" in ran.output
