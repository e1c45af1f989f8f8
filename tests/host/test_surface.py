"""Each name of another library that we build on is as `host/surface.py` expects, and none of ours is left out."""

import ast
import functools
import importlib
import logging
import re
import sys
import time
import types
from pathlib import Path

import pytest

import hf_ft_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host import surface_check
from hf_ft_plugins.host.surface import SURFACE, TESTED
from hf_ft_plugins.host.surface_name import Name, problem_with

PACKAGE = Path(hf_ft_plugins.__file__).parent
ROOT = PACKAGE.parent
# Private names that are of no other library, used outside the module that defines them: `file: name`.
OURS = {
    "host/trainer.py: _ft_techniques",
    "suggest/facts.py: _ft_techniques",
    "techniques/low_memory/building.py: _ft_techniques",
    "techniques/multitask/heads/export.py: _features",
    "techniques/sequential/callbacks.py: _trainer",
    "techniques/sequential/replay.py: _supplied_later",
    "testing/checks.py: _ft_callbacks",
    # Python's own, of named tuples.
    "lr_probe.py: _fields",
    "techniques/text2text/lengths.py: _fields",
}


def imported(module):
    return pytest.importorskip(module, exc_type=ImportError)


@functools.cache
def tree(file):
    return ast.parse(Path(file).read_text(encoding="utf-8"))


def function_at(module, path):
    """The syntax tree of a function, or of a class, of an installed module."""
    found = tree(imported(module).__file__)
    for part in path.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((one for one in ast.walk(found) if isinstance(one, kinds) and one.name == part), None)
        assert found is not None, f"{module} has no {path}"
    return found


def names_in(node):
    """All names, attributes and texts in a piece of code, each with its node."""
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute):
            yield one.attr, one
        elif isinstance(one, ast.Name):
            yield one.id, one
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value, one


@pytest.mark.parametrize("name", SURFACE, ids=str)
def test_a_name_of_another_library_is_as_expected(name):
    for module in (name.module, *(module for module, _ in name.users())):
        imported(module)
    problem = problem_with(name)
    assert problem is None, f"{name}: {problem}. Lost: {name.promise}."
    if name.made_in:
        assert name.last in dict(names_in(function_at(name.module, name.made_in)))
    passed = set()
    for module, path in name.users():
        user = function_at(module, path)
        assert name.last in dict(names_in(user)), f"{path} does not use {name} any more. Lost: {name.promise}."
        calls = [node for node in ast.walk(user) if isinstance(node, ast.Call)]
        own = [node for node in calls if getattr(node.func, "attr", getattr(node.func, "id", None)) == name.last]
        passed |= {keyword.arg for node in own for keyword in node.keywords}
    assert passed >= set(name.by_name.split()), f"{name.used_by} does not pass {name.by_name} by name to {name}"


@pytest.mark.parametrize("name", SURFACE, ids=str)
def test_a_name_of_the_surface_is_used_where_the_table_says(name):
    for part in name.used_in.split():
        words = words_of(part)
        assert name.last in words or name.path.removesuffix(".__init__") in words, f"nothing in {part} uses {name}"


@functools.cache
def words_of(part):
    place = PACKAGE / part
    words = set()
    for file in [*place.rglob("*.py")] if place.is_dir() else [place.with_suffix(".py")]:
        if not file.name.startswith("surface"):
            words |= {word for word, _ in names_in(tree(file))}
            words |= {getattr(node, "name", None) for node in ast.walk(tree(file))}
    return words


# ---- what is not in the table ----


def defined_in(file):
    """Names that a module of ours defines or sets: functions, classes, variables, attributes of self and of classes."""
    for node in ast.walk(tree(file)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]


def is_own(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name):
    return bool(re.fullmatch(r"_[a-zA-Z0-9][a-zA-Z0-9_]*", name))


def private_names(file):
    """Private names of objects that are not of this module, with their lines."""
    defined, everywhere = set(defined_in(file)), defined_anywhere()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            known = defined | everywhere if is_own(node.value) else defined
            overridden = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
            if overridden or node.attr not in known:
                yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.name, node.lineno) for alias in node.names if is_private(alias.name))
            yield from ((part, node.lineno) for part in node.module.split(".") if is_private(part))
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", None))
            if called in ("getattr", "hasattr", "setattr", "delattr", "get"):
                texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                yield from ((text, node.lineno) for text in texts if is_private(text) and text not in defined)
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            text = str(node.left.value)
            if is_private(text) and text not in defined:
                yield text, node.lineno


@functools.cache
def files_of_ours():
    return [file for file in sorted(PACKAGE.rglob("*.py")) if "scaffold" not in file.parts]


@functools.cache
def defined_anywhere():
    return {name for file in files_of_ours() for name in defined_in(file)}


def in_the_table():
    return {name.last for name in SURFACE} | {part for name in SURFACE for part in name.module.split(".")}


@pytest.mark.parametrize("file", files_of_ours(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_private_name_is_left_out_of_the_table(file):
    known, place = in_the_table(), file.relative_to(PACKAGE).as_posix()
    left = {name: line for name, line in private_names(file) if name not in known and f"{place}: {name}" not in OURS}
    assert not left, f"{place}: add a row to host/surface.py for {left}, or, where it is of ours, to OURS here"


def test_a_private_name_that_is_left_out_is_found(tmp_path, monkeypatch):
    file = tmp_path / "reads.py"
    file.write_text(
        "from library._inner import _hidden\n"
        "class Ours:\n"
        "    def own(self):\n"
        "        self._set_here = other._unknown\n"
        "        return getattr(other, '_by_text', self._set_here), super()._override()\n"
        "    def _override(self): ...\n"
    )
    assert {name for name, _ in private_names(file)} == {"_inner", "_hidden", "_unknown", "_by_text", "_override"}


def test_every_method_of_trainer_that_the_host_overrides_is_in_the_table():
    from transformers import Trainer

    from hf_ft_plugins.host.trainer import Host

    ours = [cls for cls in Host.__mro__ if cls.__module__.startswith("hf_ft_plugins.")]
    overridden = {name for cls in ours for name in vars(cls) if callable(vars(cls)[name]) and hasattr(Trainer, name)}
    known = {name.path for name in SURFACE}
    overridden = {name for name in overridden if not name.startswith("__") or name == "__init__"}
    assert {f"Trainer.{name}" for name in overridden} <= known


# ---- what the order of a library's code must be ----


def test_trainer_writes_its_state_last_before_it_rotates_old_checkpoints():
    lines = {
        name: node.lineno for name, node in names_in(function_at("transformers.trainer", "Trainer._save_checkpoint"))
    }
    order = ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "save_to_json", "rotate_checkpoints"]
    assert [lines[name] for name in order] == sorted(lines[name] for name in order)


def test_sigterm_is_answered_in_no_other_event_than_those_taken_over():
    from hf_ft_plugins.host.preemption import EVENTS

    callback = function_at("transformers.trainer_jit_checkpoint", "JITCheckpointCallback")
    answering = {
        method.name
        for method in callback.body
        if isinstance(method, ast.FunctionDef) and "execute_jit_checkpoint" in dict(names_in(method))
    }
    assert answering == set(EVENTS)


# ---- what is said when something is not as expected ----

LIBRARY = """
class Base:
    def __init__(self):
        self._field = 1
    def loop(self):
        self._step(model=1, epoch=2)
    def _step(self, model, epoch, more=None): ...
"""


def library(monkeypatch, source=LIBRARY):
    module = types.ModuleType("faked_library")
    module.__dict__["__name__"] = "faked_library"
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "faked_library", module)


STEP = Name("faked_library", "Base._step", "host", "Steps are taken", "model epoch", "Base.loop")
FIELD = Name("faked_library", "Base._field", "host", "The field is read", made_in="Base.__init__")


def test_what_is_as_expected_is_no_problem(monkeypatch):
    library(monkeypatch)
    assert problem_with(STEP) is None
    assert problem_with(FIELD) is None


@pytest.mark.parametrize(
    ("old", "new", "name", "problem"),
    [
        ("_step", "_steps", STEP, "not there"),
        ("epoch", "round", STEP, "takes no epoch"),
        ("model, epoch", "epoch, model", STEP, "in this order"),
        ("more=None", "more", STEP, "needs more"),
        ("self._step(model=1, epoch=2)", "pass", STEP, "Base.loop does not use it"),
        ("def loop", "def loops", STEP, "Base.loop does not use it"),
        ("_field", "_other", FIELD, "Base.__init__ does not set it"),
    ],
)
def test_a_change_is_noticed(monkeypatch, old, new, name, problem):
    library(monkeypatch, LIBRARY.replace(old, new))
    assert problem in problem_with(name)


def test_what_is_not_imported_is_not_looked_at():
    assert problem_with(STEP) is None


def test_what_somebody_else_has_put_there_is_not_judged(monkeypatch):
    library(monkeypatch)

    def wrapper(*args, **kwargs): ...

    monkeypatch.setattr(sys.modules["faked_library"].Base, "_step", wrapper)
    monkeypatch.setattr(sys.modules["faked_library"].Base, "loop", wrapper)
    assert problem_with(STEP) is None


@pytest.fixture
def renamed_loss(monkeypatch):
    """transformers with another name for a method that the host overrides."""
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_get_grad_norms", Trainer._get_grad_norm, raising=False)
    monkeypatch.delattr(Trainer, "_get_grad_norm")
    monkeypatch.setattr(surface_check, "_as_expected", set())


@pytest.mark.usefixtures("renamed_loss")
def test_a_host_is_refused_where_a_name_is_gone_and_the_error_says_what_falls_and_what_to_install():
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    with pytest.raises(PluginError) as error:
        with_plugins(Trainer)
    text = str(error.value)
    assert "transformers.trainer.Trainer._get_grad_norm: it is not there" in text
    assert "Techniques read the norm before clipping" in text
    assert f"pip install transformers=={TESTED['transformers']}" in text


@pytest.mark.usefixtures("renamed_loss")
def test_a_changed_library_is_a_warning_where_the_user_says_so(monkeypatch, caplog):
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    monkeypatch.setenv("HF_FT_ALLOW_CHANGED_LIBRARIES", "1")
    with caplog.at_level(logging.WARNING):
        with_plugins(Trainer)
    assert "_get_grad_norm: it is not there" in caplog.text


def test_names_that_only_another_technique_uses_refuse_no_host(monkeypatch):
    library(monkeypatch, LIBRARY.replace("_step", "_steps"))
    elsewhere = Name("faked_library", "Base._step", "techniques/elsewhere", "Steps are taken")
    monkeypatch.setattr(surface_check, "SURFACE", (elsewhere,))
    monkeypatch.setitem(TESTED, "faked_library", "1.0")
    surface_check.check_surface(["host", "techniques/peft"])
    with pytest.raises(PluginError, match="Steps are taken"):
        surface_check.check_surface(["techniques/elsewhere"])


def test_the_versions_to_install_are_those_of_the_constraints():
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {library: pinned[library] for library in TESTED} == TESTED
    assert {name.library for name in SURFACE} <= set(TESTED)


def test_the_check_takes_a_few_milliseconds(monkeypatch):
    importlib.import_module("transformers.trainer")
    monkeypatch.setattr(surface_check, "_as_expected", set())
    begin = time.process_time()
    surface_check.check_surface(["host", "lr_scale", "models", "cli"])
    # Ten times what is promised, so that a busy machine fails no test.
    assert time.process_time() - begin < 0.05
    assert len(surface_check._as_expected) > 40


def test_what_torch_compile_has_put_in_place_of_torchs_own_is_not_taken_for_a_change(monkeypatch):
    from torch import nn
    from torch._dynamo import mutation_guard
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    monkeypatch.setattr(nn.Module, "__init__", nn.Module.__init__)
    monkeypatch.setattr(nn.Module, "__setstate__", nn.Module.__setstate__)
    torchs_own = nn.Module.__init__
    mutation_guard.install_generation_tagging_init()
    assert nn.Module.__init__ is not torchs_own
    assert issubclass(with_plugins(Trainer, "peft", "task"), Trainer)
