"""Trainers as scripts build them, each for one thing that `hf-ft suggest` finds or does not find."""

import random

import torch
from datasets import ClassLabel, Dataset
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_ft_plugins.suggest.facts import facts_of
from hf_ft_plugins.suggest.origins import Loaded, LoadedFrom
from hf_ft_plugins.suggest.report import report_on
from hf_ft_plugins.testing import LENGTH, VOCABULARY, tiny_trainer
from hf_ft_plugins.testing.examples.text2text import tiny_t5

# A run in which there is nothing to find: a pass over its data, evaluated twice, one batch a step, metrics.
QUIET = {
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 8,
    "max_steps": 12,
    "eval_steps": 6,
    "compute_metrics": lambda prediction: {"accuracy": 0.5},
}
HEAD = frozenset({"classifier.weight", "classifier.bias"})


def classified(*counts, names=None):
    """So many rows of each class, of tokens without padding, in random order."""
    draw = random.Random(0)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    draw.shuffle(labels)
    rows = [[draw.randrange(1, VOCABULARY) for _ in range(LENGTH)] for _ in labels]
    columns = {"input_ids": rows, "attention_mask": [[1] * LENGTH] * len(rows), "labels": labels}
    names = names or [f"class {label}" for label in range(len(counts))]
    return Dataset.from_dict(columns).cast_column("labels", ClassLabel(names=names))


def classifier(folder, **changes):
    """A trainer of a tiny BERT on balanced rows, in which there is nothing to find unless `changes` bring it."""
    settings = {"train_dataset": classified(48, 48), "eval_dataset": classified(8, 8), **QUIET}
    return tiny_trainer(folder, **(settings | changes))


def pairs(lengths, seed=0):
    """Pairs of equal length on both sides, in bytes."""
    draw = random.Random(seed)
    return [
        {"input_ids": [draw.randrange(3, 99) for _ in range(length)], "labels": [draw.randrange(3, 99)] * length}
        for length in lengths
    ]


def translator(folder, lengths, **changes):
    """A `Seq2SeqTrainer` of a tiny T5 on pairs of these lengths."""
    model, tokenizer = tiny_t5(), ByT5Tokenizer(extra_ids=0)
    settings = {
        **QUIET,
        "trainer_class": Seq2SeqTrainer,
        "args_class": Seq2SeqTrainingArguments,
        "model": model,
        "train_dataset": pairs(lengths),
        "eval_dataset": pairs(lengths[:8], seed=1),
        "processing_class": tokenizer,
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
    }
    return tiny_trainer(folder, **(settings | changes))


def writer(folder, rows, **changes):
    """The same of a tiny Llama, on rows of prompt and answer; `rows` are their lengths."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, max_position_embeddings=128, **size))
    data = [
        {
            "input_ids": [5] * (prompt + answer),
            "attention_mask": [1] * (prompt + answer),
            "labels": [-100] * prompt + [5] * answer,
        }
        for prompt, answer in rows
    ]
    return translator(folder, [4], **({"model": model, "train_dataset": data, "eval_dataset": data[:8]} | changes))


def pretrained(trainer, name="somebody/encoder", missing=HEAD):
    """As if `from_pretrained` had given the trainer's model, without these weights."""
    loaded = Loaded()
    loaded[trainer.model] = LoadedFrom(name, frozenset(missing))
    return loaded


def suggested(trainer, **known):
    """The suggestions for a trainer, by the technique's name."""
    return {one.technique.name: one.suggestion for one in report_on(facts_of(trainer, **known)).advice}
