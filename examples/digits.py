"""Image classification with a standard Trainer script: handwritten digits, or any images you name.

Nothing here knows of any plug-in. By default it trains a small convolutional network on scikit-learn's digits (1,797
real scans, shipped with the library); `--image_folder` or `--dataset_name` train on other images, and `--model_name`
starts from a pretrained model.

    python examples/digits.py --label_noise 0.4 --learning_rate 3e-3
    hf-ft compare --with adaptive-lr examples/digits.py --label_noise 0.4 --learning_rate 3e-3
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ScriptArguments:
    image_folder: str | None = field(default=None, metadata={"help": "folder with train/, validation/ and test/"})
    dataset_name: str | None = field(default=None, metadata={"help": "data set on the Hugging Face hub"})
    model_name: str | None = field(default=None, metadata={"help": "pretrained model; default a small new network"})
    train_examples: int = field(default=300, metadata={"help": "digits to train on (of about 1,200)"})
    label_noise: float = field(default=0.0, metadata={"help": "share of training labels replaced by wrong ones"})


@dataclass
class DigitsTrainingArguments(TrainingArguments):
    output_dir: str = "runs/digits"
    learning_rate: float = 3e-3
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 256
    num_train_epochs: float = 80
    eval_strategy: str = "steps"
    eval_steps: float = 20
    logging_steps: float = 10
    save_strategy: str = "no"
    warmup_steps: float = 20
    remove_unused_columns: bool = False


def digits(train_examples: int, seed: int) -> DatasetDict:
    scans, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    scans, labels = scans[order].reshape(-1, 8, 8).astype("uint8") * 15, labels[order]
    parts = {"train": slice(0, train_examples), "validation": slice(1197, 1497), "test": slice(1497, 1797)}
    return DatasetDict(
        {
            name: Dataset.from_dict({"image": scans[part].tolist(), "label": labels[part].tolist()}).cast_column(
                "label", ClassLabel(names=[str(digit) for digit in range(10)])
            )
            for name, part in parts.items()
        }
    )


def with_label_noise(dataset: Dataset, share: float, classes: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    labels = np.array(dataset["label"])
    wrong = random.random(len(labels)) < share
    labels[wrong] = (labels[wrong] + random.integers(1, classes, wrong.sum())) % classes
    return dataset.remove_columns("label").add_column("label", labels.tolist())


def main() -> None:
    script_args, training_args = HfArgumentParser(
        (ScriptArguments, DigitsTrainingArguments)
    ).parse_args_into_dataclasses()
    set_seed(training_args.seed)

    if script_args.image_folder:
        dataset = load_dataset("imagefolder", data_dir=script_args.image_folder)
    elif script_args.dataset_name:
        dataset = load_dataset(script_args.dataset_name)
    else:
        dataset = digits(script_args.train_examples, training_args.data_seed or 0)
    names = dataset["train"].features["label"].names
    train = with_label_noise(dataset["train"], script_args.label_noise, len(names), seed=1)

    labels = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }
    if script_args.model_name:
        processor = AutoImageProcessor.from_pretrained(script_args.model_name)
        model = AutoModelForImageClassification.from_pretrained(
            script_args.model_name, ignore_mismatched_sizes=True, **labels
        )
    else:
        processor = None
        config = ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", **labels
        )
        model = ResNetForImageClassification(config)

    def pixels(images):
        if processor is not None:
            return processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        # The network halves the sides four times, so eight-pixel scans are drawn four times as large.
        scans = torch.tensor(np.array(images), dtype=torch.float32).unsqueeze(1) / 255
        return torch.nn.functional.interpolate(scans, scale_factor=4)

    def collate(examples):
        return {
            "pixel_values": pixels([example["image"] for example in examples]),
            "labels": torch.tensor([example["label"] for example in examples]),
        }

    def compute_metrics(prediction):
        logits = prediction.predictions - prediction.predictions.max(-1, keepdims=True)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return {
            "accuracy": accuracy_score(prediction.label_ids, logits.argmax(-1)),
            "nll": log_loss(prediction.label_ids, probabilities, labels=list(range(len(names)))),
        }

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=dataset["validation"],
        data_collator=collate,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.evaluate(dataset["test"], metric_key_prefix="test")


if __name__ == "__main__":
    main()
