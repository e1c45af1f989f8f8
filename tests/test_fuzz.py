"""Whatever stands in a file or on a command line is read, or refused by an error of ours: no traceback, no hang."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ft_plugins import registry
from hf_ft_plugins.cli.recipes import chosen_techniques
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback.formats import messages_and_events
from hf_ft_plugins.feedback.log_files import Reading
from hf_ft_plugins.host import manifest, state

ROOT = Path(__file__).resolve().parent.parent
# The same examples in every run, however slow the machine.
steadily = settings(max_examples=150, deadline=None, derandomize=True, database=None)
NAMES = [offer.name for offer in registry.offers() if offer.distribution == registry.DISTRIBUTION]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


def options_of(name):
    return [info.name for info in registry.find(name).load().option_infos()]


def refused(work, kind=PluginError):
    """The text with which `work` is refused; None where it is not. Any other error fails the test."""
    try:
        work()
    except kind as error:
        return str(error) or pytest.fail("an error without words")
    return None


# ---- option strings and recipes ----

SOUP = st.text(alphabet='abctrue=,:[](){}"\\+-.0123456789 \n\t\u00e9', max_size=40)


@steadily
@given(st.sampled_from([*NAMES, "", "no-such"]), SOUP)
def test_any_option_string_is_a_technique_or_an_error_of_ours(name, rest):
    refused(lambda: registry.resolve(f"{name}:{rest}"))


@steadily
@given(st.sampled_from(NAMES), st.data(), VALUES)
def test_any_value_of_an_option_is_kept_without_loss_or_refused_by_its_name(name, data, value):
    option = data.draw(st.sampled_from(options_of(name)))
    technique = None

    def resolve():
        nonlocal technique
        technique = registry.resolve({name: {option: value}})

    message = refused(resolve)
    if message is not None:
        assert name in message
    else:
        assert registry.resolve(str(technique)) == technique


@steadily
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps({"techniques": value}).encode()))
def test_any_recipe_is_read_or_refused(file, content):
    file.write_bytes(content)
    refused(lambda: chosen_techniques(None, file))


def test_control_a_recipe_that_is_right_is_read(file):
    file.write_text("techniques: [adaptive-lr, {task: {imbalance: weights}}]")
    assert [technique.name for technique in chosen_techniques(None, file)] == ["adaptive-lr", "task"]


# ---- checkpoints ----

ENTRIES = st.dictionaries(
    st.sampled_from(["a", "../a", "/etc/passwd", "b/c"]),
    st.fixed_dictionaries({"size": st.integers() | VALUES, "sha256": st.just("0" * 64) | VALUES}) | VALUES,
    max_size=3,
)
MANIFESTS = st.fixed_dictionaries(
    {"format": st.just(1) | VALUES, "files": ENTRIES | VALUES}, optional={"machines": VALUES, "more": VALUES}
)


@steadily
@given(MANIFESTS.map(json.dumps) | VALUES.map(json.dumps) | st.text(max_size=30))
def test_any_manifest_makes_a_checkpoint_damaged_and_no_path_leads_out_of_it(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "checkpoint-1"
    folder.mkdir(exist_ok=True)
    (folder / manifest.MANIFEST_FILE).write_text(content, encoding="utf-8")
    try:
        files = manifest.read_manifest(folder)
    except PluginError:
        files = None
    # None of the files that it may name is there.
    assert (manifest.damage(folder) is None) == (files == {})
    assert all(not name.startswith("/") and ".." not in Path(name).parts for name in files or ())


@steadily
@given(
    st.fixed_dictionaries(
        {
            "format": st.just(1) | VALUES,
            "techniques": VALUES,
            "states": st.dictionaries(st.text(max_size=5), VALUES, max_size=2) | VALUES,
        }
    ).map(json.dumps)
    | st.text(max_size=30)
)
def test_any_state_file_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "state"
    folder.mkdir(exist_ok=True)
    (folder / manifest.STATE_FILE).write_text(content, encoding="utf-8")
    message = refused(lambda: state.read_state(folder))
    assert message is None or manifest.STATE_FILE in message


# ---- data ----

TURNS = st.lists(st.fixed_dictionaries({"role": st.text(max_size=9) | VALUES, "content": VALUES}), max_size=3)
RECORDS = st.dictionaries(
    st.sampled_from(["messages", "conversations", "prompt", "chosen", "rejected", "completion", "label", "id", "score"])
    | st.text(max_size=6),
    VALUES | TURNS,
    max_size=5,
)


@steadily
@given(st.lists(RECORDS.map(json.dumps) | st.text(max_size=20), min_size=1, max_size=4))
def test_any_log_is_read_or_refused(tmp_path_factory, lines):
    log = tmp_path_factory.getbasetemp() / "log.jsonl"
    log.write_text("\n".join(lines), encoding="utf-8", errors="replace")

    def read():
        reading = Reading()
        _, items = messages_and_events(log, "auto", reading)
        list(items)
        reading.check()

    refused(read)


FIELDS = st.lists(st.text(alphabet="ab1-_.", max_size=3), max_size=11).map("\t".join)


@steadily
@given(st.lists(FIELDS | st.just("") | st.just("# text"), max_size=6))
def test_any_conllu_file_is_read_or_refused_with_its_line(file, lines):
    example = example_module("tag_parse_ner")
    file.write_text("\n".join(lines), encoding="utf-8")
    message = refused(lambda: example.read_conllu(str(file), None), ValueError)
    assert message is None or ", line " in message


def example_module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
