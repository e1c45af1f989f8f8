"""Transfer learning with a standard Trainer script: a pretrained image model on a new, smaller data set.

Nothing here knows of any plug-in. By default it takes five kinds of flowers and a MobileNet pretrained on ImageNet from
the folder FT_DATA (default ../shared/data); where that is absent, a small network learns scikit-learn's digits 0 to 4
first and is then taken to the digits 5 to 9. `--dataset_name` and `--image_folder` train on other images,
`--model_name_or_path` starts from another model.

    python examples/flowers.py
    hf-ft compare --seeds 3 --with transfer examples/flowers.py

The 200 images are one batch of the head alone, so by default it would see each of them 1000 times, and learn to be far
too sure of them: as many pictures are named rightly, but the test loss is worse than Trainer's own. On the digits the
small network does as well or better when all of it learns at once.
"""

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

DATA = Path(os.environ.get("FT_DATA", "../shared/data"))
FLOWERS, MOBILENET = DATA / "flowers5_128px" / "flowers5_128px.tar.gz", DATA / "ckpt_mobilenet_v1_025_128" / "hf"


@dataclass
class ScriptArguments:
    image_folder: str | None = field(default=None, metadata={"help": "folder with train/, validation/ and test/"})
    dataset_name: str | None = field(default=None, metadata={"help": "data set on the Hugging Face hub"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "pretrained model"})
    train_examples: int = field(default=200, metadata={"help": "how many images to train on; 0: all"})


@dataclass
class FlowersTrainingArguments(TrainingArguments):
    output_dir: str = "runs/flowers"
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 100
    max_steps: int = 100
    eval_strategy: str = "steps"
    eval_steps: float = 20
    logging_steps: float = 10
    save_strategy: str = "no"
    remove_unused_columns: bool = False


def flowers(folder: Path) -> DatasetDict:
    if not folder.exists():
        with tarfile.open(FLOWERS) as archive:
            archive.extractall(folder, filter="data")
    return load_dataset("imagefolder", data_dir=str(folder))


def digits(first: int, seed: int) -> DatasetDict:
    """Five digits from `first` on; pixels in [0, 1], four times as large, since the network halves the sides."""
    scans, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero((labels >= first) & (labels < first + 5)))
    images = scans[chosen].reshape(-1, 8, 8).repeat(4, 1).repeat(4, 2) / 16
    names = ClassLabel(names=[str(digit) for digit in range(first, first + 5)])
    parts = {"train": slice(0, 500), "validation": slice(500, 700), "test": slice(700, None)}
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"image": images[part].astype("float32").tolist(), "label": (labels[chosen] - first)[part].tolist()}
            ).cast_column("label", names)
            for name, part in parts.items()
        }
    )


def pretrained_on_digits(dataset: Dataset) -> ResNetForImageClassification:
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = ResNetForImageClassification(config)
    images, labels = torch.tensor(dataset["image"]).unsqueeze(1), torch.tensor(dataset["label"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        rows = torch.randint(len(labels), (64,))
        model(pixel_values=images[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def compute_metrics(prediction):
    return {"accuracy": accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1))}


def main() -> None:
    script_args, training_args = HfArgumentParser(
        (ScriptArguments, FlowersTrainingArguments)
    ).parse_args_into_dataclasses()
    set_seed(training_args.seed)

    model_name = script_args.model_name_or_path or (str(MOBILENET) if MOBILENET.exists() else None)
    if script_args.image_folder:
        dataset = load_dataset("imagefolder", data_dir=script_args.image_folder)
    elif script_args.dataset_name:
        dataset = load_dataset(script_args.dataset_name)
    elif model_name and FLOWERS.exists():
        dataset = flowers(Path(training_args.output_dir).parent / "flowers-images")
    else:
        dataset, model_name = digits(5, seed=0), None
    train = dataset["train"].shuffle(seed=training_args.data_seed or 0)
    if script_args.train_examples:
        train = train.select(range(min(script_args.train_examples, len(train))))

    if model_name:
        processor = AutoImageProcessor.from_pretrained(model_name)
        names = train.features["label"].names
        config = AutoConfig.from_pretrained(
            model_name, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
        )
        if getattr(config, "classifier_dropout_prob", 0) > 0.9:
            config.classifier_dropout_prob = 0.001  # Some MobileNet configs hold the share that is kept.
        model = AutoModelForImageClassification.from_pretrained(model_name, config=config, ignore_mismatched_sizes=True)
    else:
        processor, model = None, pretrained_on_digits(digits(0, seed=0)["train"])

    def collate(examples):
        images = [example["image"] for example in examples]
        if processor is None:
            pixels = torch.tensor(images).unsqueeze(1)
        else:
            pixels = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=dataset["validation"],
        data_collator=collate,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.log_metrics("test", trainer.evaluate(dataset["test"], metric_key_prefix="test"))


if __name__ == "__main__":
    main()
