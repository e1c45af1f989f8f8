"""What the estimate of memory takes for an algorithm's state, against what a run allocates."""

import pytest
import torch

from hf_ft_plugins import LowMemory
from hf_ft_plugins.techniques.low_memory.footprint import STATES
from tests.techniques.low_memory.models import trained

RANK = 8


def bytes_of_state(optimizer):
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(one.nbytes for one in tensors if one.ndim > 0)


@pytest.mark.parametrize("algorithm", STATES)
def test_the_state_is_as_large_as_the_estimate_says(tmp_path, algorithm):
    if algorithm == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    trainer = trained(tmp_path, LowMemory(algorithm=algorithm, rank=RANK), max_steps=2)
    expected = STATES[algorithm](trainer.model, RANK)
    assert bytes_of_state(trainer.optimizer) == pytest.approx(expected, rel=0.01, abs=1)
