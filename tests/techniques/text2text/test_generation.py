"""Evaluation that generates: each prediction is that of its prompt alone, in order, on one rank or two."""

import json
import os
import pickle
import sys
import types
from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.text2text import Seq2SeqGenerationMetrics, generate_from_prompts
from hf_ft_plugins.techniques.text2text.metrics import decoded
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5

TOKENIZER = ByT5Tokenizer()
PAD, EOS = TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
ROWS = 10  # With batches of 4 the last is half full; on two ranks it is filled with repeated rows.


def tiny_llama():
    """Weights large enough for what it generates to depend on the whole prompt."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 384, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": EOS}
    return LlamaForCausalLM(LlamaConfig(**shape, **tokens, initializer_range=0.4)).eval()


def prompted(size=ROWS):
    """Prompt and target in one row, labels masked on the prompt, as causal scripts make them."""
    pairs = [(pair["input_ids"][:-1], pair["labels"]) for pair in tiny_pairs(size)]
    return [
        {"input_ids": [*p, *t], "labels": [-100] * len(p) + t, "attention_mask": [1] * len(p + t)} for p, t in pairs
    ]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "per_device_eval_batch_size": 4,
        "predict_with_generate": True,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Seq2SeqTrainingArguments(**(settings | changes))


def trainer_of(folder, model, *techniques, rows=None, compute_metrics=None, **changes):
    torch.set_num_threads(1)
    return (with_plugins(Seq2SeqTrainer, *techniques) if techniques else Seq2SeqTrainer)(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=prompted(),
        eval_dataset=prompted() if rows is None else rows,
        data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
        processing_class=TOKENIZER,
        compute_metrics=compute_metrics,
    )


def without_padding(ids):
    return [[token for token in row if token not in (-100, PAD)] for row in ids.tolist()]


def row_by_row(model, rows, new_tokens):
    """What greedy generation makes of each prompt alone, without any padding."""
    generated = []
    for row in rows:
        prompt = torch.tensor([[i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]])
        whole = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens)
        generated.append(whole[:, prompt.shape[1] :])
    return [without_padding(row)[0] for row in generated]


# ---- causal models ----


def test_predictions_of_a_causal_model_are_those_of_each_prompt_alone(tmp_path):
    rows, model = prompted(), tiny_llama()
    expected = row_by_row(model, rows, 6)
    assert len({tuple(row) for row in expected}) > ROWS / 2, "the prompts make no difference"
    ours = trainer_of(tmp_path, model, "text2text", generation_max_length=6).predict(rows)
    assert without_padding(ours.predictions) == expected
    stock = trainer_of(tmp_path, model).predict(rows, max_new_tokens=6)
    assert without_padding(stock.predictions) != expected
    assert not any(row[-6:] == want for row, want in zip(without_padding(stock.predictions), expected, strict=True))


def test_without_a_limit_the_longest_reference_is_one(tmp_path):
    rows = [*prompted(), {"input_ids": [5] * 33, "labels": [-100] * 3 + [5] * 30, "attention_mask": [1] * 33}]
    model = tiny_llama()
    ours = trainer_of(tmp_path, model, "text2text", rows=rows)
    for _ in range(2):
        assert without_padding(ours.predict(rows).predictions) == row_by_row(model, rows, 30)
    limited = ours.predict(rows, max_new_tokens=3).predictions
    assert without_padding(limited) == row_by_row(model, rows, 3)
    model.generation_config.max_new_tokens = 5
    assert without_padding(ours.predict(rows).predictions) == row_by_row(model, rows, 5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_evaluation_loss_is_that_of_whole_rows_computed_by_hand(smoothing, tmp_path):
    rows, model = prompted(), tiny_llama()
    means = []
    for row in rows:
        scores = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        target = [place for place, label in enumerate(row["labels"]) if label != -100]
        right = torch.stack([scores[place - 1, row["labels"][place]] for place in target])
        spread = torch.stack([scores[place - 1].mean() for place in target])
        means.append(-(1 - smoothing) * right.mean() - smoothing * spread.mean())
    by_hand = torch.stack(means).mean().item()
    changes = {"label_smoothing_factor": smoothing, "generation_max_length": 40, "per_device_eval_batch_size": 1}
    # Without metrics Trainer computes the loss alone, on another way.
    changes["compute_metrics"] = lambda prediction: {}
    ours = trainer_of(tmp_path, model, "text2text", **changes)
    assert ours.evaluate()["eval_loss"] == pytest.approx(by_hand, rel=1e-5)
    stock = trainer_of(tmp_path, model, **changes).evaluate()["eval_loss"]
    assert (stock == pytest.approx(by_hand, rel=1e-5)) == (smoothing == 0)


def test_the_part_alone_works_in_a_stock_trainer_nested_and_leaves_no_trace(tmp_path):
    rows, model = prompted(), tiny_llama()
    expected, config = row_by_row(model, rows, 6), deepcopy(model.generation_config)
    plain = model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4)
    with generate_from_prompts(model), generate_from_prompts(model):
        predictions = trainer_of(tmp_path, model).predict(rows, max_new_tokens=6).predictions
        assert torch.equal(model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=4), plain)
    assert without_padding(predictions) == expected
    assert "generate" not in vars(model)
    assert model.generation_config.to_dict() == config.to_dict()
    pickle.loads(pickle.dumps(deepcopy(model)))
    model.save_pretrained(tmp_path / "saved")


def test_prompts_padded_on_the_left_and_adapters_generate_the_same(tmp_path):
    peft = pytest.importorskip("peft")
    rows = prompted()
    adapted = peft.get_peft_model(tiny_llama(), peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    expected = row_by_row(adapted.eval(), rows, 6)
    assert expected != row_by_row(tiny_llama(), rows, 6)
    trainer = trainer_of(tmp_path, adapted, "text2text", generation_max_length=6)
    assert without_padding(trainer.predict(rows).predictions) == expected
    trainer.eval_collator = DataCollatorForSeq2Seq(ByT5Tokenizer(padding_side="left"))
    assert without_padding(trainer.predict(rows).predictions) == expected


def test_rows_without_a_prompt_are_refused(tmp_path):
    rows = [{**row, "labels": row["input_ids"]} for row in prompted()]
    with pytest.raises(PluginError, match="4 of 4 rows of an evaluation batch have no prompt"):
        trainer_of(tmp_path, tiny_llama(), "text2text", rows=rows).predict(rows)


# ---- order, ranks ----


@pytest.mark.parametrize("new_model", [tiny_llama, tiny_t5])
def test_predictions_come_in_the_order_of_the_data_set(new_model, tmp_path):
    rows = prompted() if new_model is tiny_llama else tiny_pairs(ROWS)
    labels = [[label for label in row["labels"] if label != -100] for row in rows]
    changes = {"train_sampling_strategy": "group_by_length", "generation_max_length": 40}
    ours = trainer_of(tmp_path, new_model(), "text2text", rows=rows, **changes)
    assert without_padding(ours.predict(rows).label_ids) == labels
    stock = trainer_of(tmp_path, new_model(), rows=rows, **changes)
    assert without_padding(stock.predict(rows).label_ids) != labels


def evaluated(rank, folder, *techniques):
    def compute_metrics(prediction):
        texts = [decoded(TOKENIZER, ids) for ids in (prediction.predictions, prediction.label_ids)]
        return {"rows": len(texts[0]), "texts": json.dumps(texts)}

    changes = {"generation_max_length": 40, "label_smoothing_factor": 0.1}
    changes |= {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    trainer = trainer_of(folder, tiny_llama(), *techniques, compute_metrics=compute_metrics, **changes)
    metrics = trainer.evaluate()
    return {key: metrics[f"eval_{key}"] for key in ("loss", "rows", "texts")}


def test_two_ranks_give_the_metrics_of_one(on_both_ranks, tmp_path):
    one = evaluated(0, tmp_path / "one", "text2text")
    assert one["rows"] == ROWS
    first, second = on_both_ranks(evaluated, "text2text")
    assert first == second
    assert first == one | {"loss": pytest.approx(one["loss"], rel=1e-6)}
    stock, _ = on_both_ranks(evaluated)
    assert stock["rows"] > ROWS


# ---- what is shown and scored ----


@pytest.mark.parametrize("new_model", [tiny_llama, tiny_t5])
def test_examples_are_shown_once_an_evaluation_short_and_on_one_line(new_model, tmp_path, capsys):
    rows = prompted() if new_model is tiny_llama else tiny_pairs(ROWS)
    long = TOKENIZER("x\n" * 300)["input_ids"]
    start = [5, -100] if new_model is tiny_llama else [5, 5]
    rows[0] = {"input_ids": [start[0], *long], "labels": [start[1], *long], "attention_mask": [1] * (1 + len(long))}
    trainer = trainer_of(
        tmp_path, new_model(), "text2text", rows=rows, generation_max_length=4, compute_metrics=lambda prediction: {}
    )
    capsys.readouterr()
    trainer.evaluate()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("text2text: eval example")]
    assert [line.split()[4] for line in shown] == ["source", "reference", "prediction"] * 2
    assert max(map(len, shown)) < 600
    source = rows[1]["input_ids"]
    if new_model is tiny_llama:
        source = source[: rows[1]["labels"].count(-100)]
    reference = [label for label in rows[1]["labels"] if label != -100]
    texts = [repr(TOKENIZER.decode(ids, skip_special_tokens=True)) for ids in (source, reference)]
    assert [line.split(maxsplit=5)[5] for line in shown[3:5]] == texts
    trainer_of(tmp_path, new_model(), "text2text:examples=0", rows=rows, generation_max_length=4).predict(rows)
    assert "example" not in capsys.readouterr().out


def test_rouge_is_scored_where_it_is_installed(monkeypatch):
    pytest.importorskip("sacrebleu")
    words = [[TOKENIZER(text)["input_ids"] for text in pair] for pair in (("ab", "cd"), ("ab", "xy"))]
    prediction = EvalPrediction(predictions=np.array(words[0]), label_ids=np.array(words[1]))

    class RougeScorer:
        def __init__(self, names):
            self.names = names

        def score(self, target, prediction):
            return {name: types.SimpleNamespace(fmeasure=float(target == prediction)) for name in self.names}

    monkeypatch.setitem(sys.modules, "rouge_score", None)
    for name in ("rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    without = Seq2SeqGenerationMetrics(TOKENIZER)(prediction)
    package, scorer = types.ModuleType("rouge_score"), types.ModuleType("rouge_score.rouge_scorer")
    package.__spec__ = types.SimpleNamespace(name="rouge_score")
    scorer.RougeScorer = RougeScorer
    monkeypatch.setitem(sys.modules, "rouge_score", package)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", scorer)
    scores = Seq2SeqGenerationMetrics(TOKENIZER)(prediction)
    assert scores == without | dict.fromkeys(("rouge1", "rouge2", "rougeL"), 50.0)
