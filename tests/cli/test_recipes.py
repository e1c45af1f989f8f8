"""Recipes and option strings lose nothing: what is written is read back, and what is doubtful is refused."""

import json
import random
import string
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import yaml

from hf_ft_plugins.cli.recipes import chosen_techniques, read_recipe
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.technique import Technique, option, parse_spec


@dataclass(frozen=True, kw_only=True)
class Everything(Technique):
    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "one option of every type"

    flag: bool = option(False, help="a flag")
    count: int = option(1, help="a count")
    rate: float = option(0.1, help="a rate")
    word: str = option("a", help="a word")
    maybe_word: str | None = option(None, help="a word or none")
    mode: Literal["x", "off", ""] = option("x", help="a mode")
    maybe: int | None = option(None, help="a count or none")
    names: tuple[str, ...] = option((), help="names")
    rates: tuple[float, ...] = option((), help="rates")


SIGNS = string.ascii_letters + string.digits + ' ,,,:=[](){}""\'\\+$#|<>\t\n%äß漢🙂-_.'


def text(draw, longest=12):
    return "".join(draw.choice(SIGNS) for _ in range(draw.randrange(longest)))


def drawn(seed):
    """A technique whose every option has an arbitrary value."""
    draw = random.Random(seed)
    return Everything(
        flag=draw.random() < 0.5,
        count=draw.randrange(-(2**62), 2**62),
        rate=draw.choice((draw.uniform(-1, 1), draw.uniform(0, 1e-300), 1e300, float("inf"), -0.0, 3.0)),
        word=text(draw),
        maybe_word=draw.choice((None, text(draw), "none", " Null ")),
        mode=draw.choice(("x", "off", "")),
        maybe=draw.choice((None, 0, -7)),
        names=tuple(text(draw) for _ in range(draw.randrange(4))),
        rates=tuple(draw.uniform(-1, 1) for _ in range(draw.randrange(3))),
    )


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_what_a_string_or_a_recipe_says_is_what_was_written(tmp_path, first):
    for seed in range(first, first + 250):
        technique = drawn(seed)
        assert Everything.from_options(parse_spec(str(technique))[1]) == technique, str(technique)
    options = technique.options()
    for written in (yaml.safe_dump, json.dumps):
        file = tmp_path / "recipe.yaml"
        file.write_text(written({"techniques": [{"everything": json.loads(json.dumps(options))}]}))
        _, read = parse_spec(read_recipe(file)[0])
        assert Everything.from_options(read) == technique


def test_any_string_is_a_technique_that_says_the_same_or_is_refused():
    """Whatever is taken is taken whole: each assignment of the string is an option, and nothing else is."""
    draw = random.Random(0)
    taken = 0
    for _ in range(5_000):
        assignments = [f"{draw.choice(('word', 'maybe_word', 'names', 'mode', 'flag'))}={text(draw, 8)}" for _ in "12"]
        spec = "everything:" + ",".join(assignments[: draw.randrange(1, 3)])
        try:
            name, options = parse_spec(spec)
            technique = Everything.from_options(options)
        except OptionError:
            continue
        taken += 1
        assert Everything.from_options(parse_spec(str(technique))[1]) == technique
        # Nothing but the quotes, and the backslashes in them, is less in what was read than in what was said.
        assert '"' in spec or f"{name}:" + ",".join(f"{key}={value}" for key, value in options.items()) == spec, spec
    assert taken > 500


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("everything:word=a,word=b", ["word", "twice", "'a'", "'b'"]),
        ("everything:word=a,count=1,word=b", ["word", "twice"]),
        ("everything:word=[a,count=3", ["'['", "not closed", "double quotes"]),
        ("everything:word=a),count=3", ["')'", "not opened", "double quotes"]),
        ("everything:word=(a],count=3", ["']'", "double quotes"]),
        ('everything:word="a,count=3', ["double quote", "Close"]),
        ('everything:word="a" b', ["behind the quotes"]),
        ("everything:word=a,", ["ends in a comma"]),
        ("everything:word=a,,count=1", ["option=value"]),
        ("everything:word=a, b", ["' b'", "double quotes"]),
    ],
)
def test_a_string_of_two_meanings_is_refused(spec, words):
    with pytest.raises(OptionError) as refused:
        Everything.from_options(parse_spec(spec)[1])
    assert all(word in str(refused.value) for word in words), refused.value


def test_spaces_of_a_text_are_kept_and_those_around_numbers_are_not():
    made = Everything.from_options(parse_spec("everything: word = translate: , count = 3 , mode = off")[1])
    assert (made.word, made.count, made.mode) == (" translate: ", 3, "off")
    assert resolve("text2text:source_prefix=translate: ").source_prefix == "translate: "


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("techniques: [peft]\ntechniques: [task]", ["'techniques'", "twice", "line 1"]),
        ("techniques:\n- adaptive-lr:\n    patience: 1\n    patience: 2", ["'patience'", "twice"]),
        ("techniques:\n- no: {patience: 1}", ["False", "Quote it"]),
        ("techniques:\n- 1: {patience: 1}", ["1", "Quote it"]),
        ("techniques:\n- adaptive-lr: {no: 1}", ["False", "Quote it"]),
        ("techniques:\n- adaptive-lr: {1: 1}", ["1", "Quote it"]),
        ("techniques:\n- adaptive-lr: {? [a] : 1}", ["YAML"]),
        ("techniques:\n- behavioral: {noise: off}", ["noise=False", 'quote them: "off"']),
        ("techniques:\n- adaptive-lr: {patience: 2026-99-99}", ["cannot read"]),
        ("techniques:\n- adaptive-lr: {patience: 2026-11-11}", ["patience", "whole number"]),
        ("techniques:\n- adaptive-lr: {patience: " + "9" * 5000 + "}", ["cannot read"]),
        ("techniques:\n- adaptive-lr: {patience: 0x" + "f" * 5000 + "}", ["patience", "too large"]),
        ("techniques:\n- adaptive-lr: {factor: " + "9" * 400 + "}", ["factor", "a number"]),
        ("techniques:\n- adaptive-lr: {factor: .nan}", ["factor", "a number"]),
        ("techniques:\n- adaptive-lr: {factor: " + "[" * 3000 + "]" * 3000 + "}", ["cannot read"]),
        ("techniques:\n- transfer: {freeze: {a: 1}}", ["freeze", "list"]),
        ("techniques:\n- transfer: {freeze: &a [*a]}", ["freeze", "list"]),
        ("techniques:\n- transfer: {freeze: '" + "[" * 100_000 + "'}", ["freeze", "list"]),
        ("techniques: !!python/object/apply:os.system [ls]", ["YAML"]),
        ("\x00", ["UTF-8"]),
        ('techniques: ["\\ud83d"]', ["half a character"]),
        ("techniques:\n- 'peft:r=1,r=2'", ["twice"]),
    ],
)
def test_a_recipe_of_another_form_is_refused_in_words(tmp_path, content, words):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(PluginError) as refused:
        chosen_techniques(None, file)
    assert all(word in str(refused.value) for word in words), refused.value
    assert len(str(refused.value)) < 1500


def test_a_recipe_may_be_in_utf_16_and_in_no_other_strange_encoding(tmp_path):
    file = tmp_path / "recipe.yaml"
    content = "techniques:\n- text2text: {source_prefix: 'übersetze: '}"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_bytes(content.encode(encoding))
        assert chosen_techniques(None, file)[0].source_prefix == "übersetze: "
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(PluginError, match="UTF-8"):
        chosen_techniques(None, file)


def test_a_key_that_is_merged_may_be_overwritten(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("techniques:\n- adaptive-lr: &base {patience: 1}\n- adaptive-lr: {<<: *base, patience: 2}")
    assert read_recipe(file)[1] == {"adaptive-lr": {"patience": 2}}


@pytest.mark.parametrize(
    ("spec", "idle"),
    [
        ("adaptive-lr:controller=greedy,max_cuts=5", ["max_cuts"]),
        ("adaptive-lr:max_cuts=5", []),
        ("adaptive-lr:controller=plateau,max_scale=5", ["max_scale"]),
        ("task:tau=2", ["tau"]),
        ("task:tau=2,imbalance=logit_adjust", []),
        ("text2text:noise_density=0.2", ["noise_density"]),
        ("multitask:temperature=3", ["temperature"]),
    ],
)
def test_an_option_that_cannot_act_is_named(spec, idle):
    assert list(resolve(spec).idle_options()) == idle
