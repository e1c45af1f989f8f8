"""What a program reads of `hf-ft`: every command takes --json, every refusal has its code, which `explain` explains."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from hf_ft_plugins import mends
from hf_ft_plugins.cli.app import app, main
from hf_ft_plugins.error_codes import table
from hf_ft_plugins.errors import PluginError
from tests.cli.test_cli import hf_ft

TRAINS = """
import transformers
from hf_ft_plugins.testing import tiny_trainer
tiny_trainer("out", trainer_class=transformers.Trainer, eval_strategy="no", max_steps=2).train()
"""


def leaves(group, path=()):
    """All commands, with the words that call them."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*leaf, id=" ".join(leaf[0])) for leaf in leaves(typer.main.get_command(app))]
)
def test_every_command_takes_json(path, command):
    assert any("--json" in parameter.opts for parameter in command.params)


def in_process(*arguments):
    shown = CliRunner().invoke(app, list(map(str, arguments)))
    assert shown.exit_code == 0, shown.exception
    return shown.output


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Calls `hf-ft`, which is to refuse; what it has printed on stdout and on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-ft", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr()

    return call


def test_a_refusal_tells_code_mend_technique_and_page(refused):
    output, said = refused("check", "--with", "adaptive-lr:patiense=3", "--json")
    assert said == ""
    refusal = json.loads(output)
    assert refusal.pop("error").startswith("adaptive-lr: unknown option 'patiense'")
    assert refusal == {
        "code": "option-unknown",
        "mend": [mends.rename_option("adaptive-lr", "patiense", "patience")],
        "technique": "adaptive-lr",
        "page": "docs/errors/option-unknown.md",
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--no-such-option"], "command-line"),
        (["no-such-command"], "command-line"),
        (["behavioral", "inspect", "no-such-log"], "data-missing"),
        (["checkpoint", "sign", "no-such-folder"], "checkpoint-missing"),
        (["new", "Wrong Name"], "command-line"),
        (["explain", "no-such-code"], "command-line"),
    ],
)
def test_refusals_of_all_commands_have_codes(refused, arguments, code):
    assert json.loads(refused(*arguments, "--json").out)["code"] == code
    assert refused(*arguments).err.endswith(f"\n(hf-ft explain {code})\n")


def test_of_run_it_is_the_last_line_of_stderr_and_stdout_is_the_scripts(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print('its own'); print('a bar', end='', file=sys.stderr)")
    process = hf_ft("run", "--json", "--with", "adaptive-lr", "script.py", cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "its own\n")
    refusal = json.loads(process.stderr.splitlines()[-1])
    assert (refusal["code"], refusal["mend"]) == ("script-failed", [])
    # An option behind the script's name is the script's.
    theirs = hf_ft("run", "--with", "adaptive-lr", "script.py", "--json", cwd=tmp_path)
    assert theirs.stderr.endswith("(hf-ft explain script-failed)\n")
    broken = hf_ft("run", "--json", "--with", cwd=tmp_path)
    assert json.loads(broken.stderr.splitlines()[-1])["code"] == "command-line"


@pytest.mark.slow
def test_compare_hands_on_what_a_run_refused(tmp_path):
    (tmp_path / "script.py").write_text(TRAINS)
    asked = ("compare", "--json", "--with", "adaptive-lr:metric=eval_loss", "script.py")
    refusal = json.loads(hf_ft(*asked, cwd=tmp_path).stdout)
    assert refusal["code"] == "training-arguments"
    assert refusal["mend"][0] == mends.set_argument("eval_strategy", "epoch")
    assert refusal["technique"] == "adaptive-lr"
    assert "hf-ft-compare/with.log" in refusal["error"]


# ---- explain, new, sign ----


@pytest.mark.parametrize("code", table())
def test_explain_prints_what_the_page_says(code):
    assert in_process("explain", code) == f"{code}\n\n{table()[code].as_text()}"
    assert json.loads(in_process("explain", code, "--json"))["page"] == f"docs/errors/{code}.md"


def test_explain_lists_codes_and_steps():
    told = json.loads(in_process("explain", "--json"))
    assert told["codes"] == {code: entry.meaning for code, entry in table().items()}
    assert told["steps"]["set-option"]["keys"] == ["technique", "option", "value"]
    assert "not-finite" in in_process("explain")


def test_explain_of_a_code_with_a_typing_error_names_the_nearest():
    shown = CliRunner().invoke(app, ["explain", "option-valu"])
    assert isinstance(shown.exception, PluginError)
    assert "Did you mean 'option-value'?" in str(shown.exception)


def test_new_and_sign_print_json(tmp_path):
    made = json.loads(in_process("new", "my-idea", "--folder", tmp_path, "--json"))
    assert made == {"package": str(tmp_path / "hf-ft-my-idea")}
    (tmp_path / "trainer_state.json").write_text("{}")
    signed = json.loads(in_process("checkpoint", "sign", tmp_path, "--json"))
    assert signed["folder"] == str(tmp_path)
