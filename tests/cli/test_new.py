"""`hf-ft new`: what it writes installs, is listed, passes its own tests and the linter; unfit names are refused."""

import json
import shutil
import subprocess
import sys

import pytest

from hf_ft_plugins.cli.new import LONGEST_NAME, refuse_name, rendered, scaffold
from hf_ft_plugins.errors import PluginError
from tests import plugin_packages


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A scaffolded package, and the folder that it was installed into."""
    folder = tmp_path_factory.mktemp("new")
    made = plugin_packages.hf_ft(folder / "site", "new", "my-first-idea", "--folder", folder, cwd=folder)
    assert made.returncode == 0, made.stderr
    plugin_packages.install(folder / "site", shutil.copytree(folder / "hf-ft-my-first-idea", folder / "copy"))
    return folder / "hf-ft-my-first-idea", folder / "site"


def test_it_is_listed_and_answers_its_hook(package, tmp_path):
    rows = json.loads(plugin_packages.hf_ft(package[1], "list", "--json", cwd=tmp_path).stdout)
    made = next(row for row in rows if row["name"] == "my-first-idea")
    assert (made["distribution"], made["hooks"]) == ("hf-ft-my-first-idea", ["ft_callbacks"])


@pytest.mark.slow
def test_its_own_tests_pass(processes, package, tmp_path):
    status, output = plugin_packages.own_tests(processes, package[1], package[0], cwd=tmp_path)
    assert status == 0, output


@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_the_linter_finds_nothing(package, command):
    lint = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(package[0])], capture_output=True, text=True
    )
    assert lint.returncode == 0, lint.stdout


def test_the_longest_name_keeps_every_line_short():
    modules = [text for path, text in rendered("a" * LONGEST_NAME).items() if path.endswith(".py")]
    assert max(len(line) for text in modules for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MyIdea", "for example 'my-idea'"),
        ("my_idea", "for example 'my-idea'"),
        ("2nd", "a letter first"),
        ("a" * (LONGEST_NAME + 1), "at most"),
        ("trainer", "would make a class Trainer"),
        ("none", "would make a class None"),
        ("adaptive-lr", "is taken: hf-ft-plugins"),
    ],
)
def test_an_unfit_name_is_refused(name, reason):
    with pytest.raises(PluginError, match=reason):
        refuse_name(name)


def test_a_folder_that_exists_is_left_alone(tmp_path):
    made = scaffold("my-idea", tmp_path)
    (made / "README.md").write_text("mine")
    with pytest.raises(PluginError, match="exists already"):
        scaffold("my-idea", tmp_path)
    assert (made / "README.md").read_text() == "mine"
