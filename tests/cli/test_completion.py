"""What the TAB key offers, in the shells themselves where they are installed."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from hf_ft_plugins.cli.app import app
from hf_ft_plugins.cli.completion import recipes, techniques
from tests.cli.test_cli import add_plugin
from tests.cli.test_starting import HEAVY, MOST, hf_ft, imported, known_site, with_plugins  # noqa: F401
from tests.conftest import ROOT

BASH = """
complete() { :; }
source "$SCRIPT"
COMP_LINE=$1 COMP_POINT=${#1}
[[ -n ${2+given} ]] && COMP_WORDBREAKS=$2
_hf_ft_completion hf-ft
((${#COMPREPLY[@]})) && printf '%s\\n' "${COMPREPLY[@]}"
true
"""
# What zsh's own functions would show.
ZSH = """
compdef() { :; }
_files() { print files; }
compset() { [[ $PREFIX == --*=* ]] && PREFIX=${PREFIX#--*=}; }
compadd() { print -rl -- $values; print -r -- "(suffix: ${options[1]-a space})"; }
source "$SCRIPT"
words=(${(z)1})
[[ $1 == *' ' ]] && words+=('')
CURRENT=$#words
PREFIX=$words[-1]
_hf_ft_completion
"""
FISH = 'source "$SCRIPT"; complete -C"$argv[1]"'


def values(incomplete):
    return [value for value, _ in techniques(incomplete) if value.startswith(incomplete)]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs code in a shell that finds `hf-ft`, and has its completion script's name in `SCRIPT`."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "hf-ft"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hf_ft_plugins "$@"\n')
    command.chmod(0o755)
    (folder / "a.yaml").touch()
    (folder / "b.txt").touch()
    (folder / "more").mkdir()

    def run(name, code, *arguments):
        if shutil.which(name) is None:
            pytest.skip(f"no {name} here")
        script = folder / f"script.{name}"
        script.write_text(CliRunner().invoke(app, ["completion", name]).stdout)
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SCRIPT": str(script), "HOME": str(folder)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        options = {"bash": ["--norc", "-c", code, "bash"], "zsh": ["-f", "-c", code, "zsh"]}
        process = subprocess.run(
            [name, *options.get(name, ["--no-config", "-c", code]), *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        return process.stdout.splitlines()

    return run


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hf-ft ru", ["run"]),
        ("hf-ft show adap", ["adaptive-lr"]),
        ("hf-ft run --reci", ["--recipe"]),
        ("hf-ft run --with l", ["layer-removal", "low-memory"]),
        ("hf-ft compare -w mul", ["multitask"]),
        ("hf-ft run --with=mul", ["multitask"]),
        ("hf-ft run --with peft --with adaptive-lr:co", ["controller=", "cooldown="]),
        ("hf-ft run --with adaptive-lr:controller=", ["climb", "plateau", "greedy", "rollback", "none"]),
        ("hf-ft run --with adaptive-lr:controller=p", ["plateau"]),
        ("hf-ft run --with=adaptive-lr:controller=p", ["plateau"]),
        ("hf-ft run --with adaptive-lr:controller=plateau,pat", ["plateau,patience="]),
        ("hf-ft run --with adaptive-lr:patience=3,stop=", ["true", "false"]),
        ("hf-ft run --with 'adaptive-lr:controller=p", ["adaptive-lr:controller=plateau"]),
        ("hf-ft check --recipe ", ["a.yaml", "more/"]),
        ("hf-ft stages ", ["a.yaml", "more/"]),
        # For files, bash is asked.
        ("hf-ft run --with peft b", []),
        ("hf-ft run --with no-such:", []),
        ("hf-ft run --with adaptive-lr:patience=", []),
    ],
)
def test_bash_is_offered_what_may_follow(line, offered, shell):
    assert shell("bash", BASH, line) == offered


def test_bash_is_offered_whole_words_where_it_does_not_cut_them(shell):
    line = "hf-ft run --with adaptive-lr:controller=p"
    assert shell("bash", BASH, line, " \t\n") == ["adaptive-lr:controller=plateau"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hf-ft ru", ["run", "(suffix: a space)"]),
        ("hf-ft run --with adaptive-lr:controller=p", ["adaptive-lr:controller=plateau", "(suffix: -S)"]),
        ("hf-ft run --with=mul", ["multitask", "(suffix: -S)"]),
        ("hf-ft run --with peft b", ["files"]),
    ],
)
def test_zsh_is_offered_the_same(line, offered, shell):
    assert shell("zsh", ZSH, line) == offered


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hf-ft ru", ["run"]),
        ("hf-ft run --with adaptive-lr:controller=p", ["adaptive-lr:controller=plateau"]),
        ("hf-ft run --with=mul", ["--with=multitask"]),
        ("hf-ft run --with peft b", ["b.txt"]),
    ],
)
def test_fish_is_offered_the_same(line, offered, shell):
    assert [found.partition("\t")[0] for found in shell("fish", FISH, line)] == offered


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ('text2text:source_prefix="a, b",target_p', []),
        ('text2text:source_prefix="a, b",target_t', ['text2text:source_prefix="a, b",target_tokens=']),
        (
            "multitask:weights=[1,2],mix=u",
            ["multitask:weights=[1,2],mix=unimax", "multitask:weights=[1,2],mix=uniform"],
        ),
        ("task:calibrate=f", ["task:calibrate=false"]),
        ("task:greater_is_better=n", ["task:greater_is_better=none"]),
    ],
)
def test_commas_within_a_value_begin_no_option(text, offered):
    assert values(text) == offered


def test_an_option_that_is_given_is_not_offered_again():
    assert values("adaptive-lr:factor=0.5,f") == []
    assert values("adaptive-lr:f") == ["adaptive-lr:factor="]


def test_recipes_are_found_below_a_folder(tmp_path):
    (tmp_path / "x.yml").touch()
    (tmp_path / ".hidden").mkdir()
    assert recipes(f"{tmp_path}/") == [f"{tmp_path}/x.yml"]
    assert recipes(f"{tmp_path}/no/such") == []


def ask(line, site, **environment):
    return hf_ft(site=site, _HF_FT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="-1", **environment)


@pytest.mark.parametrize("line", ["hf-ft ''", "hf-ft run --with ''", "hf-ft run --with slow:''", "hf-ft unheard-of ''"])
def test_it_answers_at_once_and_imports_no_plugin_that_is_known(line, known_site):  # noqa: F811
    _, seconds = ask(line, known_site, SLOW_FOR="60")
    assert not imported(known_site)
    assert seconds < MOST


def test_it_imports_nothing_heavy(tmp_path):
    environment = {**os.environ, "_HF_FT_COMPLETE": "complete_bash", "COMP_CWORD": "-1", "PYTHONPROFILEIMPORTTIME": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins"],
        env={**environment, "COMP_WORDS": "hf-ft run --with adaptive-lr:co"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    modules = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert process.stdout.split() == ["adaptive-lr:controller=", "adaptive-lr:cooldown="]
    assert "typer" in modules
    assert modules.isdisjoint(HEAVY)


def test_a_plugin_that_is_of_no_use_is_passed_over_in_silence(tmp_path):
    site = with_plugins(tmp_path / "site")
    add_plugin(site, "lying-dist", "lying", "Plugin = 3")
    for name in ("broken", "lying"):
        assert ask(f"hf-ft run --with {name}:", site)[0].strip() == ""
    names = ask("hf-ft run --with ''", site)[0].split()
    assert {"adaptive-lr", "slow"} <= set(names)
    # Its name alone is no reason to import it; its options are.
    assert not imported(site)
    assert ask("hf-ft run --with slow:", site)[0].strip() == "slow:amount="
    assert imported(site)


def test_a_version_that_stands_in_the_line_is_not_printed(tmp_path):
    assert ask("hf-ft --version li", with_plugins(tmp_path / "site"))[0].split() == ["list"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_installed_it_is_read_when_the_shell_starts(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    installed = CliRunner().invoke(app, ["completion", name, "--install"])
    assert installed.exit_code == 0, installed.output
    (file,) = (file for file in tmp_path.rglob("*hf-ft*") if file.is_file())
    assert str(file) in installed.stdout
    assert file.read_text() == CliRunner().invoke(app, ["completion", name]).stdout
    if name == "bash":
        assert str(file) in (tmp_path / ".bashrc").read_text()


def test_another_shell_is_refused_with_those_that_there_are():
    refused = CliRunner().invoke(app, ["completion", "tcsh"])
    assert refused.exit_code == 2
    assert all(f"'{name}'" in refused.output for name in ("tcsh", "bash", "zsh", "fish"))


def test_options_of_techniques_tell_the_values_that_there_are():
    from hf_ft_plugins import AdaptiveLR, Task

    assert AdaptiveLR.option_choices()["stop"] == ["true", "false"]
    assert Task.option_choices()["greater_is_better"] == ["true", "false", "none"]
    assert not {"factor", "patience", "metric"} & set(AdaptiveLR.option_choices())


def test_typer_answers_by_the_variable_that_the_scripts_set():
    group = typer.main.get_command(app)
    assert f"_{group.name}_COMPLETE".replace("-", "_").upper() == "_HF_FT_COMPLETE"
