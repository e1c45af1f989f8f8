"""What the estimate of memory takes for an algorithm's state, against what a run allocates."""

import pytest
import torch

from hf_ft_plugins import LowMemory
from hf_ft_plugins.techniques.low_memory.footprint import STATES
from hf_ft_plugins.testing import tiny_model, tiny_trainer
from tests.techniques.low_memory.models import trained

RANK = 8
ALONE = {"gradient_accumulation_steps": 1, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}


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


def test_where_little_learns_the_log_says_that_there_is_little_to_save(tmp_path, caplog):
    model = tiny_model()
    model.base_model.requires_grad_(False)
    tiny_trainer(tmp_path, "low-memory", model=model, **ALONE).train()
    assert "34 weights learn" in caplog.text
    assert "there is little to save here" in caplog.text
    caplog.clear()
    tiny_trainer(tmp_path, "low-memory", **ALONE).train()
    assert "little to save" not in caplog.text
