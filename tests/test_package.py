"""What importing costs, and whether the contract's own promises hold."""

import ast
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import hf_ft_plugins
from hf_ft_plugins import hookspecs
from hf_ft_plugins.host import step_hooks
from hf_ft_plugins.registry import GROUP, offers
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
    assert text.startswith(("**all**.", "**owner**.")), "in hookspecs.py its docstring begins with neither"
    owned = bool(getattr(hookspecs, hook).hf_ft_plugins_spec["firstresult"])
    assert text.startswith("**owner**.") == owned, "in hookspecs.py **owner** and @_spec(firstresult=True) go together"
    page = (ROOT / "docs" / "writing-a-technique.md").read_text(encoding="utf-8")
    assert f"### `{hook}(" in page, "run: python docs/generate.py"


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_is_recorded_by_the_technique_that_logs_everything(hook):
    assert hook in LogEverything.hooks(), f"give LogEverything (testing/log_everything.py) a method {hook}"


ASKING = ("_ask_all", "_ask_owner", "_ask_chain", "_ask_for_order")


@pytest.mark.parametrize("hook", sorted({*hook_names()} - {"ft_commands"}))
def test_every_hook_is_asked_by_the_host(hook):
    files = [f"hf_ft_plugins/host/{name}.py" for name in ("trainer", "step_hooks", "inputs", "adapter", "run_record")]
    asked = set().union(*map(asked_in, files))
    assert hook in asked, f"nothing asks it, by {', '.join(ASKING)} or _contexts, in {', '.join(files)}"


def asked_in(file):
    return {
        node.args[0].value
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in (*ASKING, "_contexts")
        if isinstance(node.args[0], ast.Constant)
    }


def test_a_host_that_is_asked_in_each_step_has_what_asks():
    # A host whose techniques answer none of them is without.
    assert asked_in("hf_ft_plugins/host/step_hooks.py") == set(step_hooks.ASKED)


# What runs code that data or a checkpoint brings; of a name that ends with a dot everything.
FORBIDDEN = (
    *("eval", "exec", "compile", "builtins.eval", "builtins.exec", "builtins.compile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "_pickle.", "marshal.", "shelve.", "jsonpickle."),
    *("joblib.load", "dill.", "cloudpickle.", "torch.jit.load", "pandas.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
)


def calls_that_execute(source):
    """The calls in a module's source, with their lines, that could run code out of data, whatever they are imported as.

    Attributes of what is not imported, such as `model.eval()` and `pattern.compile()`, are none.
    """
    tree = ast.parse(source)
    homes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                homes[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            homes |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _executes(node, _full_name(node.func, homes))
    ]


def _full_name(node, homes):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or (parts and node.id not in homes):
        return ""
    return ".".join([homes.get(node.id, node.id), *reversed(parts)])


def _executes(call, name):
    keywords = {keyword.arg: getattr(keyword.value, "value", ...) for keyword in call.keywords}
    # Of a value that is computed nobody knows that it is False.
    if keywords.get("trust_remote_code", False) is not False or keywords.get("allow_pickle", False) is not False:
        return True
    if name == "torch.load":
        return keywords.get("weights_only") is not True
    return any(name.startswith(one) if one.endswith(".") else name == one for one in FORBIDDEN)


@pytest.mark.parametrize(
    "line",
    [
        *("eval('1')", "exec(text)", "compile(text, 'x', 'exec')", "import builtins; builtins.eval('1')"),
        *(
            "import pickle; pickle.load(file)",
            "import pickle as p; p.loads(b'')",
            "from pickle import loads; loads(b'')",
        ),
        *("import pickle; pickle.Unpickler(file).load()", "import marshal; marshal.loads(b'')"),
        *("import torch; torch.load(file)", "import torch; torch.load(file, weights_only=False)"),
        *("import torch as t; t.load(file, weights_only=flag)", "from torch import load as take; take(file)"),
        *("import yaml; yaml.load(text, Loader=yaml.Loader)", "from yaml import unsafe_load; unsafe_load(text)"),
        *("AutoModel.from_pretrained(x, trust_remote_code=True)", "f(trust_remote_code=asked)"),
        *("import joblib; joblib.load(x)", "import dill; dill.loads(x)", "import cloudpickle; cloudpickle.load(x)"),
        *("import numpy as np; np.load(x, allow_pickle=True)", "import pandas as pd; pd.read_pickle(x)"),
        "import torch.jit; torch.jit.load(x)",
    ],
)
def test_control_a_call_that_executes_is_found(line):
    assert calls_that_execute(line)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "model.eval()",
            "model.eval().generate()",
            "import re; re.compile('a')",
            "import torch; torch.compile(model)",
        ),
        *("import torch; torch.load(file, weights_only=True)", "import yaml; yaml.safe_load(text)", "'eval(1)'"),
        *(
            "import pickle; pickle.dumps(1)",
            "# exec(x)",
            "f(trust_remote_code=False)",
            "import numpy as np; np.load(x)",
        ),
    ],
)
def test_control_what_only_looks_so_is_not(line):
    assert calls_that_execute(line) == []


PRODUCTION = [path for path in sorted((ROOT / "hf_ft_plugins").rglob("*.py")) if "testing" not in path.parts]


@pytest.mark.parametrize("path", PRODUCTION, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_ours_executes_code_from_checkpoints_or_data(path):
    # The script that the user names is run, and nothing else.
    allowed = ("exec(", "compile(") if path.relative_to(ROOT).as_posix() == "hf_ft_plugins/cli/run.py" else ()
    found = calls_that_execute(path.read_text(encoding="utf-8"))
    assert [call for call in found if not call.partition(": ")[2].startswith(allowed)] == []


@pytest.mark.parametrize("path", PRODUCTION, ids=lambda path: str(path.relative_to(ROOT)))
def test_production_code_knows_nothing_of_the_kit(path):
    imported = [
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    ]
    assert not [name for name in imported if "testing" in name.split(".") or "pytest" in name.split(".")]


def backend_changes(source):
    """Lines of a module that draw by pyplot, or choose matplotlib's backend: a notebook would lose its own."""
    tree = ast.parse(source)
    names = [
        (node.lineno, [getattr(node, "module", None) or "", *(alias.name for alias in node.names)])
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    used = [node.lineno for node in ast.walk(tree) if ast.unparse(node) == "matplotlib.use"]
    return [line for line, words in names if any("pyplot" in word for word in words)] + used


@pytest.mark.parametrize(
    "line",
    ["import matplotlib.pyplot as plt", "from matplotlib import pyplot", "import matplotlib; matplotlib.use('Agg')"],
)
def test_control_a_change_of_the_backend_is_found(line):
    assert backend_changes(line)
    assert backend_changes("from matplotlib.figure import Figure") == []


@pytest.mark.parametrize("path", PRODUCTION, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_picture_changes_the_backend_of_a_notebook(path):
    assert backend_changes(path.read_text(encoding="utf-8")) == []


TECHNIQUES = [offer.name for offer in offers() if offer.distribution == "hf-ft-plugins"]


def named_techniques(file):
    """Strings of a file's code, its docstrings apart, that are a technique's name or a form of it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [word for word in words if word.partition(":")[0].strip() in TECHNIQUES and " " not in word]


@pytest.mark.parametrize("folder", ["host", "models", "memory", "cli"])
def test_the_core_knows_no_technique_by_name(folder):
    # Libraries and metrics may have the name of one.
    others = {"host/surface.py": {"peft"}, "host/surface_name.py": {"peft"}, "host/surface_check.py": {"peft"}}
    for file in (ROOT / "hf_ft_plugins" / folder).rglob("*.py"):
        place = str(file.relative_to(ROOT / "hf_ft_plugins"))
        assert set(named_techniques(file)) <= others.get(place, set()), place


def test_a_technique_that_is_named_is_found(tmp_path):
    (tmp_path / "core.py").write_text(
        '"""Of peft and others."""\nif other.name == "peft" or spec == "task:tau=1":\n    x\n'
    )
    assert named_techniques(tmp_path / "core.py") == ["peft", "task:tau=1"]


# ---- the distribution ----


@pytest.fixture(scope="module")
def description():
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.description


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_the_package_index_shows_no_link_that_leads_nowhere(description):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any(not link.startswith("https://") for link in links(readme))
    assert [link for link in links(description(readme, None, "1.0")) if not link.startswith("https://")] == []
    absolute = links(description(readme, "https://example.org/r/", "1.0"))
    assert "https://example.org/r/raw/v1.0/examples/digits-compare.png" in absolute
    assert "https://example.org/r/blob/v1.0/docs/composition.md" in absolute
    assert all(link.startswith("https://") for link in absolute)


def test_what_is_no_relative_link_is_described_as_it_stands(description):
    text = "See [it](https://example.org/a), [part](#part) and `list[int](3)`."
    assert description(text, None, "1.0") == "See [it](https://example.org/a), part and `list[int](3)`."


def test_a_wheel_holds_the_package_and_what_it_reads_and_nothing_else():
    from hatchling.builders.wheel import WheelBuilder

    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    there = [path for path in (ROOT / "hf_ft_plugins").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert files == {path.relative_to(ROOT).as_posix() for path in there}
    for needed in (
        "py.typed",
        "cli/scaffold/technique.py.jinja",
        "cli/shells/hf-ft.bash",
        "feedback/report.html.jinja",
    ):
        assert f"hf_ft_plugins/{needed}" in files
