"""What `task` gains on data with a long tail: macro-F1, accuracy and calibration of the model that a run leaves behind.

    python -m benchmarks.task [--device cuda] [--quick] [--json] [--write]

Settings: scikit-learn's digits, the number of training rows falling geometrically from the first class to the last, 50
to 1; and film reviews (MR) on a pretrained MiniLM, one positive review to 50 negative ones, where the data is (folder
FT_DATA, default ../shared/data). The dev set has the training set's frequencies, as a set cut from the same data has.
All rows use the real Trainer, the same data, initial weights and steps; the micro-batch is the batch, so that stock's
loss is right. Rows: `stock` keeps its checkpoint of best dev loss; the others name task's `imbalance` and
`frequencies`, everything else its default: best checkpoint by macro-F1, early stopping, calibration.

The model that is measured is the one that `train()` leaves, on two readings of one test set:

- **balanced**: every class counts as much, as is usual for long-tailed benchmarks (Menon et al. 2021, arXiv:2007.07314,
  section 5): what `frequencies=equal` asks for.
- **natural**: every class counts as much as in the training set, by weighting test rows: what
  `frequencies=evaluation`, the default, asks for here.

A row has gates on the reading that it asks for.

`ours` and `baseline` are means over seeds, `ratio` is that of the means, `quartiles` are of the seeds' ratios. `noise`
is `report.noise_floor` of the A/A ratios, one per seed: stock with another initialization and order of the data against
stock. ECE has 15 bins.
"""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, disable_progress_bars
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks import report
from benchmarks.data import MINILM, has_reviews, reviews
from benchmarks.report import Gate, LeftOut, Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins

BENCHMARK = "task"
STOCK, AGAIN = "stock", "stock, other seed (A/A)"
GATED = {"logit_adjust, equal": "balanced", "logit_adjust, evaluation": "natural", "none, evaluation": "natural"}
OURS = (*GATED, "none, equal", "weights, equal", "sampler, equal", "focal, evaluation")
RATIO = 50
READINGS = ("balanced", "natural")
METRICS = ("macro-F1", "accuracy", "ECE")
OTHER_SEED = 1000  # added for the A/A row
BINS = 15


@dataclass(frozen=True)
class Data:
    """One seed's data and network."""

    new_model: Callable[[], torch.nn.Module]
    collate: Callable[[list[Any]], dict[str, Any]]
    train: Dataset
    dev: Dataset
    test: Dataset


@dataclass(frozen=True)
class Setting:
    """A data set and how long to train on it."""

    name: str
    data: Callable[[int], Data]
    steps: int
    eval_steps: int
    batch: int
    rate: float
    seeds: int
    rows: tuple[str, ...]


def tail_counts(classes: int, most: int) -> np.ndarray:
    """Rows of each class, falling geometrically from `most` to a fiftieth, int [classes]."""
    return np.maximum(np.round(most * (1 / RATIO) ** (np.arange(classes) / (classes - 1))), 1).astype(int)


def tailed(labels: np.ndarray, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Positions of so many rows of each class, in random order."""
    chosen = [random.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    return random.permutation(np.concatenate(chosen))


# ---- digits ----


def digits(seed: int) -> Data:
    random = np.random.default_rng(seed)
    scans, labels = load_digits(return_X_y=True)
    order = random.permutation(len(labels))
    scans, labels = scans[order].reshape(-1, 1, 8, 8) / 16, labels[order]
    # 100 rows of the most frequent class to train on and 50 for the dev set leave 27 of every class to test.
    train = tailed(labels, tail_counts(10, 100), random)
    rest = np.setdiff1d(np.arange(len(labels)), train)
    dev = rest[tailed(labels[rest], tail_counts(10, 50), random)]
    rest = np.setdiff1d(rest, dev)
    test = rest[tailed(labels[rest], np.full(10, np.bincount(labels[rest]).min()), random)]

    def part(rows: np.ndarray) -> Dataset:
        columns = {"pixel_values": scans[rows].tolist(), "label": labels[rows].tolist()}
        return Dataset.from_dict(columns).cast_column("label", ClassLabel(names=[str(digit) for digit in range(10)]))

    def collate(rows: list[Any]) -> dict[str, Any]:
        pixels = torch.tensor([row["pixel_values"] for row in rows], dtype=torch.float32)
        return {
            # The network halves the sides four times.
            "pixel_values": torch.nn.functional.interpolate(pixels, scale_factor=4),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    def new_model() -> torch.nn.Module:
        size = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **size))

    return Data(new_model, collate, part(train), part(dev), part(test))


# ---- text ----


def sentiment(seed: int, *, negatives: int, tested: int, max_length: int) -> Data:
    """`negatives` negative reviews to train on and as many for the dev set, a fiftieth as many positive ones."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    random = np.random.default_rng(seed)

    def read(part: str) -> tuple[list[str], np.ndarray]:
        rows = reviews(part)
        return [row["text"] for row in rows], np.array([row["label"] for row in rows])

    def part(texts: Sequence[str], labels: np.ndarray, rows: np.ndarray) -> Dataset:
        ids = tokenizer([texts[row] for row in rows], truncation=True, max_length=max_length)["input_ids"]
        return Dataset.from_dict({"input_ids": ids, "label": labels[rows].tolist()}).cast_column(
            "label", ClassLabel(names=["negative", "positive"])
        )

    texts, labels = read("train")
    counts = np.array([negatives, negatives // RATIO])
    both = tailed(labels, 2 * counts, random)
    train = np.concatenate([both[labels[both] == label][: counts[label]] for label in (0, 1)])
    test_texts, test_labels = read("test")
    return Data(
        new_model=lambda: AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2, dtype=torch.float32),
        collate=DataCollatorWithPadding(tokenizer),
        train=part(texts, labels, train),
        dev=part(texts, labels, np.setdiff1d(both, train)),
        test=part(test_texts, test_labels, tailed(test_labels, np.full(2, tested // 2), random)),
    )


# ---- one run ----


def quality(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """METRICS where test rows count by `weights`; written apart from the package's own metrics, which it judges."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    chosen, sure = shares.argmax(axis=1), shares.max(axis=1)
    right = (chosen == labels).astype(float)
    gap = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure > low) & (sure <= low + 1 / BINS)
        gap += abs((weights * (sure - right))[inside].sum()) / weights.sum()
    return {
        "macro-F1": f1_score(labels, chosen, average="macro", sample_weight=weights),
        "accuracy": accuracy_score(labels, chosen, sample_weight=weights),
        "ECE": gap,
    }


def train_once(setting: Setting, data: Data, row: str, seed: int, device: str) -> dict[tuple[str, str], float]:
    """Train one row; its METRICS by reading."""
    seed += OTHER_SEED * (row == AGAIN)
    set_seed(seed)
    ours = not row.startswith("stock")
    best = {} if ours else {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    with tempfile.TemporaryDirectory() as folder:
        imbalance, _, frequencies = row.partition(", ")
        technique = f"task:imbalance={imbalance},frequencies={frequencies}"
        trainer = (with_plugins(Trainer, technique) if ours else Trainer)(
            model=data.new_model(),
            args=TrainingArguments(
                output_dir=folder,
                seed=seed,
                learning_rate=setting.rate,
                max_steps=setting.steps,
                warmup_steps=0.1,
                per_device_train_batch_size=setting.batch,
                per_device_eval_batch_size=64,
                eval_strategy="steps",
                eval_steps=setting.eval_steps,
                save_strategy="steps",
                save_steps=setting.eval_steps,
                save_total_limit=1,
                save_only_model=True,
                logging_steps=setting.eval_steps,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                **best,
            ),
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=data.dev,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.compute_metrics = None
        output = trainer.predict(data.test)
    labels = np.array(data.test["label"])
    frequencies = np.bincount(data.train["label"], minlength=output.predictions.shape[1]).astype(float)
    weights = {"balanced": 1 / np.bincount(labels)[labels], "natural": (frequencies / np.bincount(labels))[labels]}
    found = {reading: quality(output.predictions.astype(np.float64), labels, weights[reading]) for reading in READINGS}
    return {(reading, metric): found[reading][metric] for reading in READINGS for metric in METRICS}


# ---- all runs ----

Measured = dict[str, dict[tuple[str, str], np.ndarray]]  # row -> (reading, metric) -> values, (seeds,)


def measure(setting: Setting, device: str) -> Measured:
    """Every row at every seed; rows are innermost, so that a slow minute hits all alike."""
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    runs: dict[str, list[dict[tuple[str, str], float]]] = {row: [] for row in setting.rows}
    for seed in track(range(setting.seeds), setting.name, console=Console(stderr=True), transient=True):
        data = setting.data(seed)
        for row in setting.rows:
            runs[row].append(train_once(setting, data, row, seed, device))
    return {row: {key: np.array([run[key] for run in found]) for key in found[0]} for row, found in runs.items()}


GATES = {
    ("balanced", "macro-F1"): Gate("ratio", ">=", 1.1),
    ("balanced", "accuracy"): Gate("difference", ">=", 0),
    ("balanced", "ECE"): Gate("ratio", "<=", 1),
    ("natural", "accuracy"): Gate("difference", ">=", 0),
    ("natural", "ECE"): Gate("ratio", "<=", 1),
}


def results_of(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    for reading in READINGS:
        for row in setting.rows[1:]:
            for metric in METRICS:
                key = (reading, metric)
                ours, stock = float(measured[row][key].mean()), float(measured[STOCK][key].mean())
                yield report.row(
                    *(BENCHMARK, f"{setting.name}, {reading}: {row}: {metric}", ours, stock),
                    ratio=ours / stock,
                    noise=noise_floor(measured[AGAIN][key] / measured[STOCK][key]),
                    gate=GATES.get(key) if GATED.get(row) == reading else None,
                    conditions={
                        **about,
                        "quartiles": quartiles(measured[row][key] / measured[STOCK][key]),
                        "over_seeds": measured[row][key].tolist(),
                        "baseline_over_seeds": measured[STOCK][key].tolist(),
                    },
                )


def settings_of(quick: bool) -> list[Setting]:
    seeds = 2 if quick else 5
    rows = (STOCK, AGAIN, *GATED)
    # A run on reviews takes a minute or two, one on digits seconds.
    found = [Setting("digits", digits, 150, 30, 32, 3e-3, seeds, rows if quick else (STOCK, AGAIN, *OURS))]
    if not has_reviews():
        return found

    def text(seed: int) -> Data:
        sizes = {"negatives": 500, "tested": 200} if quick else {"negatives": 1500, "tested": 1000}
        return sentiment(seed, max_length=32, **sizes)

    steps = (60, 30) if quick else (200, 40)
    return [*found, Setting("sentiment", text, *steps, 16, 5e-5, seeds, rows)]


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    disable_progress_bars()
    for setting in settings_of(asked.quick):
        measured = measure(setting, asked.device)
        about = report.conditions(asked.device, seeds=setting.seeds, steps=setting.steps, ratio=RATIO)
        yield from results_of(setting, measured, about)
    if not has_reviews():
        yield LeftOut("sentiment: there are no reviews; set FT_DATA to their folder")


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
