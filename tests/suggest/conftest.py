import pytest

from hf_ft_plugins.memory.estimate import GIB
from hf_ft_plugins.suggest import facts
from hf_ft_plugins.suggest.memory_facts import MemoryFacts


@pytest.fixture
def no_estimate(monkeypatch):
    """An estimate of memory takes seconds: what has nothing to do with it goes without."""
    nothing = MemoryFacts(available=GIB, device="a device", why_unknown="not asked")
    monkeypatch.setattr(facts, "memory_facts", lambda trainer, data, budget: nothing)
