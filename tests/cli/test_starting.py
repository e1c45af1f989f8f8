"""How fast `hf-ft` answers, and what third parties' plug-ins can do about it: nothing, once they are known."""

import json
import os
import resource
import subprocess
import sys

import pytest

from tests.cli.test_cli import TECHNIQUE, add_plugin
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "datasets", "numpy", "matplotlib", "accelerate", "trl", "peft")
# Seconds of one processor. 0.3 is what a user may wait; the rest is for slower and busier machines.
MOST = 3 * 0.3
# Leaves a file behind, and takes as long as it is told to.
SLOW = """
import os, time
from pathlib import Path
(Path(__file__).parent.parent / "imported").touch()
while time.process_time() < float(os.environ.get("SLOW_FOR", "0")):
    pass
"""
COMMANDS = {
    "list": ["list"],
    "help": ["--help"],
    "show": ["show", "adaptive-lr"],
    "version": ["--version"],
    "help-of-run": ["run", "--help"],
}


def hf_ft(*arguments, site, **environment):
    """The command's output, and the seconds of processor time that it took."""
    paths = os.pathsep.join([str(site), str(ROOT)])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins", *arguments],
        cwd=site,
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "COLUMNS": "200",
            "XDG_CACHE_HOME": str(site.parent / "cache"),
            "HF_FT_PLUGINS_FORGET": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == 0, process.stderr
    return process.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def slow_plugin(summary="slow to import"):
    return SLOW + TECHNIQUE.format(name="slow", summary=summary, hook="ft_callbacks(self, args)")


def with_plugins(folder):
    """A plug-in that takes long to import, and one that cannot be imported."""
    folder.mkdir()
    add_plugin(folder, "slow-dist", "slow", slow_plugin())
    add_plugin(folder, "broken-dist", "broken", "import no_such_dependency")
    return folder


@pytest.fixture
def site(tmp_path):
    return with_plugins(tmp_path / "site")


@pytest.fixture(scope="module")
def known_site(tmp_path_factory):
    site = with_plugins(tmp_path_factory.mktemp("known") / "site")
    _, seconds = hf_ft("list", site=site, SLOW_FOR="1.2")
    # The control: the plug-in is slow, and that shows.
    assert imported(site)
    assert seconds > 1
    return site


def imported(site):
    mark = site.parent / "imported"
    was = mark.exists()
    mark.unlink(missing_ok=True)
    return was


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_heavy_is_imported(name):
    code = (
        "import sys, atexit; from hf_ft_plugins.cli.app import main\n"
        f"sys.argv = ['hf-ft', *{COMMANDS[name]!r}]\n"
        f"atexit.register(lambda: print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        "main()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("name", COMMANDS)
def test_it_answers_at_once_beside_a_slow_and_a_broken_plugin(name, known_site):
    _, seconds = hf_ft(*COMMANDS[name], site=known_site, SLOW_FOR="60")
    assert not imported(known_site)
    assert seconds < MOST


def test_what_is_remembered_is_listed_as_it_was_and_the_broken_one_with_its_error(site):
    first, _ = hf_ft("list", "--json", site=site)
    assert imported(site)
    again, _ = hf_ft("list", "--json", site=site)
    assert not imported(site)
    assert again == first
    rows = {row["name"]: row for row in json.loads(again)}
    assert "no_such_dependency" in rows["broken"]["error"]
    assert rows["slow"]["options"][0]["name"] == "amount"


def test_a_changed_plugin_is_imported_again(site):
    hf_ft("list", site=site)
    (site / "slow_dist.py").write_text(slow_plugin("slow as ever"))
    assert "slow as ever" in hf_ft("list", site=site)[0]


def test_a_plugin_that_something_installed_has_broken_is_listed_with_its_error(site):
    hf_ft("list", site=site)
    (site / "slow_dist.py").write_text("import needed\n" + slow_plugin())
    (site / "needed.py").touch()
    assert "cannot be imported" not in hf_ft("list", site=site, HF_FT_PLUGINS_DISABLE="broken")[0]
    (site / "needed.py").unlink()
    assert "No module named 'needed'" in hf_ft("list", site=site)[0]


def test_a_broken_plugin_is_tried_anew(site):
    hf_ft("list", site=site)
    (site / "no_such_dependency.py").touch()
    assert "Plugin" in hf_ft("list", site=site)[0].split("broken-dist", 1)[1].splitlines()[0]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"slow-dist slow": 3}', '{"slow-dist slow": {"mark": ""}}'])
def test_a_damaged_memory_is_none(content, site):
    first, _ = hf_ft("list", "--json", site=site)
    (file,) = (site.parent / "cache" / "hf-ft-plugins").iterdir()
    file.write_text(content)
    assert hf_ft("list", "--json", site=site)[0] == first
    assert imported(site)


def test_without_a_folder_to_write_to_it_lists_all_the_same(site):
    (site.parent / "cache").write_text("no folder")
    assert "slow to import" in hf_ft("list", site=site)[0]


def test_it_keeps_nothing_where_it_is_told_to_forget(site):
    hf_ft("list", site=site, HF_FT_PLUGINS_FORGET="1")
    assert not (site.parent / "cache").exists()
    hf_ft("list", site=site, HF_FT_PLUGINS_FORGET="1")
    assert imported(site)
