"""What importing costs, and whether the contract's own promises hold."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import hf_ft_plugins
from hf_ft_plugins import hookspecs
from hf_ft_plugins.registry import GROUP
from hf_ft_plugins.testing import LogEverything, hook_names

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("module", ["hf_ft_plugins", "hf_ft_plugins.cli.app", "hf_ft_plugins.techniques.adaptive_lr"])
def test_importing_it_imports_neither_torch_nor_transformers(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    techniques = {entry.load().__name__ for entry in entry_points(group=GROUP) if entry.dist.name == "hf-ft-plugins"}
    assert techniques <= set(hf_ft_plugins.__all__)
    assert len(set(hf_ft_plugins.__all__) - techniques) <= 7
    for name in hf_ft_plugins.__all__:
        assert getattr(hf_ft_plugins, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_ft_plugins.no_such_name  # noqa: B018


def test_built_in_techniques_are_offered_like_any_other():
    found = {entry.name for entry in entry_points(group=GROUP) if entry.dist.name == "hf-ft-plugins"}
    assert "adaptive-lr" in found


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_is_documented(hook):
    text = getattr(hookspecs, hook).__doc__
    assert text.startswith(("**all**.", "**owner**."))
    assert text.startswith("**owner**.") == bool(getattr(hookspecs, hook).hf_ft_plugins_spec["firstresult"])
    assert f"`{hook}`" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_is_recorded_by_the_technique_that_logs_everything(hook):
    assert hook in LogEverything.hooks()


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_is_asked_by_the_host(hook):
    files = [ROOT / "hf_ft_plugins" / name for name in ("host/trainer.py", "host/inputs.py", "host/adapter.py")]
    asked = {
        node.args[0].value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("_ask_all", "_ask_owner", "_ask_chain")
        if isinstance(node.args[0], ast.Constant)
    }
    assert hook in asked


def test_no_module_of_ours_executes_code_from_checkpoints_or_data():
    forbidden = ("pickle.load", "torch.load(", "trust_remote_code=True", "yaml.load(", "eval(")
    for file in (ROOT / "hf_ft_plugins").rglob("*.py"):
        if file.name != "testing.py":
            text = file.read_text(encoding="utf-8")
            assert not [word for word in forbidden if word in text], file
