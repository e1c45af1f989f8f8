"""Kept rows among the new ones: their share, their turns, epochs, ranks, and batches by a budget of tokens."""

import collections
import dataclasses
import itertools
import logging

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.technique import Technique
from hf_ft_plugins.techniques.sequential.replay_sampler import ReplaySampler, refuse_own_order
from hf_ft_plugins.techniques.text2text.batches import TokenBudgetBatchSampler
from hf_ft_plugins.testing import difference, outcome, tiny_dataset, tiny_trainer
from tests.two_processes import RANKS, resumes_on_two_ranks, straight_and_resumed


def epochs_of(sampler, *epochs):
    orders = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


@pytest.mark.parametrize(
    ("new", "pools", "share"), [(1000, [50], 0.05), (997, [300, 20, 5], 0.1), (40, [9], 0.5), (20_000, [7, 2000], 0.01)]
)
def test_each_new_row_comes_once_an_epoch_and_kept_rows_are_the_share(new, pools, share):
    sampler = ReplaySampler(new, pools, share, seed=3)
    for order in epochs_of(sampler, 0, 1, 5):
        assert len(order) == len(sampler)
        assert sorted(position for position in order if position < new) == list(range(new))
        assert max(order) < new + sum(pools)
        kept = sum(position >= new for position in order)
        assert abs(kept - share * len(order)) < 1


def test_stages_share_evenly_and_no_kept_row_comes_twice_before_all_have_come():
    pools = [50, 13, 4]
    sampler = ReplaySampler(200, pools, 0.1, seed=1)
    drawn = collections.Counter()
    for order in epochs_of(sampler, *range(9)):
        drawn.update(position for position in order if position >= 200)
        start, by_stage = 200, []
        for size in pools:
            counts = [drawn[start + row] for row in range(size)]
            assert max(counts) - min(counts) <= 1
            by_stage.append(sum(counts))
            start += size
        assert max(by_stage) - min(by_stage) <= 1
    control = np.random.default_rng(0).integers(50, size=66)
    counts = np.bincount(control, minlength=50)
    assert counts.max() - counts.min() > 1, "drawing with replacement does not pass"


def test_a_small_share_still_replays_a_row_of_each_stage():
    order = list(ReplaySampler(10, [3, 3], 0.001))
    assert sorted(position // 3 for position in (one - 10 for one in order if one >= 10)) == [0, 1]


def test_the_order_follows_from_seed_and_epoch_alone():
    first, again = ReplaySampler(100, [30], 0.2, seed=4), ReplaySampler(100, [30], 0.2, seed=4)
    assert epochs_of(first, 0, 1, 2) == [epochs_of(again, epoch)[0] for epoch in (0, 1, 2)]
    assert epochs_of(first, 2) == epochs_of(again, 2)
    assert epochs_of(first, 0) != epochs_of(first, 1)
    assert epochs_of(first, 0) != epochs_of(ReplaySampler(100, [30], 0.2, seed=5), 0)


def test_an_iteration_is_not_changed_by_the_next_epoch():
    sampler = ReplaySampler(30, [5], 0.2)
    expected = list(sampler)
    running = iter(sampler)
    sampler.set_epoch(1)
    assert list(running) == expected


def test_kept_rows_are_spread_over_the_epoch():
    order = np.array(list(ReplaySampler(10_000, [500], 0.2, seed=2)))
    tenths = [float((part >= 10_000).mean()) for part in np.array_split(order, 10)]
    assert 0.15 < min(tenths) < max(tenths) < 0.25


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((10, [5], 0), "replay=0 "),
        ((10, [5], 1.0), r"replay=1\.0"),
        ((10, [], 0.1), "replay=0"),
        ((10, [3, 0], 0.1), "kept none"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, says):
    with pytest.raises(PluginError, match=f"^sequential: .*{says}"):
        ReplaySampler(*arguments)


def test_batches_by_a_budget_of_tokens_keep_the_replayed_rows():
    random = np.random.default_rng(0)
    sources, targets = random.integers(3, 20, size=(2, 330))
    sampler = ReplaySampler(300, [20, 10], 0.1, seed=0)
    batches = TokenBudgetBatchSampler(
        sources, targets, max_tokens=200, max_examples=8, sampler=sampler, pool=64, per_step=2
    )
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches.set_epoch(epoch)
        planned = collections.Counter(position for batch in batches for position in batch)
        assert planned == collections.Counter(sampler)


# ---- in a trainer ----


@dataclasses.dataclass(frozen=True)
class Replaying(Technique):
    """Draws by a `ReplaySampler`."""

    name = "replaying"

    def ft_sampler(self, dataset):
        return ReplaySampler(18, [4, 2], 0.25, seed=1)


def replaying_trainer(folder, **changes):
    return tiny_trainer(folder, Replaying(), **changes)


def rows_read(trainer, epochs=(0, 1)):
    rows = [row["input_ids"].tolist() for row in tiny_dataset()]
    loader = trainer.get_train_dataloader()
    read = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        read += [rows.index(ids) for batch in loader for ids in batch["input_ids"].tolist()]
    return read


def test_a_trainer_reads_the_rows_in_the_samplers_order(tmp_path):
    first, second = epochs_of(ReplaySampler(18, [4, 2], 0.25, seed=1), 0, 1)
    assert rows_read(replaying_trainer(tmp_path)) == first + second


def read_on_a_rank(rank, folder):
    return {"rows": rows_read(replaying_trainer(folder / f"run-{rank}", ddp_backend="gloo"), epochs=(1,))}


def test_two_ranks_read_the_order_between_them(on_both_ranks):
    ranks = [rank["rows"] for rank in on_both_ranks(read_on_a_rank)]
    (order,) = epochs_of(ReplaySampler(18, [4, 2], 0.25, seed=1), 1)
    batches = [order[start : start + 2] for start in range(0, 24, 2)]
    assert [list(itertools.chain(*batches[rank::RANKS])) for rank in range(RANKS)] == ranks


def resumed_on_a_rank(rank, folder):
    def make(folder, **changes):
        return replaying_trainer(folder, ddp_backend="gloo", **changes)

    return {"difference": difference(*map(outcome, straight_and_resumed(folder, make)))}


@resumes_on_two_ranks
def test_two_ranks_resume_exactly(on_both_ranks):
    assert [rank["difference"] for rank in on_both_ranks(resumed_on_a_rank)] == [None, None]


# ---- trainers with an order of their own ----


def test_a_trainer_that_asks_for_the_order_passes(tmp_path, caplog):
    refuse_own_order(tiny_trainer(tmp_path, "adaptive-lr"), 0.05)
    assert not caplog.records


@pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer"])
def test_trainers_with_an_order_of_their_own_are_refused(name, tmp_path):
    trl = pytest.importorskip("trl")
    trainer = object.__new__(getattr(trl, name))
    with pytest.raises(PluginError, match=rf"^sequential: replay=0\.05 .*{name}.*replay=0;"):
        refuse_own_order(trainer, 0.05)


@pytest.mark.parametrize("name", ["SFTTrainer", "DPOTrainer", "KTOTrainer"])
def test_trl_trainers_that_take_an_order_pass_in_silence(name, tmp_path, caplog):
    trl = pytest.importorskip("trl")
    trainer = object.__new__(getattr(trl, name))
    trainer.args = tiny_trainer(tmp_path).args
    refuse_own_order(trainer, 0.05)
    assert not caplog.records


def test_a_script_with_a_sampler_of_its_own_is_refused(tmp_path):
    from transformers import Trainer

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return RandomSampler(self.train_dataset, generator=torch.Generator())

    with pytest.raises(PluginError, match="Ordered has an order of its own"):
        refuse_own_order(tiny_trainer(tmp_path, "adaptive-lr", trainer_class=Ordered), 0.05)


def test_a_strategy_that_no_longer_holds_is_said(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, train_sampling_strategy="group_by_length")
    with caplog.at_level(logging.WARNING):
        refuse_own_order(trainer, 0.1)
    assert "train_sampling_strategy='group_by_length'" in caplog.text
    assert "replay=0 to have that order" in caplog.text
