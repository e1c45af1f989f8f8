"""Streaming data in batches by a budget: every pair once, the same plan on every rank, exact resume."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.text2text import PooledBudgetBatches, Text2Text, TextPairCollator
from hf_ft_plugins.techniques.text2text.batches import padded_tokens
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer
from hf_ft_plugins.testing.examples import text2text
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5

datasets = pytest.importorskip("datasets")
split_dataset_by_node = pytest.importorskip("datasets.distributed").split_dataset_by_node

TOKENIZER = ByT5Tokenizer()


class Stream(torch.utils.data.IterableDataset):
    """Rows in an order of their own in every epoch."""

    def __init__(self, rows, shuffled=False):
        self.rows, self.shuffled, self.epoch = rows, shuffled, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.rows)) if self.shuffled else None
        return iter(self.rows) if order is None else (self.rows[index] for index in order)


def rows_of(number, seed=0):
    """Pairs of many lengths, the first id of a source its number, on two digits."""
    random = np.random.default_rng(seed)
    source = random.lognormal(2.5, 0.6, number).astype(int) + 3
    target = np.maximum(1, (source * random.lognormal(0, 0.3, number)).astype(int))
    return [
        {"input_ids": [row // 250 + 3, row % 250 + 3, *[9] * (s - 2)], "labels": [9] * t}
        for row, (s, t) in enumerate(zip(source.tolist(), target.tolist(), strict=True))
    ]


def batches_of(rows, epoch=0, **options):
    settings = {"max_tokens": 400, "pool": 128, **options}
    batches = PooledBudgetBatches(
        rows if isinstance(rows, torch.utils.data.IterableDataset) else Stream(rows),
        TextPairCollator(TOKENIZER, tiny_t5()),
        **settings,
    )
    batches.set_epoch(epoch)
    return batches


def numbers(batch):
    return [(int(row["source"][0]) - 3) * 250 + int(row["source"][1]) - 3 for row in batch]


def plan(rows, **options):
    return [numbers(batch) for batch in batches_of(rows, **options)]


# ---- the part ----


@pytest.mark.parametrize(("per_step", "pool"), [(1, 128), (4, 128), (6, 100), (6, 10), (2, 10_000)])
def test_every_pair_comes_once_within_the_budget_and_in_whole_steps(per_step, pool):
    rows = rows_of(1000)
    cut = plan(rows, per_step=per_step, pool=pool)
    assert sorted(row for batch in cut for row in batch) == list(range(1000))
    assert len(cut) % per_step == 0
    longest = [(len(row["input_ids"]), len(row["labels"])) for row in rows]
    assert max(len(b) * (max(longest[i][0] for i in b) + max(longest[i][1] for i in b)) for b in cut) <= 400


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_have_as_many_batches_and_share_none(world_size):
    rows = rows_of(700)
    ranks = [plan(rows, per_step=2 * world_size, world_size=world_size, rank=rank) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(700))
    # Dealt out of one plan, batch by batch.
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == plan(rows, per_step=2 * world_size)


def test_the_plan_depends_on_seed_and_epoch_and_nothing_else():
    rows = rows_of(300)
    again = batches_of(rows)
    assert [numbers(batch) for batch in again] == [numbers(batch) for batch in again] == plan(rows)
    assert len({str(plan(rows, **which)) for which in ({}, {"epoch": 1}, {"seed": 1}, {"epoch": 1, "seed": 1})}) == 4


def test_the_epoch_reaches_the_stream():
    rows = rows_of(200)
    stream = Stream(rows, shuffled=True)
    batches = batches_of(stream, epoch=3)
    list(batches)
    assert stream.epoch == 3


def test_fewer_pairs_than_a_step_has_batches_are_repeated_and_counted():
    batches = batches_of(rows_of(3), per_step=8)
    cut = [numbers(batch) for batch in batches]
    assert len(cut) == 8
    assert {row for batch in cut for row in batch} == {0, 1, 2}
    assert (batches.tally.pairs, batches.tally.repeated) == (3, 5)


def test_a_pool_pads_far_less_than_batches_in_the_order_of_the_stream(caplog):
    rows = rows_of(6000)
    source, target = (np.array([len(row[name]) for row in rows]) for name in ("input_ids", "labels"))
    real = (source + target).sum()
    by_chance = np.split(np.arange(6000), range(16, 6000, 16))
    with caplog.at_level(logging.INFO, logger="hf_ft_plugins"):
        batches = batches_of(rows, pairs=16, max_tokens=None, pool=2048, per_step=4)
        number = len(list(batches))
    wasted = batches.tally.padded - batches.tally.real
    assert batches.tally.real == real
    assert wasted < 0.2 * (padded_tokens(by_chance, source, target) - real)
    assert abs(number - len(by_chance)) < 0.06 * len(by_chance)
    said = [record.getMessage() for record in caplog.records if "in all" in record.getMessage()]
    assert len(said) == 1
    assert f"{100 * batches.tally.padding():.1f} % of their slots are padding" in said[0]


def test_texts_are_tokenized_as_the_collator_does():
    texts = [{"source": "a cat " * (row % 5), "target": "un chat " * (1 + row % 3)} for row in range(60)]
    collate = TextPairCollator(TOKENIZER, tiny_t5(), source_prefix="fr: ", max_source=20)

    def pairs(batches):
        return Counter(
            (tuple(ids[mask == 1].tolist()), tuple(labels[labels != -100].tolist()))
            for batch in batches
            for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        )

    streamed = PooledBudgetBatches(datasets.Dataset.from_list(texts).to_iterable_dataset(), collate, max_tokens=200)
    loader = torch.utils.data.DataLoader(streamed, batch_size=None, collate_fn=collate)
    assert pairs(loader) == pairs([collate(texts)])


def test_causal_pairs_are_prompt_and_target_and_masked_rows_stay():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, **shape))
    collate = TextPairCollator(TOKENIZER, model)
    # A prompt and a target of as many tokens.
    [batch] = PooledBudgetBatches(Stream([{"source": "abc", "target": "de"}]), collate, max_tokens=99)
    assert (collate(batch)["labels"] == -100).sum() == 3
    masked = [{"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}]
    batches = PooledBudgetBatches(Stream(masked), collate, max_tokens=99)
    [batch] = batches
    assert collate(batch)["labels"].tolist() == [[-100, -100, 7, 1]]
    assert batches.tally.real == 4


def test_empty_targets_are_dropped_and_named_or_too_many(caplog):
    rows = [*tiny_pairs(10), {"input_ids": [5, 1], "labels": []}, *tiny_pairs(9, seed=1)]
    collate = TextPairCollator(TOKENIZER, tiny_t5())
    batches = PooledBudgetBatches(Stream(rows), collate, max_tokens=100, max_empty_share=0.1)
    assert sum(map(len, batches)) == 19
    assert "dropped 1 rows of the stream without a target, rows 10" in caplog.text
    with pytest.raises(PluginError, match=r"1 of the first 20 rows of the stream have no target \(rows 10"):
        list(PooledBudgetBatches(Stream(rows), collate, max_tokens=100))


def test_what_cannot_be_read_is_named():
    collate = TextPairCollator(TOKENIZER, tiny_t5())

    def read(rows, **options):
        return list(PooledBudgetBatches(Stream(rows), collate, **{"max_tokens": 100, "pool": 8, **options}))

    with pytest.raises(PluginError, match="row 9 of the stream has no 'labels'"):
        read([*tiny_pairs(9), {"input_ids": [1], "labels": None}])
    with pytest.raises(PluginError, match="row 0 of the stream has no 'source', only text"):
        read([{"text": "a"}])
    with pytest.raises(PluginError, match="has no row"):
        read([])
    with pytest.raises(PluginError, match="needs max_tokens, or pairs"):
        read([], max_tokens=None)
    with pytest.raises(PluginError, match="a multiple of world_size=2"):
        read([], world_size=2, per_step=3)
    split = split_dataset_by_node(datasets.Dataset.from_list(tiny_pairs(4)).to_iterable_dataset(), 0, 2)
    with pytest.raises(PluginError, match="was split by node"):
        PooledBudgetBatches(split, collate, max_tokens=100)


def test_a_pair_over_the_budget_is_a_batch_of_its_own_and_said(caplog):
    rows = [*rows_of(20), {"input_ids": [4, 4, *[9] * 500], "labels": [9]}]
    assert [251] in plan(rows)
    assert "exceed max_tokens=400" in caplog.text


def test_one_worker_gives_the_same_batches_in_every_epoch_and_several_are_refused():
    rows = rows_of(300)

    def loaded(workers, **options):
        batches = batches_of(Stream(rows, shuffled=True))
        loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, **options)
        epochs = []
        for epoch in range(3):
            batches.set_epoch(epoch)
            epochs.append([numbers(batch) for batch in loader])
        return epochs

    straight = loaded(0)
    assert len(set(map(str, straight))) == 3
    assert loaded(1) == loaded(1, persistent_workers=True) == straight
    with pytest.raises(PluginError, match="Set dataloader_num_workers to 1"):
        loaded(2)


# ---- in a trainer ----


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def setting(shuffled=True, number=45):
    return {**text2text.setting(), "train_dataset": Stream(tiny_pairs(number), shuffled)}


TECHNIQUE = Text2Text(target_tokens=24, pool=16)


class Seen(TrainerCallback):
    """The epochs as they end, and the steps they end at."""

    def __init__(self):
        self.ends = []

    def on_epoch_end(self, args, state, control, **kwargs):
        self.ends.append((state.epoch, state.global_step))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The outcome of a run of 14 steps, 8 of them in the first pass."""
    trainer = tiny_trainer(tmp_path_factory.mktemp("straight"), TECHNIQUE, **setting())
    trainer.train()
    assert text2text.acted(TECHNIQUE, trainer)
    return outcome(trainer)


@pytest.mark.parametrize("stop_at", [5, 8, 12])
def test_a_stream_resumes_exactly_in_any_pass(stop_at, straight, tmp_path):
    again = resumed(tmp_path, TECHNIQUE, stop_at=stop_at, save_steps=1, make_setting=setting)
    assert difference(straight, outcome(again)) is None


def test_control_stock_counting_resumes_in_the_wrong_place(straight, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ft_plugins.host.streams._place", lambda epoch, global_step, max_steps: (0, global_step))
    again = resumed(tmp_path, TECHNIQUE, stop_at=12, make_setting=setting)
    assert difference(straight["weights"], outcome(again)["weights"])


def test_passes_end_where_the_stream_does_and_a_checkpoint_of_their_end_resumes_in_the_next(tmp_path):
    by_pass = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": 20}
    seen = Seen()
    straight = tiny_trainer(tmp_path / "straight", TECHNIQUE, callbacks=[seen], **by_pass, **setting())
    straight.train()
    (first, steps), (second, _), (_, last) = seen.ends
    assert (first, second, last) == (1.0, 2.0, 20)
    again = resumed(tmp_path / "again", TECHNIQUE, stop_at=steps + 1, **by_pass, make_setting=setting)
    assert difference(outcome(straight), outcome(again)) is None


def test_a_run_that_had_all_its_steps_goes_on_where_it_was(tmp_path):
    straight = tiny_trainer(tmp_path / "straight", TECHNIQUE, lr_scheduler_type="constant", **setting(number=200))
    straight.train()
    for max_steps in (6, 14):
        again = tiny_trainer(
            tmp_path / "again",
            TECHNIQUE,
            lr_scheduler_type="constant",
            max_steps=max_steps,
            **setting(number=200),
        )
        again.train(resume_from_checkpoint=max_steps == 14)
    assert difference(outcome(straight)["weights"], outcome(again)["weights"]) is None


def test_a_stream_trains_as_the_same_pairs_do_and_evaluation_data_may_be_one(tmp_path):
    rows = [{"english": "a" * (1 + row % 7), "french": "b" * (1 + row % 5)} for row in range(24)]
    streams = {
        name: datasets.Dataset.from_list(part).to_iterable_dataset()
        for name, part in (("train_dataset", rows), ("eval_dataset", rows[:4]))
    }
    technique = Text2Text(source="english", target="french")
    for objective in ("seq2seq", "span_corruption", "prefix_lm"):
        technique = Text2Text(source="english", target="french", objective=objective, max_empty_share=0.5)
        trainer = tiny_trainer(
            tmp_path / objective, technique, max_steps=3, save_strategy="no", **{**setting(), **streams}
        )
        trainer.train()
        assert text2text.acted(technique, trainer)
        assert np.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataloader_num_workers": 2}, "Set it to 1"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True"),
    ],
)
def test_settings_that_divide_a_stream_are_refused(options, said, tmp_path):
    trainer = tiny_trainer(tmp_path, TECHNIQUE, **options, **setting())
    with pytest.raises(PluginError, match=said):
        trainer.train()


def test_a_worker_reads_ahead_to_the_same_weights(tmp_path):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    alone, helped = (
        tiny_trainer(tmp_path / name, TECHNIQUE, save_strategy="no", **more, **setting())
        for name, more in (("alone", {}), ("helped", workers))
    )
    for trainer in (alone, helped):
        # A worker that lives on draws fewer of the numbers that dropout draws, too.
        without_dropout(trainer.model)
        trainer.train()
    assert difference(outcome(alone), outcome(helped)) is None


def test_the_scripts_own_collator_reads_a_stream_in_batches_of_a_fixed_size(tmp_path, caplog):
    class Own:
        def __call__(self, examples):
            return TextPairCollator(TOKENIZER, tiny_t5())(examples)

    trainer = tiny_trainer(tmp_path, TECHNIQUE, max_steps=2, **{**setting(), "data_collator": Own()})
    trainer.train()
    assert "the script's own collator reads the stream" in caplog.text
