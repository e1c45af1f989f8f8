"""A standard Trainer script: a tiny classifier, or regressor, and a folder with train.jsonl and eval.jsonl; it knows of
no plug-in. At its end it writes how many steps it took.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments


@dataclass
class Files:
    data: str
    model: str
    model_arguments: str = "{}"


def rows_of(file):
    return Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main():
    files, args = HfArgumentParser((Files, TrainingArguments)).parse_args_into_dataclasses()
    config = AutoConfig.from_pretrained(files.model, **json.loads(files.model_arguments))
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_config(config),
        args=args,
        train_dataset=rows_of(Path(files.data) / "train.jsonl"),
        eval_dataset=rows_of(Path(files.data) / "eval.jsonl"),
        compute_metrics=accuracy if config.num_labels > 1 else None,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()
    (Path(args.output_dir) / "done.json").write_text(json.dumps({"steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
