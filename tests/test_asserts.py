"""The suite's own asserts can fail: forms that hold whatever the code does are found by syntax tree."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("test_*.py"))]
# What a test without an assert calls instead: these, and functions of the suite that assert.
CHECKING = ("raises", "warns", "fail", "check", "assert", "xfail")


def needless_asserts(source):
    """Asserts that cannot fail as they stand, or that fail for another reason than the one meant; with their lines."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            reason = _why_it_holds(node.test)
            if reason:
                found.append(f"line {node.lineno}: {reason}: {ast.unparse(node)[:100]}")
        elif isinstance(node, ast.With) and len(node.body) > 1 and any(_raises(item) for item in node.items):
            found.append(f"line {node.lineno}: pytest.raises around {len(node.body)} statements: the first may raise")
    asserting = _asserting_functions(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name not in asserting:
            found.append(f"line {node.lineno}: {node.name} asserts nothing")
    return found


def _why_it_holds(test):
    if isinstance(test, ast.IfExp):
        # `assert a == b if c else d` is `assert (a == b) if c else d`.
        return "a conditional expression"
    if isinstance(test, (ast.Tuple, ast.List, ast.Dict, ast.Set)) and (
        getattr(test, "elts", None) or hasattr(test, "keys")
    ):
        return "a display that is not empty"
    if isinstance(test, (ast.GeneratorExp, ast.Lambda, ast.JoinedStr)):
        return f"a {type(test).__name__} is always true"
    if isinstance(test, ast.Constant) and test.value:
        return "a constant"
    if isinstance(test, ast.Compare) and not any(isinstance(part, (ast.Call, ast.Yield)) for part in ast.walk(test)):
        sides = [ast.dump(side) for side in (test.left, *test.comparators)]
        if any(one == other for one, other in itertools.pairwise(sides)):
            return "a value compared with itself"
    return None


def _raises(item):
    return isinstance(item.context_expr, ast.Call) and _name_of(item.context_expr) in ("raises", "warns")


def _name_of(call):
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _asserting_functions(tree):
    """Names of the functions that assert, or that call one which does, here or in another module."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    asserting = {
        function.name
        for function in functions
        if any(
            isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _name_of(node).startswith(CHECKING))
            for node in ast.walk(function)
        )
    }
    grown = True
    while grown:
        more = {
            function.name
            for function in functions
            if any(isinstance(node, ast.Call) and _name_of(node) in asserting for node in ast.walk(function))
        }
        grown = not more <= asserting
        asserting |= more
    return asserting


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_assert_can_fail(path):
    assert needless_asserts(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "statement",
    [
        *("assert a == b if c else d", "assert (a, 'message')", "assert [a]", "assert (x for x in y)", "assert 'text'"),
        *("assert lambda: a", "assert a == a", "assert a.b[0] <= a.b[0]", "assert f'{a}'", "assert {1: a}"),
        "with pytest.raises(ValueError):\n    a = f()\n    g(a)",
        "def test_it():\n    f()",
    ],
)
def test_control_what_cannot_fail_is_found(statement):
    assert needless_asserts(statement)


@pytest.mark.parametrize(
    "statement",
    [
        *("assert a == (b if c else d)", "assert [x for x in y]", "assert f() == f()", "assert not a", "assert a == b"),
        "with pytest.raises(ValueError):\n    f()",
        "def test_it():\n    check_it()",
        "def same(a, b):\n    assert a == b\n\ndef both():\n    same(1, 2)\n\ndef test_it():\n    both()",
    ],
)
def test_control_what_can_fail_is_not(statement):
    assert needless_asserts(statement) == []
