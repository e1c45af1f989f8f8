"""Each refusal has a code of the table, each code a page, an example that the package can say, and a place that raises
it.
"""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

import hf_ft_plugins
from hf_ft_plugins import errors, mends
from hf_ft_plugins.error_codes import page_of, table
from hf_ft_plugins.errors import OptionError, PluginError

PACKAGE = Path(hf_ft_plugins.__file__).parent
ROOT = PACKAGE.parent
# For techniques of other distributions, whose authors give no code.
OF_OTHERS = "unclassified"


@functools.cache
def refusals():
    """The classes of refusals by name."""
    found = {"PluginError": PluginError}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(getattr(base, "id", None) in known() for base in node.bases):
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                found[node.name] = getattr(importlib.import_module(module), node.name)
    return found


def known():
    return {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, PluginError)}


def sites(source, classes=None):
    """Line, code (None where it is handed on) and text of each refusal that a source makes."""
    classes = classes or refusals()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes:
            given = {one.arg: one.value for one in node.keywords}
            code = classes[node.func.id].DEFAULT_CODE
            if "code" in given:
                code = given["code"].value if isinstance(given["code"], ast.Constant) else None
            yield node.lineno, code, node.args[0] if node.args else None


@functools.cache
def all_sites():
    return [(file, *site) for file in sorted(PACKAGE.rglob("*.py")) for site in sites(file.read_text(encoding="utf-8"))]


def without_a_known_code(found):
    return [
        (where, code) for *where, code, _ in found if code is not None and (code not in table() or code == OF_OTHERS)
    ]


def test_every_refusal_of_the_package_has_a_code_of_the_table():
    assert not without_a_known_code(all_sites())
    assert len(all_sites()) > 500, "they are found"


@pytest.mark.parametrize("source", ["raise PluginError('no code')", "raise OptionError('x', code='no-such-code')"])
def test_a_refusal_without_one_is_noticed(source):
    """Control."""
    assert without_a_known_code(sites(source, {"PluginError": PluginError, "OptionError": OptionError}))


def test_every_code_is_raised_somewhere():
    assert {code for *_, code, _ in all_sites()} - {None} == set(table()) - {OF_OTHERS}


def test_every_code_has_a_page_and_every_page_a_code():
    pages = {file.relative_to(ROOT).as_posix() for file in (ROOT / "docs" / "errors").glob("*.md")}
    assert pages == {"docs/errors/README.md", *map(page_of, table())}


def pattern(text):
    """What the text of a site can look like: its words as they stand, anything in place of a value."""
    if isinstance(text, ast.Constant):
        return re.escape(str(text.value))
    if isinstance(text, ast.JoinedStr):
        return "".join(pattern(part) for part in text.values)
    if isinstance(text, ast.BinOp):
        return pattern(text.left) + pattern(text.right)
    return ".*"


def can_be_said(text, code):
    """Whether a site of this code, with some words of its own, can make such a text."""
    said = [pattern(of) for *_, found, of in all_sites() if found == code]
    return any(len(one.replace(".*", "")) > 20 and re.fullmatch(one, text, re.DOTALL) for one in said)


@pytest.mark.parametrize("code", [code for code in table() if code != OF_OTHERS])
def test_the_example_of_a_code_is_a_text_that_the_package_can_say(code):
    assert can_be_said(table()[code].example, code)
    assert not can_be_said(table()[code].example.replace("e", "E"), code), "control: other words"


@pytest.mark.parametrize("entry", table().values(), ids=table())
def test_what_is_said_of_a_code_is_complete(entry):
    mends.refuse_strangers(entry.mend)
    assert entry.meaning.endswith(".")
    assert entry.causes
    assert all(cause.endswith(".") for cause in entry.causes)
    assert entry.by_hand.endswith(".")
    assert re.fullmatch("[a-z]+(-[a-z]+)*", entry.code)


def test_an_error_tells_its_code_and_mend_also_from_another_process():
    import pickle

    step = mends.set_option("peft", "r", 1)
    error = pickle.loads(pickle.dumps(OptionError("text", code="option-unknown", mend=[step])))
    assert (str(error), error.code, error.mend) == ("text", "option-unknown", [step])
    plain = PluginError("of somebody else's technique")
    assert (plain.code, plain.mend) == (OF_OTHERS, [])


# ---- the vocabulary of mends ----


def test_each_function_makes_a_step_of_its_name_and_keys():
    for name in mends.__all__:
        function = getattr(mends, name)
        count = len(inspect.signature(function).parameters)
        arguments = (
            [mends.remove_technique("task")] if name == "all_of" else [["x"] if name == "drop_rows" else "x"] * count
        )
        if name == "drop_rows":
            arguments = ["train", [1]]
        if name == "name_once" or name == "add_technique":
            arguments = ["task", {"tau": (1, None)}]
        step = function(*arguments)
        mends.refuse_strangers([step])
        assert name == "all_of" or step["do"] == name.replace("_", "-")


@pytest.mark.parametrize(
    "step",
    [
        {"do": "delete-everything"},
        {"do": "set-option", "technique": "peft", "option": "r"},
        {"do": "remove-technique", "technique": "peft", "why": "x"},
        {"do": "all-of", "steps": [{"do": "fly"}]},
    ],
)
def test_a_step_that_is_none_is_noticed(step):
    """Control."""
    with pytest.raises(ValueError, match="is no step"):
        mends.refuse_strangers([step])
