"""Span corruption and prefix language modelling against slow references, then in real runs."""

import pickle
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.techniques.text2text import Text2Text, TextObjective, TextPairCollator, TokenTable
from hf_ft_plugins.techniques.text2text.arrays import Ragged
from hf_ft_plugins.techniques.text2text.objectives import noise_counts, noise_mask, span_corruption
from hf_ft_plugins.techniques.text2text.randomness import digests, fractions, states
from hf_ft_plugins.techniques.text2text.texts import text_lengths
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer
from hf_ft_plugins.testing.examples import text2text
from hf_ft_plugins.testing.examples.text2text import tiny_t5

datasets = pytest.importorskip("datasets")

TOKENIZER = ByT5Tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
SENTINELS = [TOKENIZER.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(125)]
T5 = {"noise_density": 0.15, "mean_span_length": 3.0, "most_spans": 100}


def texts(number=400, longest=200, seed=0, shortest=2):
    """Rows of random letters' ids, without special tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 259, random.integers(shortest, longest)).tolist() for _ in range(number)]


def states_of(rows, seed=0, epoch=0):
    return states(seed, epoch, np.arange(len(rows)))


# ---- T5's rule ----


def t5_counts(length):
    """`random_spans_noise_mask` of the t5 repository, one text at a time."""
    noise = int(np.round(np.float32(length) * np.float32(0.15)))
    noise = min(max(noise, 1), length - 1)
    return noise, max(int(np.round(np.float32(noise) / np.float32(3.0))), 1)


def t5_sentinels(tokens, mask, sentinels):
    """`noise_span_to_unique_sentinel` of the t5 repository."""
    result, span = [], -1
    for place, (token, taken) in enumerate(zip(tokens, mask, strict=True)):
        if not taken:
            result.append(token)
        elif place == 0 or not mask[place - 1]:
            span += 1
            result.append(sentinels[span])
    return result


def rebuilt(source, target, sentinels):
    """The text, from a source and the spans that the target has for its sentinels."""
    spans, current = {}, None
    for token in target:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for place in source for token in (spans[place] if place in sentinels else [place])]


def test_counts_are_those_of_t5():
    lengths = np.arange(2, 1900)
    noise, spans = noise_counts(lengths, **T5)
    assert list(zip(noise.tolist(), spans.tolist(), strict=True)) == [t5_counts(length) for length in lengths.tolist()]


def test_sources_and_targets_are_those_of_t5_for_the_same_mask():
    rows = texts()
    ragged = Ragged.from_rows(rows)
    sources, targets = span_corruption(ragged, states_of(rows), np.array(SENTINELS))
    mask = noise_mask(ragged.lengths, *noise_counts(ragged.lengths, **T5), states_of(rows))
    masks = [part.tolist() for part in np.split(mask, np.cumsum(ragged.lengths)[:-1])]
    for row, taken, source, target in zip(rows, masks, sources.as_lists(), targets.as_lists(), strict=True):
        runs = [(flag, len(list(run))) for flag, run in groupby(taken)]
        assert (sum(taken), len(runs) // 2) == t5_counts(len(row))
        assert [flag for flag, _ in runs] == [False, True] * (len(runs) // 2)
        assert source == t5_sentinels(row, taken, SENTINELS)
        assert target == t5_sentinels(row, [not flag for flag in taken], SENTINELS)
        assert rebuilt(source, target, SENTINELS) == row
    assert abs(mask.mean() - 0.15) < 0.005


def test_every_way_of_cutting_the_noise_is_equally_likely():
    number, length = 6000, 33  # 5 tokens in 2 spans, 28 tokens in 2 spans
    lengths = np.full(number, length)
    noise, spans = noise_counts(lengths, **T5)
    masks = noise_mask(lengths, noise, spans, states(0, 0, np.arange(number))).reshape(number, length)
    taken, left = Counter(), Counter()
    for mask in masks:
        runs = [len(list(run)) for _, run in groupby(mask)]
        taken[runs[1]] += 1
        left[runs[0]] += 1
    assert sorted(taken) == [1, 2, 3, 4]
    assert sorted(left) == list(range(1, 28))
    for seen in (taken, left):
        expected = number / len(seen)
        # The sum of so many squares stays below twice its mean in all but a few of a million draws.
        assert sum((count - expected) ** 2 / expected for count in seen.values()) < 2 * max(len(seen), 10)


def test_more_spans_than_sentinels_are_never_needed():
    rows = texts(5, longest=900)
    sources, targets = span_corruption(Ragged.from_rows(rows), states_of(rows), np.array([1000, 999]))
    for row, source, target in zip(rows, sources.as_lists(), targets.as_lists(), strict=True):
        assert rebuilt(source, target, [1000, 999]) == row


# ---- randomness ----


def test_numbers_are_even_and_differ_by_seed_epoch_and_example():
    of = {key: states(*key, np.arange(5000)) for key in ((0, 0), (0, 1), (1, 0), (2, 1))}
    assert len(set(np.concatenate(list(of.values())).tolist())) == 4 * 5000
    drawn = fractions(of[0, 0])
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] - 500).max() < 100
    assert abs(np.corrcoef(drawn, fractions(of[0, 1]))[0, 1]) < 0.05
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05


def test_a_digest_depends_on_every_id_and_its_place_and_on_nothing_around():
    rows = [[5, 6, 7], [5, 7, 6], [5, 6], [], [5, 6, 7, 0], [5, 6, 8]]
    assert len(set(digests(Ragged.from_rows(rows)).tolist())) == len(rows)
    alone = [digests(Ragged.from_rows([row]))[0] for row in rows]
    assert digests(Ragged.from_rows(rows)).tolist() == alone


# ---- the collator ----


def collator(objective="span_corruption", **options):
    return TextPairCollator(TOKENIZER, tiny_t5(), objective=objective, **options)


def tiny_llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, **shape))


def pairs_of(batch):
    """Sources and targets of a batch, without padding."""
    return [
        (ids[mask == 1].tolist(), labels[labels != -100].tolist())
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]


def with_end(rows):
    return [{"input_ids": [*row, EOS]} for row in rows]


def test_the_end_of_sequence_is_never_taken_out_and_ends_both_sides():
    rows = texts(60, 30)
    for (source, target), row in zip(pairs_of(collator()(with_end(rows))), rows, strict=True):
        assert source[-1] == target[-1] == EOS
        assert rebuilt(source[:-1], target[:-1], SENTINELS) == row


def test_prefix_lm_splits_and_loses_nothing():
    rows = texts(200, 12)
    cuts = []
    for (source, target), row in zip(pairs_of(collator("prefix_lm")(with_end(rows))), rows, strict=True):
        assert source[:-1] + target[:-1] == row
        assert source[-1] == target[-1] == EOS
        assert len(source) > 1
        assert len(target) > 1
        cuts.append((len(row), len(source) - 1))
    assert {cut for length, cut in cuts if length == 4} == {1, 2, 3}


def test_prefix_lm_of_a_causal_model_is_the_text_with_its_beginning_masked():
    rows = texts(50, 20)
    batch = TextPairCollator(TOKENIZER, tiny_llama(), objective="prefix_lm")(with_end(rows))
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        whole = [*row, EOS]
        assert ids[mask == 1].tolist() == whole
        target = labels[labels != -100].tolist()
        assert 2 <= len(target) <= len(row)
        assert whole[-len(target) :] == target


def test_a_begin_of_sequence_stands_before_both_sides():
    tokenizer = ByT5Tokenizer(bos_token="<extra_id_124>")
    begin = tokenizer.bos_token_id
    collate = TextPairCollator(tokenizer, tiny_t5(), objective="prefix_lm")
    for source, target in pairs_of(collate([{"input_ids": [begin, *row, EOS]} for row in texts(20, 9)])):
        assert source[0] == target[0] == begin
        assert begin not in source[1:] + target[1:]


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_an_example_of_an_epoch_is_corrupted_alike_wherever_it_comes(objective):
    rows = with_end(texts(30, 120, shortest=60))
    random = np.random.default_rng(0)

    def all_pairs(order, size, epoch=0, seed=0, table=False):
        data = TokenTable(datasets.Dataset.from_list(rows), texts=True) if table else rows
        collate = collator(objective, seed=seed)
        # Another process has its own copy.
        collate.set_epoch(epoch)
        collate = pickle.loads(pickle.dumps(collate))
        found = {}
        for start in range(0, len(order), size):
            which = order[start : start + size]
            found |= dict(zip(which, map(str, pairs_of(collate([data[i] for i in which]))), strict=True))
        return [found[i] for i in sorted(found)]

    for table in (False, True):
        straight = all_pairs(list(range(30)), 30, table=table)
        assert all_pairs(random.permutation(30).tolist(), 7, table=table) == straight
        for other in ({"epoch": 1}, {"seed": 1}):
            differing = sum(
                a != b for a, b in zip(straight, all_pairs(list(range(30)), 30, **other, table=table), strict=True)
            )
            assert differing > 20


def test_equal_texts_of_a_table_are_corrupted_each_in_its_own_way():
    same = with_end([list(range(10, 60))] * 8)
    by_position = TokenTable(datasets.Dataset.from_list(same), texts=True)
    assert len(set(map(str, pairs_of(collator()(by_position.__getitems__(range(8))))))) == 8
    assert len(set(map(str, pairs_of(collator()(same))))) == 1


def test_texts_too_short_to_split_are_dropped_and_counted():
    collate = collator()
    assert len(collate(with_end([[5], [5, 6], []]))["labels"]) == 1
    assert collate.counts == {"short texts dropped": 2}
    with pytest.raises(PluginError, match="every text of the batch has fewer than two tokens"):
        collate(with_end([[5]]))


@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
@pytest.mark.parametrize("limits", [{"max_source": 20}, {"max_target": 9}, {"max_source": 30, "max_target": 12}])
def test_limits_are_kept_and_what_is_lost_is_the_end_of_the_text(objective, limits):
    rows = texts(80, 90)
    collate = collator(objective, **limits)
    for (source, target), row in zip(pairs_of(collate(with_end(rows))), rows, strict=True):
        assert len(source) <= limits.get("max_source", 1000)
        assert len(target) <= limits.get("max_target", 1000)
        kept = (
            rebuilt(source[:-1], target[:-1], SENTINELS)
            if objective == "span_corruption"
            else source[:-1] + target[:-1]
        )
        assert row[: len(kept)] == kept
        if kept != row and objective == "span_corruption":
            # One token more would not have fitted.
            noise, spans = t5_counts(len(kept) + 1)
            longer = (len(kept) + 1 - noise + spans + 1, noise + spans + 1)
            assert longer[0] > limits.get("max_source", 1000) or longer[1] > limits.get("max_target", 1000)
        elif objective == "prefix_lm":
            assert len(kept) == (len(row) if len(limits) == 1 else min(len(row), 29 + 11))
    lost = sum(map(len, rows)) - sum(
        len(s) + len(t) - 2 - 2 * sum(i in SENTINELS for i in s) for s, t in pairs_of(collate(with_end(rows)))
    )
    assert collate.counts["tokens cut"] == 2 * lost


@pytest.mark.parametrize("limits", [{}, {"max_source": 20, "max_target": 15}])
@pytest.mark.parametrize("new_model", [tiny_t5, tiny_llama])
@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_lengths_for_the_budget_are_exact_or_at_most(objective, new_model, limits):
    causal = new_model is tiny_llama
    if causal and objective == "span_corruption":
        return
    rows = with_end(texts(100, 60))
    collate = TextPairCollator(TOKENIZER, new_model(), objective=objective, **limits)
    for data in (rows, datasets.Dataset.from_list(rows)):
        sources, targets = text_lengths(collate.text_objective, data)
        real = pairs_of(collate(rows))
        if objective == "span_corruption":
            assert [(len(s), len(t)) for s, t in real] == list(zip(sources.tolist(), targets.tolist(), strict=True))
        elif causal:
            assert [len(whole) for whole, _ in real] == (sources + targets).tolist()
        else:
            assert all(len(s) <= a and len(t) <= b for (s, t), a, b in zip(real, sources, targets, strict=True))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (tiny_llama, {}, "objective=span_corruption is for encoder-decoders"),
        (tiny_t5, {"source_prefix": "fr: "}, "would be corrupted"),
        (tiny_t5, {"max_source": 2}, "no text fits max_source=2"),
        (tiny_t5, {"objective": "prefix_lm", "max_target": 1}, "no text fits .*max_target=1"),
        (tiny_t5, {"noise_density": 1.0}, "noise_density=1.0 must lie"),
    ],
)
def test_what_cannot_be_done_is_refused(model, options, said):
    with pytest.raises(PluginError, match=said):
        TextPairCollator(TOKENIZER, model(), **{"objective": "span_corruption", **options})


def test_a_tokenizer_without_sentinels_is_named():
    with pytest.raises(PluginError, match="ByT5Tokenizer has no token <extra_id_0>"):
        TextObjective("span_corruption", ByT5Tokenizer(extra_ids=0, additional_special_tokens=[]), causal=False)


# ---- the technique ----


def tiny_texts(number=36, seed=0):
    # T5 takes two spans out of them, whose places differ; of shorter texts always the end.
    return with_end(texts(number, 60, seed, shortest=40))


def setting_of_texts():
    """The kit's setting, with texts for pairs."""
    return {**text2text.setting(), "train_dataset": tiny_texts(), "eval_dataset": tiny_texts(12, 1)}


@pytest.mark.parametrize(("objective", "target_tokens"), [("span_corruption", 60), ("prefix_lm", 350)])
def test_a_run_that_was_cut_off_resumes_exactly(objective, target_tokens, tmp_path, monkeypatch):
    technique = Text2Text(objective=objective, target_tokens=target_tokens, max_tokens=2000)
    straight = tiny_trainer(tmp_path / "straight", technique, **setting_of_texts())
    straight.train()
    again = resumed(tmp_path / "again", technique, make_setting=setting_of_texts)
    assert difference(outcome(straight), outcome(again)) is None
    assert straight.state.epoch > 1.5
    # Control: were the epoch not said to the collator, the weights would be others.
    monkeypatch.setattr(TextPairCollator, "set_epoch", lambda self, epoch: None)
    stale = tiny_trainer(tmp_path / "stale", technique, **setting_of_texts())
    stale.train()
    assert difference(outcome(straight)["weights"], outcome(stale)["weights"])


def test_a_worker_that_lives_on_sees_the_present_epoch(tmp_path):
    technique = Text2Text(objective="span_corruption", target_tokens=60, max_tokens=2000)
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    alone, helped = (
        # Two epochs.
        run(tmp_path / name, technique, max_steps=12, **setting_of_texts(), **more)
        for name, more in (("alone", {}), ("helped", workers))
    )
    assert alone == helped


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def run(folder, technique, **changes):
    """The losses of steps without dropout that change nothing, and of the evaluations."""
    settings = {"max_steps": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.0, "eval_steps": 2}
    trainer = tiny_trainer(folder, technique, **{"save_strategy": "no", **settings, **changes})
    without_dropout(trainer.model)
    trainer.train()
    keys = ("loss", "eval_loss")
    return [(key, entry[key]) for entry in trainer.state.log_history for key in keys if key in entry]


def test_raw_texts_are_tokenized_and_short_ones_dropped(tmp_path, caplog):
    rows = datasets.Dataset.from_list(
        [{"story": "some words " * (1 + row % 3)} for row in range(24)] + [{"story": "a"}]
    )
    technique = Text2Text(objective="span_corruption", source="story", max_empty_share=0.1)
    setting = {**text2text.setting(), "train_dataset": rows, "eval_dataset": None, "data_collator": None}
    trainer = tiny_trainer(tmp_path, technique, max_steps=2, eval_strategy="no", save_strategy="no", **setting)
    trainer.train()
    assert trainer.train_dataset.column_names == ["input_ids"]
    assert "dropped 1 of 25 texts" in caplog.text
    assert text2text.acted(technique, trainer)


def test_evaluations_corrupt_alike_and_epochs_do_not(tmp_path):
    setting = setting_of_texts()
    setting["data_collator"] = collator(seed=7)
    technique = Text2Text(objective="span_corruption", target_tokens=1000, max_tokens=10_000)
    found = run(tmp_path, technique, **setting)
    # One batch is one epoch, and the weights do not change.
    training = [loss for key, loss in found if key == "loss"]
    evaluation = [loss for key, loss in found if key == "eval_loss"]
    assert min(np.diff(sorted(training))) > 1e-5
    assert len(set(evaluation)) == 1


def test_options_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(OptionError, match="source_prefix=x"):
        Text2Text(objective="prefix_lm", source_prefix="x")
    with pytest.raises(OptionError, match="objective='rtd'"):
        Text2Text(objective="rtd")
    setting = {**setting_of_texts(), "data_collator": TextPairCollator(TOKENIZER, tiny_t5())}
    with pytest.raises(PluginError, match="option objective=prefix_lm needs a collator that has it"):
        run(tmp_path, Text2Text(objective="prefix_lm"), **setting)
