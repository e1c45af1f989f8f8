"""Each figure that a suggestion quotes is the one in the committed results."""

import importlib
import json
import pkgutil

import pytest

from hf_ft_plugins import techniques
from hf_ft_plugins.registry import offers
from hf_ft_plugins.suggest import Figure
from tests.conftest import ROOT


def figures_in(value):
    """The figures in a constant of a module, however they are held."""
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, (dict, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from figures_in(one)


def quoted():
    """Every figure that a suggestion quotes."""
    for technique in pkgutil.iter_modules(techniques.__path__):
        name = f"{techniques.__name__}.{technique.name}.suggestion"
        if importlib.util.find_spec(name) is not None:
            for value in vars(importlib.import_module(name)).values():
                yield from figures_in(value)


# Once, as other tests import some modules anew.
FIGURES = list(quoted())


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.benchmark}: {figure.metric}")
def test_a_quoted_figure_is_the_one_in_the_results(figure):
    rows = json.loads((ROOT / "docs" / "results" / f"{figure.benchmark}.json").read_text())["rows"]
    (row,) = [row for row in rows if row["metric"] == figure.metric]
    measured = row["ours"] - row["baseline"] if figure.field == "difference" else row[figure.field]
    places = len(f"{figure.value}".partition(".")[2])
    assert measured == pytest.approx(figure.value, abs=0.51 * 10**-places)


def test_figures_of_every_technique_with_a_rule_are_looked_at():
    quoting = {"adaptive_lr", "transfer_text", "text2text", "low_memory", "peft_encoder", "multitask", "sequential"}
    assert {figure.benchmark for figure in FIGURES} >= quoting


def test_every_technique_of_ours_either_has_a_rule_or_is_named_as_having_none():
    from hf_ft_plugins import Technique

    silent = {
        offer.name
        for offer in offers()
        if offer.distribution == "hf-ft-plugins" and offer.load().suggestion.__func__ is Technique.suggestion.__func__
    }
    assert silent == {"layer-removal"}
