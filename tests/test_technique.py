"""Options: three forms that mean the same, and refusals that say what to do."""

import os
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import yaml

from hf_ft_plugins import registry
from hf_ft_plugins.errors import ConflictError, OptionError, PluginError, UnknownTechniqueError
from hf_ft_plugins.registry import origin, refuse_conflicts, resolve
from hf_ft_plugins.technique import Technique, option, parse_spec
from hf_ft_plugins.techniques.adaptive_lr import AdaptiveLR


@dataclass(frozen=True, kw_only=True)
class Everything(Technique):
    name: ClassVar[str] = "everything"
    summary: ClassVar[str] = "one option of every type"

    flag: bool = option(False, help="a flag")
    count: int = option(1, help="a count")
    rate: float = option(0.1, help="a rate")
    word: str = option("a", help="a word")
    mode: Literal["x", "y"] = option("x", help="a mode")
    maybe: int | None = option(None, help="a count or none")
    names: tuple[str, ...] = option((), help="names")
    sizes: tuple[int, ...] = option((), help="sizes")

    def check(self) -> None:
        self.require(self.count > 0, "count", "it must be positive.")


FULL = Everything(flag=True, count=3, rate=1e-4, word="b c", mode="y", maybe=7, names=("q", "v"), sizes=(1, 2))


@pytest.mark.parametrize("technique", [Everything(), FULL])
def test_string_mapping_and_yaml_give_equal_techniques(technique):
    for form in (str(technique), yaml.safe_load(yaml.safe_dump({"everything": technique.options()}))):
        name, options = parse_spec(form)
        assert name == "everything"
        assert Everything.from_options(options) == technique


def test_values_are_converted_to_the_declared_type():
    made = Everything.from_options({"flag": "yes", "count": "3", "rate": "1e-4", "maybe": "none", "names": "q+v"})
    assert made == Everything(flag=True, count=3, rate=0.0001, maybe=None, names=("q", "v"))
    # YAML 1.1 reads 1e-4 as text.
    assert Everything.from_options(yaml.safe_load("{rate: 1e-4}")).rate == 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": "three"}, ["everything", "count", "'three'", "whole number"]),
        ({"count": 1.5}, ["count", "1.5", "whole number"]),
        ({"count": True}, ["count", "True", "whole number"]),
        ({"rate": "fast"}, ["rate", "'fast'", "a number"]),
        ({"flag": "maybe"}, ["flag", "'maybe'", "true or false"]),
        ({"mode": "z"}, ["mode", "'z'", "one of x, y"]),
        ({"count": 0}, ["count=0", "positive"]),
        ({"cuont": 1}, ["unknown option 'cuont'", "Did you mean 'count'"]),
    ],
)
def test_a_wrong_option_is_refused_with_technique_option_value_and_mend(options, words):
    with pytest.raises(OptionError) as refused:
        Everything.from_options(options)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("spec", ["everything:count", {"a": {}, "b": {}}, {"everything": 3}, 5])
def test_an_unreadable_spec_is_refused(spec):
    with pytest.raises(OptionError, match="cannot read"):
        parse_spec(spec)


def test_a_technique_that_is_no_dataclass_is_refused():
    class Plain(Everything):
        pass

    with pytest.raises(OptionError, match="dataclass"):
        Plain()


def test_an_unknown_technique_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownTechniqueError, match="Did you mean 'adaptive-lr'"):
        resolve("adaptive_lr")


def test_all_ways_to_name_a_technique_agree():
    said = [AdaptiveLR(patience=3), "adaptive-lr:patience=3", {"adaptive-lr": {"patience": 3}}]
    assert len({resolve(form) for form in said}) == 1
    assert resolve(AdaptiveLR) == resolve("adaptive-lr") == resolve({"adaptive-lr": None})


def test_a_built_in_technique_names_its_distribution():
    assert origin(AdaptiveLR)[0] == "hf-ft-plugins"
    assert origin(Everything) == (__name__, "")


def install(folder, name):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_ft_plugins]\n{name} = {name}:Plugin\n")


def test_what_is_installed_is_read_once_and_again_after_an_installation(tmp_path, monkeypatch):
    def offered():
        return [offer.name for offer in registry.offers() if offer.distribution != "hf-ft-plugins"]

    read = []
    entry_points = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda **group: read.append(group) or entry_points(**group))
    monkeypatch.syspath_prepend(tmp_path)
    before = offered()
    assert (offered(), len(read)) == (before, 1)
    install(tmp_path, "first")
    # Two changes within one tick of the file system's clock are one to it.
    os.utime(tmp_path, (1, 1))
    assert offered() == sorted([*before, "first"])
    install(tmp_path / "elsewhere", "second")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert offered() == sorted([*before, "first", "second"])
    monkeypatch.setenv("HF_FT_PLUGINS_DISABLE", "first")
    assert offered() == sorted([*before, "second"])
    assert len(read) == 3


def test_the_same_technique_twice_is_a_conflict():
    with pytest.raises(ConflictError, match="named twice"):
        refuse_conflicts([AdaptiveLR(), AdaptiveLR(patience=3)])


def test_every_refusal_is_one_kind_of_error():
    assert issubclass(OptionError, PluginError)
    assert issubclass(ConflictError, PluginError)
    assert issubclass(UnknownTechniqueError, PluginError)
