"""Multi-task sampling: shuffles without a table, shares against their formulas, a stream that loses nothing."""

import collections
import itertools
import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import ConcatDataset, DataLoader

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.keyed_permutation import KeyedPermutation, key_of, permuted
from hf_ft_plugins.techniques.multitask.mixing import mixes
from hf_ft_plugins.techniques.multitask.mixing.quotas import FixedQuotas
from hf_ft_plugins.techniques.multitask.mixing.sampler import MultiTaskSampler

SIZES = (1000, 333, 77, 50)
OFFSETS = (0, 1000, 1333, 1410)


def epochs_of(sampler, *epochs):
    """The batches of some epochs, one after the other."""
    batches = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        batches += sampler
    return batches


def sources_in(sampler, batch):
    return {sampler.source_of(position) for position in batch}


# ---- shuffles ----


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16, 1000, 65537])
def test_a_permutation_takes_each_place_once(size):
    shuffled = KeyedPermutation(size, (0, 1, 2))(np.arange(size))
    assert np.array_equal(np.sort(shuffled), np.arange(size))
    backwards = KeyedPermutation(size, (0, 1, 2))(np.arange(size)[::-1])
    assert np.array_equal(backwards[::-1], shuffled), "any part, in any order"


def test_a_permutation_may_be_huge():
    size, places = 2**62, np.arange(2**62 - 100_000, 2**62)
    shuffled = KeyedPermutation(size, (0,))(places)
    assert len(set(shuffled.tolist())) == len(places)
    assert 0 <= shuffled.min() < size / 1000
    assert size * 0.999 < shuffled.max() < size
    with pytest.raises(ValueError, match=r"1 to 2\*\*62"):
        KeyedPermutation(size + 1, (0,))


def excess(counts):
    """By how many standard deviations the chi-square of counts that should be equal exceeds its mean."""
    freedom = counts.size - 1
    chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    return (chi_square - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("size", [5, 12, 100])
def test_any_two_places_are_equally_likely_over_keys(size):
    keys = 40 * size * size
    places = np.tile([0, 1], keys)
    firsts, seconds = (
        permuted(places, np.full(2 * keys, size), np.repeat(key_of(9, np.arange(keys)), 2)).reshape(-1, 2).T
    )
    together = np.bincount(firsts * size + seconds, minlength=size * size).reshape(size, size)
    assert excess(together[~np.eye(size, dtype=bool)]) < 5


def test_neighbours_and_keys_look_unrelated():
    size, places = 10**9, np.arange(100_000)

    def worst(of, other):
        grid = np.histogram2d(of / size, other / size, bins=20, range=[[0, 1], [0, 1]])[0]
        steps = np.bincount((((other - of) % size) * 50 / size).astype(int), minlength=50)
        return max(excess(grid), excess(steps), abs(np.corrcoef(of, other)[0, 1]) * len(of) ** 0.5)

    one, another = KeyedPermutation(size, (0, 0, 0))(places), KeyedPermutation(size, (0, 0, 1))(places)
    assert worst(one[:-1], one[1:]) < 5
    assert worst(one, another) < 5
    affine = places * 618033989 % size
    assert worst(affine[:-1], affine[1:]) > 100, "the control is no shuffle"


# ---- shares ----


def test_mixes_are_those_of_the_papers():
    sizes = np.array(SIZES)
    alpha = {0: 1, 2: 0.6, 4: 0.2, 9: 0.2}
    powers = {1.0: mixes.proportional(SIZES), 0.5: mixes.temperature(SIZES, 2), 0.0: mixes.uniform(SIZES)}
    for exponent, mix in [*powers.items(), *((alpha[epoch], mixes.annealed(SIZES, epoch, 5)) for epoch in alpha)]:
        np.testing.assert_allclose(mix, sizes**exponent / (sizes**exponent).sum(), rtol=1e-12)
    assert mixes.annealed(SIZES, 0, 1) == pytest.approx(mixes.proportional(SIZES))
    assert mixes.weighted([0, 1, 3], 3).tolist() == [0, 0.25, 0.75]
    assert mixes.unimax([10, 100, 1000], 600, 4) == pytest.approx([40 / 600, 280 / 600, 280 / 600])


@pytest.mark.parametrize("seed", range(5))
def test_unimax_fills_all_sources_to_one_level(seed):
    random = np.random.default_rng(seed)
    sizes, budget, passes = random.integers(1, 1000, 12), 5000, 2.5
    low, high = 0.0, 1e6
    for _ in range(100):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(level, sizes * passes).sum() < budget else (low, level)
    np.testing.assert_allclose(mixes.unimax(sizes, budget, passes), np.minimum(low, sizes * passes) / budget, rtol=1e-9)
    sampler = MultiTaskSampler(sizes, 4, mix="unimax", max_passes=passes, steps_per_epoch=budget // 20, epochs=5)
    counts = collections.Counter(itertools.chain(*epochs_of(sampler, *range(5))))
    assert max(counts.values()) <= 3 + 1, "one slot more than expected may begin another pass"


def test_adaptive_mixes_are_their_formulas():
    shares = mixes.loss_ratio([1.0, 3.0, None, 2.0], [4.0, 4.0, None, 2.0])
    expected = [0.25 * 3 * ratio / 2 for ratio in (0.25, 0.75)] + [0.25] + [0.25 * 3 / 2]
    np.testing.assert_allclose(shares, 0.1 / 4 + 0.9 * np.array(expected))
    shares = mixes.progress([1.0, 3.0, 5.0, 2.0], [4.0, 4.0, 2.0, None])
    expected = [0.75 * 0.75, 0.75 * 0.25, 0, 0.25]
    np.testing.assert_allclose(shares, 0.1 / 4 + 0.9 * np.array(expected))
    assert mixes.progress([2.0, 2.0], [1.0, 2.0]).tolist() == [0.5, 0.5]
    assert mixes.loss_ratio([None, 1.0], [None, 0.0]).tolist() == [0.5, 0.5]


RARE = (1e6, *range(1, 12), *range(1, 12))


def counted(weights, counts_of):
    """Counts and expectations at the ends of 1500 blocks of about 64 slots; the second epoch is less skewed."""
    shares = np.stack([mixes.weighted(weights, len(weights)), mixes.weighted(np.sqrt(weights), len(weights))])
    quotas = FixedQuotas(shares, 6407, 3, 192)
    counts = np.array([counts_of(quotas, block) for block in range(1500)])
    steps = np.array([quotas.first_step(block) for block in range(1500)])[:, None]
    expected = 3 * (np.minimum(steps, 6407) * shares[0] + np.maximum(steps - 6407, 0) * shares[1])
    assert np.array_equal(counts.sum(axis=1), 3 * steps[:, 0])
    return counts, expected


@pytest.mark.parametrize("weights", [SIZES, RARE], ids=["all often", "some rarely"])
def test_counts_keep_to_the_shares(weights):
    counts, expected = counted(weights, FixedQuotas.counts)
    assert np.abs(counts - expected).max() < 1
    assert (np.diff(counts, axis=0) >= 0).all()


def test_rounding_each_block_by_itself_would_take_slots_back():
    counts, _ = counted(RARE, FixedQuotas._rounded)
    assert (np.diff(counts, axis=0) < 0).any()


# ---- the stream ----


@pytest.mark.parametrize("unit", ["batch", "example"])
@pytest.mark.parametrize("mix", ["proportional", "temperature", "round_robin", "annealed"])
def test_every_pass_has_each_example_once_and_none_is_lost(unit, mix):
    sampler = MultiTaskSampler(SIZES, 8, mix=mix, unit=unit, world_size=3, epochs=4)
    batches = epochs_of(sampler, *range(12))
    assert {len(batch) for batch in batches} == {8}
    drawn = np.array(batches).ravel()
    assert len(drawn) == 12 * 8 * len(sampler) == 12 * 24 * sampler.steps
    for offset, size in zip(OFFSETS, SIZES, strict=True):
        own = drawn[(drawn >= offset) & (drawn < offset + size)] - offset
        passes = [own[start : start + size] for start in range(0, len(own), size)]
        assert len(passes) > 3
        assert all(len(np.unique(part)) == len(part) for part in passes)
        assert not np.array_equal(passes[0], passes[1])
        by_chance = np.random.default_rng(0).integers(0, size, size)
        assert len(np.unique(by_chance)) < size, "the control draws without passes"


def test_a_proportional_epoch_is_a_pass():
    sampler = MultiTaskSampler([640, 320, 64], 16, world_size=2)
    for epoch in range(3):
        assert sorted(itertools.chain(*epochs_of(sampler, epoch))) == list(range(1024))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_micro_step_is_of_one_source_on_all_ranks(world_size):
    setting = {"world_size": world_size, "mix": "uniform"}
    sampler = MultiTaskSampler(SIZES, 8, **setting)
    order = []
    for step, positions in enumerate(np.reshape(epochs_of(sampler, 0, 1), (2 * sampler.steps, -1)).tolist()):
        (source,) = sources_in(sampler, positions)
        assert source == sampler.source_at(step)
        order.append(source)
    shares = np.bincount(order) / len(order)
    np.testing.assert_allclose(shares, 0.25, atol=1 / len(order))
    assert order != sorted(order)
    mixed = MultiTaskSampler(SIZES, 8, unit="example", **setting)
    assert any(len(sources_in(mixed, batch)) > 1 for batch in mixed), "the control mixes"
    in_turn = MultiTaskSampler(SIZES, 8, mix="round_robin", world_size=world_size)
    assert [in_turn.source_at(step) for step in range(6)] == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("unit", ["batch", "example"])
def test_the_order_follows_from_seed_epoch_and_place_alone(unit):
    setting = {"batch_size": 8, "world_size": 2, "unit": unit, "mix": "temperature"}
    sampler = MultiTaskSampler(SIZES, **setting)
    straight = epochs_of(sampler, 0, 1, 2)
    length = len(sampler)
    assert epochs_of(MultiTaskSampler(SIZES, **setting), 2, 0) == straight[2 * length :] + straight[:length]
    assert epochs_of(MultiTaskSampler(SIZES, seed=1, **setting), 0) != straight[:length]
    sampler.set_epoch(1)
    for steps in (0, 1, 40, sampler.steps):
        sampler.seek(steps)
        assert list(sampler) == [[]] * (2 * steps) + straight[length + 2 * steps : 2 * length]
        sampler.seek(steps, placeholders=False)
        assert list(sampler) == straight[length + 2 * steps : 2 * length]
        assert list(sampler) == straight[length : 2 * length], "only the next iteration begins elsewhere"


def test_blocks_end_with_the_epoch(monkeypatch):
    monkeypatch.setattr("hf_ft_plugins.techniques.multitask.mixing.sampler.BLOCK", {"batch": 16, "example": 16})
    sampler = MultiTaskSampler(SIZES, 8, mix="annealed", epochs=3)
    blocks = [sampler.block_of(step) for step in range(3 * sampler.steps)]
    per_epoch = -(-sampler.steps // 16)
    assert blocks == sorted(blocks)
    assert set(blocks) == set(range(3 * per_epoch))
    for epoch in range(3):
        assert blocks[epoch * sampler.steps] == epoch * per_epoch
        assert sampler.probabilities(epoch * per_epoch) == mixes.annealed(SIZES, epoch, 3).tolist()
        drawn = collections.Counter(sources_in(sampler, batch).pop() for batch in epochs_of(sampler, epoch))
        expected = mixes.annealed(SIZES, epoch, 3) * sampler.steps
        np.testing.assert_allclose([drawn[source] for source in range(4)], expected, atol=2)


def test_ranks_agree_and_resume_under_accelerate():
    def ranks(skipped, world_size=2):
        loaders = []
        for rank in range(2):
            sampler = MultiTaskSampler(SIZES, 8, world_size=world_size, mix="uniform", seed=3)
            sampler.set_epoch(2)
            sampler.seek(skipped)
            loaders.append(list(SkipBatchSampler(BatchSamplerShard(sampler, 2, rank), skipped)))
        return sampler, loaders

    sampler, straight = ranks(0)
    assert [len(rank) for rank in straight] == [sampler.steps] * 2
    assert straight[0] != straight[1]

    def agreeing(batches):
        return [
            sources_in(sampler, first) == sources_in(sampler, second) for first, second in zip(*batches, strict=True)
        ]

    assert all(agreeing(straight))
    assert not all(agreeing(ranks(0, world_size=1)[1])), "the control knows of one rank alone"
    for skipped in (1, 30):
        assert ranks(skipped)[1] == [rank[skipped:] for rank in straight]


def test_it_is_a_batch_sampler_and_can_be_pickled():
    data = ConcatDataset([[f"{name}{row}" for row in range(size)] for name, size in zip("abcd", SIZES, strict=True)])
    sampler = MultiTaskSampler(SIZES, 8)
    rows = list(DataLoader(data, batch_sampler=sampler, collate_fn=list))
    assert rows == [[data[position] for position in batch] for batch in sampler]
    assert len(rows) == len(sampler) == 183
    sampler.set_epoch(1)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)
    alone = MultiTaskSampler([1024], 32)
    assert sorted(itertools.chain(*alone)) == list(range(1024))


@pytest.mark.parametrize("unit", ["batch", "example"])
def test_memory_does_not_depend_on_the_data(unit):
    sampler = MultiTaskSampler([10**11, 10**10, 1000], 32, unit=unit, mix="temperature")
    sampler.set_epoch(2)
    sampler.seek(10**9, placeholders=False)
    tracemalloc.start()
    drawn = list(itertools.islice(sampler, 5000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 5000
    assert peak < 32 * 2**20


# ---- adaptive mixes ----


def learned(sampler, losses, first=0, last=9):
    """Batches of blocks `first` to `last` - 1 as a training that reads one batch ahead draws them."""
    sampler.seek(first * 10, placeholders=False)
    batches = []
    for step, batch in enumerate(itertools.islice(sampler, (last - first) * 10), first * 10):
        batches.append(batch)
        if step % 10 == 0 and step > first * 10:
            sampler.tell(step // 10 - 1, losses[step // 10 - 1])
    return batches


@pytest.mark.parametrize("mix", mixes.ADAPTIVE)
def test_an_adaptive_mix_learns_and_resumes_exactly(mix):
    setting = {"batch_size": 4, "mix": mix, "update_every": 10, "steps_per_epoch": 90}
    random = np.random.default_rng(0)
    losses = [[*(random.random(3) * (10 - block)).tolist(), None if block < 4 else 1.0] for block in range(9)]
    sampler = MultiTaskSampler(SIZES, **setting)
    straight = learned(sampler, losses)
    assert sampler.probabilities(0) == sampler.probabilities(1) == mixes.proportional(SIZES).tolist()
    before = losses[0] if mix == "loss_ratio" else losses[2]
    assert sampler.probabilities(5) == getattr(mixes, mix)(losses[3], before).tolist()
    assert sampler.probabilities(5)[3] == pytest.approx(0.25), "never measured"
    sizes = [len(batches) for batches in (straight, learned(MultiTaskSampler(SIZES, **setting), losses, last=5))]
    assert sizes == [90, 50]

    until = MultiTaskSampler(SIZES, **setting)
    learned(until, losses, last=5)
    until.tell(4, losses[4])
    state = json.loads(json.dumps(until.state_dict()))
    again = MultiTaskSampler(SIZES, **setting)
    again.load_state_dict(state)
    assert learned(again, losses, first=5) == straight[50:]
    other = MultiTaskSampler(SIZES, **setting)
    other.load_state_dict({**state, "told": [[1.0, 2.0, 3.0, 4.0]] * 5})
    assert learned(other, losses, first=5) != straight[50:]


def test_reading_ahead_too_far_is_refused():
    sampler = MultiTaskSampler(SIZES, 4, mix="progress", update_every=10)
    batches = iter(sampler)
    assert len(list(itertools.islice(batches, 20))) == 20
    with pytest.raises(PluginError, match="block 2 is drawn, but the losses of block 0 were not told"):
        next(batches)
    sampler.tell(0, [1.0] * 4)
    sampler.seek(20)
    assert len(list(itertools.islice(sampler, 30))) == 30


def test_a_loss_that_is_not_finite_is_left_out_and_said(caplog):
    sampler = MultiTaskSampler([10, 10], 4, names=["a", "b"], mix="loss_ratio", update_every=10)
    sampler.tell(0, [1.0, float("nan")])
    assert "the loss of 'b' in block 0 is nan" in caplog.text
    assert sampler.state_dict()["told"] == [[1.0, None]]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sizes": [3, 0], "names": ["ner", "pos"]}, "the data set 'pos' has 0 examples"),
        ({"sizes": []}, "no data set"),
        ({"names": ["ner"]}, "1 names for 2 data sets"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 must be 1 or more"),
        ({"mix": "proportionl"}, "mix='proportionl' is unknown. Did you mean 'proportional'?"),
        ({"unit": "token"}, "unit='token' is unknown. Take one of batch, example"),
        ({"mix": "weights"}, "Give weights"),
        ({"weights": [1, 2]}, "Give weights with mix='weights' alone"),
        ({"mix": "weights", "weights": [1, 2, 3]}, "3 weights for 2 data sets"),
        ({"mix": "weights", "weights": [1, -2]}, "must be finite, 0 or more"),
        ({"mix": "weights", "weights": [0, 0]}, "one of them above 0"),
        ({"mix": "temperature", "temperature": 0}, "temperature=0 must be above 0"),
        ({"mix": "unimax", "max_passes": 0}, "max_passes=0 must be above 0"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(PluginError) as error:
        MultiTaskSampler(**{"sizes": [3, 5], "batch_size": 2, **setting})
    assert message in str(error.value)


def test_bad_use_is_refused():
    fixed = MultiTaskSampler([30, 50], 2, unit="example")
    adaptive = MultiTaskSampler([30, 50], 2, mix="loss_ratio")
    state = {"update_every": 256, "told": [[1.0, 1.0]]}
    for call, message in (
        (lambda: fixed.tell(0, [1.0, 1.0]), "does not learn"),
        (lambda: fixed.source_at(0), "of no single source"),
        (lambda: fixed.seek(41), "step 41 of an epoch of 40"),
        (lambda: fixed.load_state_dict(state), "learned from losses, and mix='proportional' is fixed"),
        (lambda: adaptive.load_state_dict({}), "was fixed, and mix='loss_ratio' learns"),
        (lambda: adaptive.load_state_dict({**state, "update_every": 8}), "Resume with that"),
        (lambda: adaptive.load_state_dict({**state, "told": [[1.0]]}), "1 losses for 2 data sets"),
        (lambda: adaptive.tell(1, [1.0, 1.0]), "losses of block 1 are told, those of 0 come next"),
        (lambda: adaptive.tell(0, [1.0]), "1 losses for 2 data sets"),
    ):
        with pytest.raises(PluginError, match=message):
            call()


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(MultiTaskSampler(SIZES, 8))
    assert torch.equal(before, torch.get_rng_state())
