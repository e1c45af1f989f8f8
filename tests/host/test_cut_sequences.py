"""Context and sequence parallelism: what needs whole sequences is refused by name."""

from types import SimpleNamespace

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.cut_sequences import refuse_cut_sequences
from hf_ft_plugins.registry import resolve
from hf_ft_plugins.testing import tiny_trainer

WHOLE = ("task", "text2text", "multitask", "behavioral", "layer-removal:number=1", "sequential:lwf=0.1", "transfer")
ANY = ("adaptive-lr", "low-memory:algorithm=adalomo", "peft")


def cut_by(**sizes):
    return SimpleNamespace(**({"cp_size": 1, "sp_size": 1} | sizes))


@pytest.mark.parametrize("sizes", [{"cp_size": 2}, {"sp_size": 4}])
@pytest.mark.parametrize("spec", WHOLE)
def test_what_needs_whole_sequences_is_refused(spec, sizes):
    name, size = next(iter(sizes.items()))
    with pytest.raises(PluginError, match=f"^{spec.partition(':')[0]}: {name}={size} of parallelism_config cuts"):
        refuse_cut_sequences([resolve("adaptive-lr"), resolve(spec)], cut_by(**sizes))


def refused(specs, parallelism):
    found = []
    for spec in specs:
        try:
            refuse_cut_sequences([resolve(spec)], parallelism)
        except PluginError:
            found.append(spec)
    return found


def test_what_does_not_look_at_sequences_is_not():
    assert refused(ANY + WHOLE, cut_by(cp_size=2)) == list(WHOLE)


@pytest.mark.parametrize("parallelism", [None, cut_by(), cut_by(cp_size=None)])
def test_whole_sequences_are_fine(parallelism):
    assert refused(WHOLE, parallelism) == []


def test_the_host_asks_before_it_is_trained(tmp_path, monkeypatch):
    from hf_ft_plugins.host import trainer

    asked = []
    monkeypatch.setattr(trainer, "refuse_cut_sequences", lambda techniques, parallelism: asked.append(parallelism))
    tiny_trainer(tmp_path, "adaptive-lr")
    assert len(asked) == 1
