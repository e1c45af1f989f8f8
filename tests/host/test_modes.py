"""Three techniques in the ways of running that `TrainingArguments` offers: each trains, and resumes exactly."""

import pytest

from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer
from hf_ft_plugins.testing.examples.task import tiny_rows

TECHNIQUES = (
    "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false",
    "transfer:strategy=gradual,layer_decay=0.5",
    "task:early_stopping_patience=none",
)
MODES = {
    "workers": {"dataloader_num_workers": 2},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "batch size found": {"auto_find_batch_size": True},
    "epochs": {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch"},
    "smoothed": {"neftune_noise_alpha": 5.0},
    "groups by length": {"train_sampling_strategy": "group_by_length"},
}


def setting():
    return {"train_dataset": tiny_rows(24), "eval_dataset": tiny_rows(40, seed=1)}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_trains_and_resumes_exactly(mode, tmp_path):
    straight = tiny_trainer(tmp_path / "straight", *TECHNIQUES, **setting(), **MODES[mode])
    straight.train()
    again = resumed(tmp_path / "again", *TECHNIQUES, make_setting=setting, **MODES[mode])
    assert difference(outcome(straight), outcome(again)) is None
    assert straight.state.global_step >= 9


def weighted(base):
    class Weighted(base):
        """A script's own class, whose rows are drawn with replacement."""

        def _get_train_sampler(self, train_dataset=None):
            from torch.utils.data import WeightedRandomSampler

            return WeightedRandomSampler([1.0 + index % 3 for index in range(24)], 24)

    return Weighted


def test_a_scripts_sampler_that_draws_from_the_global_state_resumes_exactly(tmp_path):
    from transformers import Trainer

    drawn = {"trainer_class": weighted(Trainer)}
    straight = tiny_trainer(tmp_path / "straight", *TECHNIQUES, **setting(), **drawn)
    straight.train()
    again = resumed(tmp_path / "again", *TECHNIQUES, make_setting=setting, **drawn)
    assert difference(outcome(straight), outcome(again)) is None
    plain = tiny_trainer(tmp_path / "plain", *TECHNIQUES, **setting())
    plain.train()
    assert difference(outcome(straight), outcome(plain)) is not None
