"""A padded batch in parts: the same loss and gradients, fewer slots; and steps that hold pairs of every length."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from hf_ft_plugins import PluginError, with_plugins
from hf_ft_plugins.techniques.text2text import Text2Text, TokenBudgetBatchSampler, in_parts
from hf_ft_plugins.techniques.text2text.batches import padded_tokens
from hf_ft_plugins.techniques.text2text.loss import TokenMeanLoss
from hf_ft_plugins.techniques.text2text.parts import Extents, fewest_slots

from .test_technique import TOKENIZER, lengths, tiny_llama, tiny_t5


def rows_of(count, *, causal, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        source, target = (random.integers(3, 100, random.integers(1, 30)).tolist() for _ in range(2))
        ids = source + target if causal else source
        rows.append({"input_ids": ids, "labels": [-100] * len(source) + target if causal else target})
    return rows


def slots(batch):
    return batch["input_ids"].numel() + batch["labels"].numel()


def gradients(model, batches, items):
    loss_of = TokenMeanLoss(shift=not model.config.is_encoder_decoder)
    total = sum(loss_of(model(**b), b["labels"], items) for b in batches)
    model.zero_grad()
    total.backward()
    return total.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("new_model", [tiny_t5, tiny_llama])
def test_the_parts_have_the_loss_and_gradients_of_the_batch(new_model, side, monkeypatch):
    monkeypatch.setattr(TOKENIZER, "padding_side", side)
    model = new_model().double().eval()
    causal = not model.config.is_encoder_decoder
    batch = dict(DataCollatorForSeq2Seq(TOKENIZER, model)(rows_of(12, causal=causal)))
    parts = in_parts(batch, 4, causal=causal)
    assert len(parts) == 4
    assert sum(map(slots, parts)) < 0.8 * slots(batch)
    items = int((batch["labels"] != -100).sum())
    whole, wanted = gradients(model, [batch], items)
    loss, found = gradients(model, parts, items)
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8)
    # Control: the mean of the parts' own means weighs short parts too much.
    assert np.mean([gradients(model, [part], None)[0] for part in parts]) != pytest.approx(whole, rel=1e-4)


def test_the_cut_is_the_cheapest_of_all():
    random = np.random.default_rng(0)
    for _ in range(100):
        count, cost = random.integers(1, 9), random.integers(0, 12)
        source, target = random.integers(1, 9, count), random.integers(1, 9, count)
        none = np.zeros(count, int)

        def price(runs, source=source, target=target, cost=cost):
            return sum(
                (end - start) * (source[start:end].max() + target[start:end].max()) + cost for start, end in runs
            )

        ways = (
            list(itertools.pairwise((0, *cuts, count)))
            for number in range(4)
            for cuts in itertools.combinations(range(1, count), number)
        )
        found, runs = fewest_slots(Extents(none, source, none, target), 4, cost)
        assert found == price(runs) == min(map(price, ways))


def test_what_has_no_mask_in_two_dimensions_stays_whole_and_rows_without_a_token_keep_one_column():
    batch = dict(DataCollatorForSeq2Seq(TOKENIZER, tiny_t5())(rows_of(6, causal=False)))
    assert (
        len(in_parts({name: value for name, value in batch.items() if name != "attention_mask"}, 4, causal=False)) == 1
    )
    assert len(in_parts(batch, 4, causal=False, slots_of_a_call=10_000)) == 1
    batch["attention_mask"][0], batch["labels"][0] = 0, -100
    parts = in_parts(batch, 4, causal=False)
    assert sum(len(part["labels"]) for part in parts) == 6
    assert all(part["labels"].shape[1] for part in parts)


@pytest.mark.parametrize(("parts", "per_step"), [(4, 1), (2, 2), (2, 3), (1, 4)])
def test_every_step_has_pairs_of_every_length(parts, per_step):
    source, target = lengths(4000)
    width = source + target
    limits = {"max_tokens": int(32 * width.mean()), "target_tokens": int(16 * target.mean())}
    plan = TokenBudgetBatchSampler(source, target, **limits, parts=parts, per_step=per_step).plan(0)
    assert sorted(np.concatenate(plan)) == list(range(4000))
    assert len(plan) % per_step == 0

    def spread(batches, together):
        steps = [np.concatenate(batches[start : start + together]) for start in range(0, len(batches), together)]
        return np.std([np.average(width[step], weights=target[step]) for step in steps])

    alone = TokenBudgetBatchSampler(source, target, **limits).plan(0)
    # Control: as many batches of pairs alike, drawn by chance.
    shuffled = [alone[index] for index in np.random.default_rng(0).permutation(len(alone))]
    assert spread(plan, per_step) < 0.6 * spread(shuffled, per_step)
    pieces = [np.array_split(batch[np.argsort(width[batch])], 4) for batch in plan]
    assert max(padded_tokens(cut, source, target) for cut in pieces) < 3 * limits["max_tokens"]


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def trained(folder, *techniques, base=Trainer, accumulation=1, rows=None, **arguments):
    model = tiny_t5()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    sizes = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    trainer = with_plugins(base, *techniques)(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=3,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            learning_rate=1e-2,
            **arguments,
        ),
        train_dataset=rows_of(200, causal=False) if rows is None else rows,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
        processing_class=TOKENIZER,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], sizes


def test_a_run_in_parts_has_the_losses_of_one_whose_batches_stay_whole(tmp_path, monkeypatch):
    cut, calls = trained(tmp_path, "text2text")
    assert len(calls) > 2 * 3
    monkeypatch.setattr(Text2Text, "ft_parts", lambda self, trainer: None)
    whole, fewer = trained(tmp_path, "text2text")
    assert len(fewer) < len(calls)
    assert cut == pytest.approx(whole, rel=1e-5)
    monkeypatch.undo()
    # Control: batches alike in length are other batches.
    assert trained(tmp_path, "text2text:parts=1")[0] != pytest.approx(whole, rel=1e-3)


def test_accumulated_batches_need_no_parts(tmp_path):
    assert len(trained(tmp_path, "text2text", accumulation=4)[1]) == len(
        trained(tmp_path, "text2text:parts=1", accumulation=4)[1]
    )


def test_a_loss_of_the_scripts_own_keeps_its_batch_whole_and_is_said(tmp_path, caplog):
    assert max(trained(tmp_path, "text2text", base=OwnLoss)[1]) > 8
    assert "OwnLoss computes the loss itself" in caplog.text
    with pytest.raises(PluginError, match="parts=4 pads parts of a batch alone, and OwnLoss"):
        trained(tmp_path, "text2text:parts=4", base=OwnLoss)


def test_checkpointing_that_goes_backward_by_itself_keeps_a_batch_whole(tmp_path, caplog):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trained(tmp_path, "text2text", **reentrant)
    assert "use_reentrant=True" in caplog.text


def test_parts_step_once_where_gradients_are_stepped_as_they_arrive(tmp_path):
    plain, _ = trained(tmp_path, "text2text", max_grad_norm=0.0)
    fused, calls = trained(tmp_path, "text2text", "low-memory", max_grad_norm=0.0)
    assert len(calls) > 2 * 3
    # A tied embedding is added up in another order.
    assert fused == pytest.approx(plain, rel=1e-6)


def test_a_budget_that_leaves_no_room_for_parts_is_kept(tmp_path, caplog):
    source, target = (
        np.array([len(row[name]) for row in rows_of(200, causal=False)]) for name in ("input_ids", "labels")
    )
    limit = int(1.5 * (source + target).max())
    trained(tmp_path, f"text2text:max_tokens={limit}")
    assert "takes 1/1 of max_tokens, or more" in caplog.text


def test_a_limit_that_the_script_sets_for_a_stream_holds_for_its_batches(tmp_path, caplog):
    stream = Dataset.from_list(rows_of(200, causal=False)).to_iterable_dataset()
    _, sizes = trained(tmp_path, "text2text:max_tokens=200", rows=stream)
    asked = 2  # times that the model was asked for its own loss, on two rows
    assert len(sizes) == asked + 3
    assert "keeps its batches alike in length" in caplog.text
    # Control: without a limit they are mixed, and go through the model in parts.
    assert len(trained(tmp_path, "text2text", rows=stream)[1]) > asked + 3
