"""The commands around a run: list, show and check; and what broken or foreign plugins do to them: nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

from hf_ft_plugins.errors import PluginError

BUILT_IN = {entry.name for entry in entry_points(group="hf_ft_plugins") if entry.dist.name == "hf-ft-plugins"}

TECHNIQUE = """
from dataclasses import dataclass
from hf_ft_plugins import Technique, option

@dataclass(frozen=True, kw_only=True)
class Plugin(Technique):
    name = "{name}"
    summary = "{summary}"
    amount: float = option(0.5, help="how much of it")

    def {hook}:
        return None
"""


def hf_ft(*arguments, cwd, **environment):
    # The plugins of `cwd` beside the package that is tested.
    search_path = os.pathsep.join((str(cwd), *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": search_path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def in_process(*arguments):
    from typer.testing import CliRunner

    from hf_ft_plugins.cli.app import app

    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def add_plugin(folder, distribution, name, code, version="1.0"):
    """A distribution that offers one technique, as pip would have left it in `folder`."""
    module = distribution.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[hf_ft_plugins]\n{name} = {module}:Plugin\n")


def scheduler_owner(name):
    return TECHNIQUE.format(name=name, summary="its own schedule", hook="ft_scheduler(self, trainer, optimizer)")


@pytest.fixture
def plugins(tmp_path):
    """A sound plugin, two that cannot be used, and two that both want to own the schedule."""
    add_plugin(
        tmp_path,
        "sound-dist",
        "sound",
        TECHNIQUE.format(name="sound", summary="sounds good", hook="ft_callbacks(self, args)"),
    )
    add_plugin(tmp_path, "broken-dist", "broken", "import no_such_dependency")
    add_plugin(tmp_path, "lying-dist", "lying", "Plugin = 3")
    add_plugin(tmp_path, "leaving-dist", "leaving", "raise SystemExit('not on this machine')")
    annotated = TECHNIQUE.format(name="annotated", summary="", hook="ft_trainer(self)").replace("float", '"Flaot"')
    add_plugin(tmp_path, "annotated-dist", "annotated", annotated)
    add_plugin(tmp_path, "owner-dist", "owner", scheduler_owner("owner"))
    add_plugin(tmp_path, "rival-dist", "rival", scheduler_owner("rival"))
    return tmp_path


def listed(process):
    assert process.returncode == 0, process.stderr
    return {(row["name"], row["distribution"]): row for row in json.loads(process.stdout)}


def refused(process):
    """The one paragraph with which `hf-ft` refused."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert process.stderr.startswith("hf-ft: ")
    return process.stderr


# ---- list ----


def test_list_tells_where_every_technique_comes_from_and_what_it_answers(plugins):
    rows = listed(hf_ft("list", "--json", cwd=plugins))
    assert rows["adaptive-lr", "hf-ft-plugins"]["hooks"] == ["ft_held_out", "ft_callbacks", "ft_trainer", "ft_report"]
    sound = rows["sound", "sound-dist"]
    assert (sound["version"], sound["summary"], sound["hooks"]) == ("1.0", "sounds good", ["ft_callbacks"])
    assert sound["options"] == [{"name": "amount", "type": "a number", "default": 0.5, "help": "how much of it"}]
    table = hf_ft("list", cwd=plugins)
    assert table.returncode == 0
    assert all(word in table.stdout for word in ("sound", "sound-dist 1.0", "sounds good", "adaptive-lr"))


def test_broken_plugin_is_listed_with_its_error_and_harms_no_one_else(plugins):
    rows = listed(hf_ft("list", "--json", cwd=plugins))
    assert "no_such_dependency" in rows["broken", "broken-dist"]["error"]
    assert "not a Technique" in rows["lying", "lying-dist"]["error"]
    assert "not on this machine" in rows["leaving", "leaving-dist"]["error"]
    assert "Flaot" in rows["annotated", "annotated-dist"]["error"]
    assert "no_such_dependency" in hf_ft("list", cwd=plugins).stdout
    assert hf_ft("check", "--with", "adaptive-lr", cwd=plugins).returncode == 0
    text = refused(hf_ft("check", "--with", "broken", cwd=plugins))
    assert all(word in text for word in ("broken", "broken-dist 1.0", "no_such_dependency", "uninstall"))


def test_techniques_can_be_hidden_by_name_or_all_foreign_ones_at_once(plugins):
    hidden = listed(hf_ft("list", "--json", cwd=plugins, HF_FT_PLUGINS_DISABLE="sound, owner"))
    assert {name for name, _ in hidden} == {*BUILT_IN, "annotated", "broken", "leaving", "lying", "rival"}
    for process in (
        hf_ft("list", "--json", "--only-builtin", cwd=plugins),
        hf_ft("list", "--json", cwd=plugins, HF_FT_PLUGINS_ONLY_BUILTIN="1"),
    ):
        assert {distribution for _, distribution in listed(process)} == {"hf-ft-plugins"}
    text = refused(hf_ft("check", "--only-builtin", "--with", "sound", cwd=plugins))
    assert all(word in text for word in ("'sound' is installed", "sound-dist", "--only-builtin"))
    text = refused(hf_ft("check", "--with", "sound", cwd=plugins, HF_FT_PLUGINS_DISABLE="sound"))
    assert all(word in text for word in ("'sound' is installed", "HF_FT_PLUGINS_DISABLE=sound"))
    text = refused(hf_ft("check", "--with", "sound", cwd=plugins, HF_FT_PLUGINS_ONLY_BUILTIN="banana"))
    assert "HF_FT_PLUGINS_ONLY_BUILTIN=banana" in text


def test_name_that_two_distributions_claim_is_refused_by_both_their_names(plugins):
    add_plugin(
        plugins, "second-dist", "sound", TECHNIQUE.format(name="sound", summary="", hook="ft_trainer(self)"), "2.0"
    )
    assert {("sound", "sound-dist"), ("sound", "second-dist")} <= set(listed(hf_ft("list", "--json", cwd=plugins)))
    text = refused(hf_ft("check", "--with", "sound", cwd=plugins))
    assert all(word in text for word in ("sound-dist 1.0", "second-dist 2.0", "Uninstall one"))


# ---- show, check ----


def test_show_tells_every_option_with_its_default_and_help(plugins):
    process = hf_ft("show", "adaptive-lr", "--json", cwd=plugins)
    assert process.returncode == 0, process.stderr
    row = json.loads(process.stdout)
    options = {info["name"]: info for info in row["options"]}
    assert options["ema_steps"]["default"] == 50
    assert all(info["help"] for info in options.values())
    text = hf_ft("show", "adaptive-lr", cwd=plugins).stdout
    metric = next(line for line in text.splitlines() if line.split()[:1] == ["metric"])
    assert metric.split()[1:5] == ["text", "or", "none", "none"], "its type, and its default as it may be written"
    assert "null" not in text
    assert all(name in text for name in options)
    assert "hf-ft-plugins" in text


def test_show_of_an_unknown_technique_names_the_nearest(plugins):
    assert "'adaptive-lr'" in refused(hf_ft("show", "adaptive-rl", cwd=plugins))


def test_check_shows_who_answers_what_in_the_users_order(plugins):
    arguments = ("check", "--with", "sound:amount=1", "--with", "adaptive-lr", "--with", "owner")
    process = hf_ft(*arguments, "--json", cwd=plugins)
    assert process.returncode == 0, process.stderr
    plan = json.loads(process.stdout)
    # adaptive-lr answers `ft_held_out` with hold_out alone.
    assert plan["hooks"] == {
        "ft_callbacks": ["sound", "adaptive-lr"],
        "ft_trainer": ["adaptive-lr"],
        "ft_report": ["adaptive-lr"],
        "ft_scheduler": ["owner"],
    }
    assert plan["techniques"][0] == {
        "name": "sound",
        "distribution": "sound-dist",
        "version": "1.0",
        "options": {"amount": 1.0},
    }
    text = hf_ft(*arguments, cwd=plugins).stdout
    assert "sound, then adaptive-lr" in text
    assert "no conflicts" in text


def test_check_of_two_owners_of_one_hook_is_a_conflict(plugins):
    text = refused(hf_ft("check", "--with", "owner", "--with", "rival", cwd=plugins))
    assert all(word in text for word in ("owner", "rival", "ft_scheduler"))


def test_check_reads_a_recipe_and_puts_the_command_line_after_it(plugins):
    (plugins / "recipe.yaml").write_text("techniques:\n- adaptive-lr: {patience: 5}\n")
    process = hf_ft("check", "--recipe", "recipe.yaml", "--with", "sound", "--json", cwd=plugins)
    assert process.returncode == 0, process.stderr
    techniques = json.loads(process.stdout)["techniques"]
    assert [technique["name"] for technique in techniques] == ["adaptive-lr", "sound"]
    assert techniques[0]["options"]["patience"] == 5


def test_check_shows_the_order_of_a_models_layers(tmp_path):
    from hf_ft_plugins.testing import tiny_model

    tiny_model().save_pretrained(tmp_path)
    shown = in_process("check", "--with", "transfer:layer_decay=0.5", "--model", tmp_path)
    assert shown.exit_code == 0, shown.exception
    lines = [line.split() for line in shown.output.splitlines() if "of the rate" in line]
    assert [line[0] for line in lines] == ["0.0625", "0.1250", "0.2500", "0.5000", "1.0000"]


# ---- errors, and what is printed of others' words ----


def test_version_is_told():
    process = hf_ft("--version", cwd=".")
    assert (process.returncode, process.stdout) == (0, f"hf-ft-plugins {version('hf-ft-plugins')}\n")


@pytest.mark.parametrize("arguments", [["check", "--with", "adaptive-ls"], ["check", "--no-such-option"], ["show"]])
def test_an_error_under_json_is_json(tmp_path, arguments):
    process = hf_ft(*arguments, "--json", cwd=tmp_path)
    assert process.returncode == 2
    assert json.loads(process.stdout)["error"]
    assert process.stderr == ""


def test_a_scripts_debug_is_not_ours(tmp_path):
    assert "Traceback" not in hf_ft("run", "--with", "adaptive-ls", "script.py", "--debug", cwd=tmp_path).stderr
    assert "Traceback" in hf_ft("run", "--debug", "--with", "adaptive-ls", "script.py", cwd=tmp_path).stderr


def test_brackets_in_an_option_are_text():
    shown = in_process("check", "--with", "text2text:source_prefix=[/INST] [red]")
    assert shown.exit_code == 0, shown.exception
    assert "[/INST] [red]" in shown.output


def test_check_tells_which_options_cannot_act():
    assert "max_cuts has no effect" in in_process("check", "--with", "adaptive-lr:controller=greedy,max_cuts=5").output


@pytest.mark.parametrize("architectures", [["set_seed"], ["logging"], ["NoSuchModel"], [], None, [3]])
def test_a_name_that_is_no_model_is_never_called(tmp_path, architectures):
    from hf_ft_plugins.testing import tiny_model

    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    shown = in_process("check", "--with", "transfer", "--model", tmp_path)
    assert shown.exit_code == 0 or isinstance(shown.exception, PluginError), shown.exception
    assert "of the rate" in shown.output or isinstance(shown.exception, PluginError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/folder"], ["no/such/folder", "config.json"]),
        (["--model", "{}", "--memory", "--length", "0"], ["--length 0", "1 or more"]),
        (["--model", "{}", "--memory", "--length", "-3"], ["--length -3", "1 or more"]),
        (["--model", "{}", "--memory", "--budget", "0"], ["--budget 0", "GiB"]),
        (["--model", "{}", "--memory", "--arg", "optm=sgd"], ["optm=sgd", "'optim'"]),
        (["--model", "{}", "--memory", "--arg", "optim"], ["optim", "NAME=VALUE"]),
        (["--model", "{}", "--memory", "--arg", "optim=banana"], ["banana"]),
        (["--model", "{}", "--memory", "--arg", "max_steps=many"], ["max_steps", "many"]),
        (["--model", "{}", "--memory", "--length", "100000"], ["--length is 100000"]),
        (["--memory"], ["--model"]),
    ],
)
def test_impossible_arguments_of_check_are_refused_in_words(tmp_path, arguments, words):
    from hf_ft_plugins.testing import tiny_model

    tiny_model().save_pretrained(tmp_path)
    shown = in_process("check", *(argument.format(tmp_path) for argument in arguments))
    assert isinstance(shown.exception, PluginError), shown.output
    assert all(word in str(shown.exception) for word in words), shown.exception


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    shown = in_process("check", "--with", "peft")
    assert all(word in str(shown.exception) for word in ("package peft", "pip install 'peft", "clone"))
