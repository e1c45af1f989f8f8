"""KTO's batches hold both labels, and their own completions for the KL term."""

import pytest

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")


from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral import MixedLabelSampler  # noqa: E402
from hf_ft_plugins.techniques.behavioral.mixed_labels import spread  # noqa: E402
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_preferences,
    tiny_setting,
)
from tests.techniques.behavioral.trainers import built  # noqa: E402


@pytest.mark.parametrize(
    ("desirable", "undesirable", "batch"), [(20, 20, 4), (33, 8, 8), (9, 40, 4), (8, 9, 8), (3, 3, 2)]
)
def test_every_batch_has_both_labels_and_each_example_is_seen(desirable, undesirable, batch):
    labels = [True] * desirable + [False] * undesirable
    sampler = MixedLabelSampler(labels, batch, seed=3)
    left_out = set()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == len(set(order))
        if sampler.one_label_batches == 0:
            for start in range(0, len(order), batch):
                assert {labels[position] for position in order[start : start + batch]} == {True, False}
        left_out |= set(range(len(labels))) - set(order)
        assert len(order) % batch != 1
        assert order == list(sampler)
    single = (desirable + undesirable) % batch == 1
    assert bool(left_out) == single
    assert len(left_out) != 1 or not single


def test_spread_fills_small_batches_within_their_size():
    assert spread(5, [8, 8, 2]) == [2, 2, 1]
    assert spread(9, [8, 8, 2])[2] == 1
    assert sum(spread(9, [8, 8, 2])) == 9


def test_kto_from_pairs_has_mixed_batches_and_its_own_completions_for_the_kl_term(tmp_path):
    settings = {"contract": "kto", "train_dataset": tiny_preferences(16, turns=2)}

    def looked_at(trainer):
        trainer._created_lr_scheduler = False
        batches = list(trainer.get_train_dataloader())
        mixed = [set(batch["label"].tolist()) == {True, False} for batch in batches]
        return mixed, [kl_pairs_right(batch) for batch in batches]

    mixed, right = looked_at(built(tmp_path / "a", "behavioral", **settings))
    assert all(mixed)
    assert all(right)
    mixed, _ = looked_at(built(tmp_path / "b", **settings))
    assert not any(mixed), "TRL mixes labels itself now: leave the sampler out"


def kl_pairs_right(batch):
    def parts(prefix):
        rows = zip(
            *(batch[f"{prefix}{name}"] for name in ("input_ids", "completion_mask", "attention_mask")), strict=True
        )
        return [
            (tuple(ids[(mask == 0) & (seen == 1)].tolist()), tuple(ids[mask == 1].tolist())) for ids, mask, seen in rows
        ]

    own, mismatched = parts(""), parts("KL_")
    prompts = [prompt for prompt, _ in own] == [prompt for prompt, _ in mismatched]
    completions = [completion for _, completion in own]
    rotated = [completions[-1], *completions[:-1]]
    return prompts and [completion for _, completion in mismatched] == rotated


def test_a_batch_of_one_is_refused_for_kto(tmp_path):
    setting = tiny_setting("kto", per_device_train_batch_size=1, loss_type="apo_zero_unpaired")
    with pytest.raises(PluginError, match="per_device_train_batch_size is 1"):
        tiny_trainer(tmp_path, "behavioral", **setting).get_train_dataloader()


@pytest.mark.parametrize("contract", ["kto", "reward"])
def test_other_contracts_resume_exactly_in_the_middle_of_an_epoch(contract, tmp_path):
    def setting():
        # Metrics are means since the last log, which is older than the checkpoint.
        return tiny_setting(contract, logging_steps=3)

    straight = tiny_trainer(tmp_path / "a", "behavioral", **setting())
    straight.train()
    again = resumed(tmp_path / "b", "behavioral", make_setting=setting)
    outcomes = [outcome(trainer) for trainer in (straight, again)]
    for each in outcomes:
        # Trainer's own mean loss since the last log begins anew.
        each["log"] = [{name: value for name, value in entry.items() if name != "loss"} for entry in each["log"]]
    assert difference(*outcomes) is None
