"""The head's rate while it learns alone, what a run leaves frozen, and what a probe keeps and how long it takes."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import RobertaConfig, RobertaForSequenceClassification, TrainerCallback, default_data_collator

from hf_ft_plugins import lr_scale
from hf_ft_plugins.techniques.transfer import GradualUnfreezing, Transfer, fit_probe
from hf_ft_plugins.techniques.transfer.features import Features
from hf_ft_plugins.techniques.transfer.layers import HEAD, MARK
from hf_ft_plugins.testing import LENGTH, VOCABULARY, tiny_dataset, tiny_model, tiny_trainer


class HeadRates(TrainerCallback):
    """The factor on the head's rate at each step."""

    def __init__(self):
        self.factors = []

    def on_pre_optimizer_step(self, args, state, control, *, optimizer, **kwargs):
        groups = lr_scale.innermost(optimizer).param_groups
        self.factors.append(next(lr_scale.scale_of(group) for group in groups if group.get(MARK) == HEAD))


def test_the_head_has_a_rate_of_its_own_only_while_it_learns_alone(tmp_path):
    rates = HeadRates()
    options = {"cache_features": "never", "unfrozen_at": 0.5, "probe_learning_rate": 4e-3}
    trainer = tiny_trainer(
        tmp_path, Transfer(strategy="lpft", **options), callbacks=[rates], max_steps=4, learning_rate=1e-3
    )
    trainer.train()
    assert rates.factors == pytest.approx([4.0, 4.0, 1.0, 1.0])


def test_after_a_run_nothing_is_frozen_that_was_not_before(tmp_path):
    model = tiny_model()
    word_embeddings = model.get_input_embeddings().weight.requires_grad_(False)
    technique = Transfer(strategy="probe", cache_features="never", new_head=False)
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, *, model, **kwargs):
            seen.append(sum(weight.requires_grad for weight in model.parameters()))

    tiny_trainer(tmp_path, technique, model=model, max_steps=2, callbacks=[Look()]).train()
    assert seen == [2, 2], "the head alone learns"
    assert [weight for weight in model.parameters() if not weight.requires_grad] == [word_embeddings]


@pytest.mark.parametrize(("steps", "short"), [(249, True), (250, False)])
def test_a_run_of_just_as_many_steps_is_not_short(steps, short):
    part = GradualUnfreezing("lpft", short_run=250)
    assert part._is_short(SimpleNamespace(max_steps=steps)) is short


def test_the_loss_of_a_probe_is_divided_by_the_labels_that_count():
    asked = []

    def compute_loss(model, inputs, num_items_in_batch=None):
        asked.append(int(num_items_in_batch))
        return torch.zeros(())

    part = GradualUnfreezing("probe")
    part.set_trainer(SimpleNamespace(compute_loss=compute_loss))
    part._loss(None, {"labels": torch.tensor([[1, 0, -100], [2, -100, -100]])})
    assert asked == [3]


def batches(rows, size=8):
    return DataLoader(rows, batch_size=size, collate_fn=default_data_collator)


def test_a_probe_makes_forty_passes_at_least_and_depends_on_its_seed_alone():
    drawn = itertools.count()

    def fitted(seed, steps=1):
        model = tiny_model()
        torch.rand(1 + next(drawn))  # The global random state does not count.
        return fit_probe(model, batches(tiny_dataset(300), 100), steps=steps, seed=seed)

    losses = fitted(0)
    assert len(losses) == 40 * 2
    assert len(fitted(0, steps=90)) == 90
    assert fitted(1) != losses
    assert fitted(0) == losses


def test_of_a_head_that_reads_the_first_token_only_that_token_is_kept():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH + 2, pad_token_id=0, **sizes)
    model = RobertaForSequenceClassification(config).eval()
    features = Features.of(
        model, model.roberta, list(batches(tiny_dataset(16))), lambda model, batch: model(**batch).loss
    )
    assert {name: tuple(value.shape) for name, value in features._read.items()} == {"last_hidden_state": (16, 1, 16)}
