"""A script that `hf-ft suggest` looks at: a tiny classifier, with as many rows of each class as it is told.

What it does around `train()` is told, too; where it comes past it, it says so.
"""

import sys
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class Script:
    how: str = "plainly"
    counts: list[int] = field(default_factory=lambda: [48, 48])
    saved: str = "saved"


@dataclass
class Arguments(TrainingArguments):
    output_dir: str = "runs/look"
    per_device_train_batch_size: int = 8
    max_steps: int = 12
    eval_strategy: str = "steps"
    eval_steps: float = 6
    save_strategy: str = "no"
    report_to: str = "none"
    use_cpu: bool = True


def rows(counts):
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(len(counts)), counts))
    ids = random.integers(1, 32, (len(labels), 8))
    columns = {"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist(), "labels": labels.tolist()}
    return Dataset.from_dict(columns).cast_column("labels", ClassLabel(names=[f"c{n}" for n in range(len(counts))]))


def trainer_of(script, args):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=8, **size))
    data = {"train_dataset": rows(script.counts), "eval_dataset": rows([8, 8])}
    trainer_class = Trainer
    if script.how == "with a technique":
        from hf_ft_plugins import with_plugins

        trainer_class = with_plugins(Trainer, "task")
    return trainer_class(model=model, args=args, compute_metrics=lambda prediction: {"accuracy": 0.5}, **data)


def train(script, args):
    trainer_of(script, args).train()


def main():
    script, args = HfArgumentParser((Script, Arguments)).parse_args_into_dataclasses()
    print("the script prints")
    if script.how == "without a trainer":
        return
    if script.how == "in a child":
        child = get_context("spawn").Process(target=train, args=(script, args))
        child.start()
        child.join()
        sys.exit(child.exitcode)
    trainer = trainer_of(script, args)
    if script.how in ("plainly", "with a technique"):
        trainer.train()
    elif script.how == "saving whatever happens":
        try:
            trainer.train()
        finally:
            trainer.save_model(script.saved)
    elif script.how == "catching":
        try:
            trainer.train()
        except Exception:
            print("caught")
    elif script.how == "catching all":
        try:
            trainer.train()
        except BaseException:
            trainer.state.log_history.append("went on")
        trainer.evaluate()
    elif script.how == "failing":
        raise RuntimeError("no data here")
    elif script.how == "evaluating":
        trainer.evaluate()
    Path("trained").touch()


if __name__ == "__main__":
    main()
