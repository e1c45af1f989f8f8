"""The commands around a run: list, show, check and compare; and what broken or foreign plugins do to them: nothing."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from math import nan
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
BUILT_IN = {entry.name for entry in entry_points(group="hf_ft_plugins") if entry.dist.name == "hf-ft-plugins"}
CUTTING = "adaptive-lr:patience=1,min_delta=1e9,max_cuts=2,stop=false"

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
    return subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


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
    assert rows["adaptive-lr", "hf-ft-plugins"]["hooks"] == ["ft_callbacks", "ft_trainer"]
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
    assert "no_such_dependency" in hf_ft("list", cwd=plugins).stdout
    assert hf_ft("check", "--with", "adaptive-lr", cwd=plugins).returncode == 0
    text = refused(hf_ft("check", "--with", "broken", cwd=plugins))
    assert all(word in text for word in ("broken", "broken-dist 1.0", "no_such_dependency", "uninstall"))


def test_techniques_can_be_hidden_by_name_or_all_foreign_ones_at_once(plugins):
    hidden = listed(hf_ft("list", "--json", cwd=plugins, HF_FT_PLUGINS_DISABLE="sound, owner"))
    assert {name for name, _ in hidden} == {*BUILT_IN, "broken", "lying", "rival"}
    for process in (
        hf_ft("list", "--json", "--only-builtin", cwd=plugins),
        hf_ft("list", "--json", cwd=plugins, HF_FT_PLUGINS_ONLY_BUILTIN="1"),
    ):
        assert {distribution for _, distribution in listed(process)} == {"hf-ft-plugins"}
    assert "unknown technique 'sound'" in refused(hf_ft("check", "--only-builtin", "--with", "sound", cwd=plugins))
    text = refused(hf_ft("check", "--with", "sound", cwd=plugins, HF_FT_PLUGINS_DISABLE="sound"))
    assert "unknown technique 'sound'" in text


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
    assert options["max_cuts"]["default"] == 3
    assert all(info["help"] for info in options.values())
    text = hf_ft("show", "adaptive-lr", cwd=plugins).stdout
    assert all(name in text for name in options)
    assert "hf-ft-plugins" in text


def test_show_of_an_unknown_technique_names_the_nearest(plugins):
    assert "'adaptive-lr'" in refused(hf_ft("show", "adaptive-rl", cwd=plugins))


def test_check_shows_who_answers_what_in_the_users_order(plugins):
    arguments = ("check", "--with", "sound:amount=1", "--with", "adaptive-lr", "--with", "owner")
    process = hf_ft(*arguments, "--json", cwd=plugins)
    assert process.returncode == 0, process.stderr
    plan = json.loads(process.stdout)
    assert plan["hooks"] == {
        "ft_callbacks": ["sound", "adaptive-lr"],
        "ft_trainer": ["adaptive-lr"],
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


# ---- compare ----


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    script = SCRIPTS / "train_tiny.py"
    options = ("--output_dir", "runs", "--save_strategy", "steps", "--save_steps", "12")
    process = hf_ft("compare", "--output", "seen", "--with", CUTTING, script, *options, cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, json.loads((folder / "seen" / "compare.json").read_text()), process.stdout


def test_compare_shows_both_runs_side_by_side(compared):
    folder, rows, _ = compared
    by_name = {row["name"]: row for row in rows}
    assert by_name["optimizer steps"] | {"better": None} == {
        "name": "optimizer steps",
        "without": 12,
        "with": 12,
        "better": None,
    }
    assert {"eval_loss", "best eval_loss", "wall time, s", "CPU time, s", "peak memory, MB"} <= set(by_name)
    for which in ("without", "with"):
        result = json.loads((folder / "runs" / which / "result-0.json").read_text())
        losses = [entry["eval_loss"] for entry in result["log"] if "eval_loss" in entry]
        assert by_name["eval_loss"][which] == losses[-1]
        assert by_name["best eval_loss"][which] == min(losses)
    row = by_name["eval_loss"]
    assert row["without"] != row["with"], "the technique does nothing in this run"
    assert row["better"] == (row["with"] < row["without"])


def test_compare_keeps_both_runs_files_apart(compared):
    folder, _, _ = compared
    logs = {}
    for which in ("without", "with"):
        assert (folder / "runs" / which / "checkpoint-12").is_dir()
        result = json.loads((folder / "runs" / which / "result-0.json").read_text())
        logs[which] = (folder / "seen" / f"{which}.log").read_text()
        assert result["weights"] in logs[which]
        cuts = [entry for entry in result["log"] if entry.get("adaptive_lr/action") == "cut"]
        assert len(cuts) == {"without": 0, "with": 2}[which]
    assert logs["without"] != logs["with"]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["with", "without"]


def test_compare_draws_a_picture(compared):
    folder, _, _ = compared
    picture = (folder / "seen" / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000


def test_compare_prints_a_table_a_verdict_and_where_the_files_are(compared):
    _, rows, text = compared
    assert all(row["name"] in text for row in rows)
    assert CUTTING.partition(":")[0] in text
    assert "12 → 12 steps" in text
    assert all(name in text for name in ("seen/compare.png", "seen/compare.json", "seen/*.log"))


def test_compare_prints_the_same_as_json_where_asked(tmp_path, monkeypatch, capsys):
    from hf_ft_plugins.cli import compare
    from hf_ft_plugins.registry import resolve

    history = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step, "learning_rate": 0.1} for step in (1, 2, 3)]
    outcome = compare.Outcome(history=history, steps=3, wall=1.0, cpu=1.0, peak=2**20, gpu_peak=0)
    monkeypatch.setattr(compare, "_run", lambda *_: outcome)
    compare.compare_runs([resolve("adaptive-lr")], ["x.py"], tmp_path, console=None, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert rows == json.loads((tmp_path / "compare.json").read_text())
    assert {"name": "optimizer steps", "without": 3, "with": 3, "better": None} in rows


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('before'); raise SystemExit('no data here')", ["status 1", "before", "no data here"]),
        ("print('nothing to do')", ["trained nothing", "nothing to do"]),
    ],
)
def test_compare_of_a_script_that_fails_ends_with_its_last_lines(tmp_path, script, said):
    (tmp_path / "script.py").write_text(script)
    process = hf_ft("compare", "--output", "seen", "--with", "adaptive-lr", "script.py", cwd=tmp_path)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert all(word in process.stderr for word in ["without the techniques", *said]), process.stderr
    assert "seen/without.log" in process.stderr


def test_compare_calls_nothing_better_for_being_not_a_number():
    from hf_ft_plugins.cli.compare import _row

    assert [_row("eval_loss", *pair, greater=False)["better"] for pair in ((0.5, nan), (nan, 0.5), (nan, nan))] == [
        False,
        True,
        None,
    ]


def test_check_shows_the_order_of_a_models_layers(tmp_path):
    from hf_ft_plugins.testing import tiny_model

    tiny_model().save_pretrained(tmp_path)
    process = hf_ft("check", "--with", "transfer:layer_decay=0.5", "--model", tmp_path, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines() if "of the rate" in line]
    assert [line[0] for line in lines] == ["0.0625", "0.1250", "0.2500", "0.5000", "1.0000"]
