"""What the adaptive learning rate gains: test quality and steps over three base rates, against stock schedules.

    python -m benchmarks.adaptive_lr [--device cuda] [--quick] [--json]

Settings: 300 of scikit-learn's digits with 40 % wrong training labels, at most 600 steps, the dev set's labels as
noisy or clean; and, where the data is (folder FT_DATA, default ../shared/data), fine-tuning a pretrained MiniLM encoder
on a few hundred film reviews. The test set is always clean. All rows use the real Trainer, the same data, the same
initial weights and the same evaluations of the dev loss; `plateau`, `greedy` and `rollback` are adaptive-lr's with
default options on the linear schedule. Of transformers' own adaptive schedulers, `reduce_lr_on_plateau` gets our factor
and patience (its default patience of 10 evaluations rarely ends before these runs do), and `greedy` gets the lower
bound of its paper (arXiv:2512.14527), a tenth of the base rate, since its default of 1e-3 only ever raises lower rates,
with our factor and patience for the same reason.

No checkpoint is written: a callback takes the test metrics at each best dev loss ("best"), and the model that `train()`
leaves behind gives the others ("end"). `ours` and `baseline` are means over seeds. "Worst rate" is the rate at which
that mean is worst, for each row its own. Stock's best rate is the one with the lowest mean dev loss of stock linear.
`noise` is `report.noise_floor` of the A/A ratios, one per seed: stock linear with another initialization and data order
against stock linear. Gates hold without regard to the noise.
"""

from __future__ import annotations

import gc
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_ft_plugins import with_plugins

from .data import MINILM, has_reviews, reviews
from .report import Result, arguments, conditions, noise_floor, show

BENCHMARK = "adaptive_lr"
STOCK, AGAIN = "stock linear", "stock linear, other seed (A/A)"
OURS = ("plateau", "greedy", "rollback")
METRICS = ("NLL best", "NLL end", "accuracy best", "accuracy end", "steps")
OTHER_SEED = 1000  # added for the A/A row


@dataclass(frozen=True)
class Task:
    """One seed's data and network; `test` is already collated."""

    new_model: Callable[[], torch.nn.Module]
    collate: Callable[[list[Any]], dict[str, Any]]
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    """A task family and how long to train on it, at which base rates."""

    name: str
    task: Callable[[int], Task]
    rates: tuple[float, float, float]
    seeds: int
    rows: tuple[str, ...]
    steps: int
    eval_steps: int
    batch: int
    eval_batch: int
    warmup: int
    threads: int


# ---- digits ----


class Perceptron(torch.nn.Module):
    """Two hidden layers, large enough to learn 300 wrong labels by heart."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, 10),
        )

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def digits(seed: int, *, noisy_dev: bool) -> Task:
    random = np.random.default_rng(seed)
    scans, labels = load_digits(return_X_y=True)
    order = random.permutation(len(labels))
    scans, labels = scans[order] / 16, labels[order]
    train, dev, test = slice(0, 300), slice(300, 600), slice(600, None)
    noisy = with_wrong_labels(labels, 0.4, 10, random)

    def rows(part: slice, part_labels: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"pixels": torch.tensor(scan, dtype=torch.float32), "labels": int(label)}
            for scan, label in zip(scans[part], part_labels[part], strict=True)
        ]

    return Task(
        new_model=Perceptron,
        collate=default_data_collator,
        train=rows(train, noisy),
        dev=rows(dev, noisy if noisy_dev else labels),
        test=[default_data_collator(rows(test, labels))],
    )


def with_wrong_labels(labels: np.ndarray, share: float, classes: int, random: np.random.Generator) -> np.ndarray:
    wrong = random.random(len(labels)) < share
    return np.where(wrong, (labels + random.integers(1, classes, len(labels))) % classes, labels)


# ---- text ----


def sentiment(seed: int, *, train: int, dev: int, test: int, max_length: int) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    collate = DataCollatorWithPadding(tokenizer)

    def rows(part: str, count: int) -> list[dict[str, Any]]:
        examples = reviews(part)
        chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
        texts = [examples[index]["text"] for index in chosen]
        encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return [
            {"input_ids": ids, "labels": examples[index]["label"]} for ids, index in zip(encoded, chosen, strict=True)
        ]

    def by_length(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(examples, key=lambda example: len(example["input_ids"]))

    both = rows("train", train + dev)
    tested = by_length(rows("test", test))
    return Task(
        new_model=lambda: AutoModelForSequenceClassification.from_pretrained(MINILM, dtype=torch.float32),
        collate=collate,
        train=both[:train],
        dev=by_length(both[train:]),
        test=[collate(tested[start : start + 50]) for start in range(0, len(tested), 50)],
    )


# ---- one run ----


@torch.no_grad()
def test_quality(model: torch.nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Mean negative log likelihood and accuracy."""
    model.eval()
    device = next(model.parameters()).device
    nll, right, count = 0.0, 0, 0
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        logits, labels = model(**batch)["logits"].float(), batch["labels"]
        nll += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return nll / count, right / count


class BestByDevLoss(TrainerCallback):
    """Takes the test metrics whenever the dev loss is the lowest so far: what the best checkpoint would give."""

    def __init__(self, test: Sequence[dict[str, torch.Tensor]]) -> None:
        self.test = test
        self.loss = math.inf
        self.quality = (math.nan, math.nan)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, model: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        if metrics["eval_loss"] < self.loss:
            self.loss = metrics["eval_loss"]
            self.quality = test_quality(model, self.test)


def trainer_class(row: str) -> type[Trainer]:
    """The Trainer of a row: `stock ...`, or adaptive-lr's controller and further options (`plateau:factor=0.1`)."""
    return Trainer if row.startswith("stock") else with_plugins(Trainer, f"adaptive-lr:controller={row}")


def schedule(row: str, rate: float) -> dict[str, Any]:
    """A row's scheduler, as TrainingArguments name it."""
    if row == "stock reduce_lr_on_plateau":
        # torch forgives `patience` bad values and cuts at the next; ours cuts at the second.
        return {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.3, "patience": 1}}
    if row == "stock greedy":
        return {
            "lr_scheduler_type": "greedy",
            "lr_scheduler_kwargs": {"factor": 0.9, "patience": 0, "min_lr": 0.1 * rate},
        }
    return {"lr_scheduler_type": "cosine" if row == "stock cosine" else "linear"}


def train_once(setting: Setting, task: Task, row: str, rate: float, seed: int, device: str) -> dict[str, float]:
    """Train one row; its METRICS, and the best dev loss."""
    seed += OTHER_SEED * (row == AGAIN)
    set_seed(seed)
    best = BestByDevLoss(task.test)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(row)(
            model=task.new_model(),
            args=TrainingArguments(
                output_dir=folder,
                seed=seed,
                learning_rate=rate,
                max_steps=setting.steps,
                warmup_steps=setting.warmup,
                per_device_train_batch_size=setting.batch,
                per_device_eval_batch_size=setting.eval_batch,
                eval_strategy="steps",
                eval_steps=setting.eval_steps,
                logging_steps=setting.eval_steps,
                metric_for_best_model="eval_loss",
                prediction_loss_only=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                use_cpu=device == "cpu",
                **schedule(row, rate),
            ),
            data_collator=task.collate,
            train_dataset=task.train,
            eval_dataset=task.dev,
            callbacks=[best],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    end = test_quality(trainer.model, task.test)
    values = (best.quality[0], end[0], best.quality[1], end[1], float(trainer.state.global_step))
    return dict(zip(METRICS, values, strict=True)) | {"dev loss": best.loss}


# ---- all runs ----

Measured = dict[str, dict[str, np.ndarray]]  # row -> metric -> values, (rates, seeds)


def measure(setting: Setting, device: str) -> Measured:
    """Every row at every rate and seed; rows are innermost, so that a slow minute hits all alike."""
    torch.set_num_threads(setting.threads)
    # The Trainer collects garbage at every start; what is here already is none.
    gc.freeze()
    shape = (len(setting.rates), setting.seeds)
    measured: Measured = {
        row: {name: np.full(shape, np.nan) for name in (*METRICS, "dev loss")} for row in setting.rows
    }
    runs = [(seed, index) for seed in range(setting.seeds) for index in range(len(setting.rates))]
    task, of_seed = None, None
    for seed, index in track(runs, setting.name, console=Console(stderr=True), transient=True):
        if task is None or of_seed != seed:
            task, of_seed = setting.task(seed), seed
        for row in setting.rows:
            for name, value in train_once(setting, task, row, setting.rates[index], seed, device).items():
                measured[row][name][index, seed] = value
    return measured


def worst(values: np.ndarray) -> float:
    return float(values.mean(axis=1).max())


def headline_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> list[Result]:
    """The gated quantities, for every row but stock linear."""
    stock, again = measured[STOCK], measured[AGAIN]
    tuned = int(stock["dev loss"].mean(axis=1).argmin())

    def row_results(row: str) -> list[Result]:
        run = measured[row]
        results = []

        def add(metric: str, ours: float, baseline: float, aa: np.ndarray, gate: str, met: bool) -> None:
            promised = row in OURS and gate != ""
            results.append(
                Result(
                    benchmark=BENCHMARK,
                    metric=f"{setting.name}: {row}: {metric}",
                    ours=ours,
                    baseline=baseline,
                    ratio=ours / baseline,
                    noise=noise_floor(aa),
                    gate=gate if promised else None,
                    met=met if promised else None,
                    conditions={**about, "stock_best_rate": setting.rates[tuned]},
                )
            )

        for ours_at, stock_at, gate in (("end", "best", "ratio <= 0.9"), ("best", "best", ""), ("end", "end", "")):
            ours, baseline = worst(run[f"NLL {ours_at}"]), worst(stock[f"NLL {stock_at}"])
            aa = again[f"NLL {stock_at}"].max(axis=0) / stock[f"NLL {stock_at}"].max(axis=0)
            metric = f"worst-rate NLL, {ours_at} against stock's {stock_at}"
            add(metric, ours, baseline, aa, gate, ours <= 0.9 * baseline)
        steps, stock_steps = float(run["steps"].mean()), float(stock["steps"].mean())
        aa = again["steps"].mean(axis=0) / stock["steps"].mean(axis=0)
        add("steps, mean over rates", steps, stock_steps, aa, "ratio <= 0.75", steps <= 0.75 * stock_steps)
        for ours_at, gate in (("end", "ours >= baseline - 0.01"), ("best", "")):
            ours = float(run[f"accuracy {ours_at}"][tuned].mean())
            baseline = float(stock["accuracy best"][tuned].mean())
            aa = again["accuracy best"][tuned] / stock["accuracy best"][tuned]
            metric = f"accuracy at stock's best rate, {ours_at} against stock's best"
            add(metric, ours, baseline, aa, gate, ours >= baseline - 0.01)
        return results

    return [result for row in setting.rows if row != STOCK for result in row_results(row)]


def detail_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> list[Result]:
    """Every row, rate and metric against stock linear at the same rate, without gates."""
    return [
        Result(
            benchmark=BENCHMARK,
            metric=f"{setting.name}: {row}: {name} at {rate:g}",
            ours=float(measured[row][name][index].mean()),
            baseline=float(measured[STOCK][name][index].mean()),
            ratio=float(measured[row][name][index].mean() / measured[STOCK][name][index].mean()),
            noise=noise_floor(measured[AGAIN][name][index] / measured[STOCK][name][index]),
            gate=None,
            met=None,
            conditions={**about, "over_seeds": measured[row][name][index].tolist()},
        )
        for row in setting.rows
        for index, rate in enumerate(setting.rates)
        for name in METRICS
    ]


def detail_table(setting: Setting, measured: Measured) -> Table:
    """The same as a table: mean over seeds, and standard deviation."""
    table = Table(
        "row", "rate", *METRICS, title=f"{setting.name}: mean ± standard deviation over {setting.seeds} seeds"
    )
    for row in setting.rows:
        for index, rate in enumerate(setting.rates):
            values = [measured[row][name][index] for name in METRICS]
            cells = [f"{value.mean():.4g} ± {value.std():.2g}" for value in values]
            table.add_row(row if index == 0 else "", f"{rate:g}", *cells, end_section=index == len(setting.rates) - 1)
    return table


def settings(quick: bool) -> list[Setting]:
    on_digits: dict[str, Any] = {
        "rates": (3e-4, 3e-3, 3e-2),
        "seeds": 3 if quick else 6,
        "rows": (STOCK, AGAIN, "stock cosine", "stock reduce_lr_on_plateau", "stock greedy", *OURS),
        "steps": 600,
        "eval_steps": 20,
        "batch": 32,
        "eval_batch": 300,
        "warmup": 20,
        "threads": 1,
    }
    chosen = [
        Setting(name="digits, noisy dev", task=lambda seed: digits(seed, noisy_dev=True), **on_digits),
        Setting(name="digits, clean dev", task=lambda seed: digits(seed, noisy_dev=False), **on_digits),
    ]
    if not has_reviews():
        print("sentiment: skipped, FT_DATA names no folder with ckpt_minilm_l6 and sentiment_mr", file=sys.stderr)
        return chosen
    size = (
        {"train": 100, "dev": 100, "test": 200, "max_length": 24}
        if quick
        else {"train": 200, "dev": 150, "test": 300, "max_length": 32}
    )
    chosen.append(
        Setting(
            name="sentiment",
            task=lambda seed: sentiment(seed, **size),
            rates=(2e-5, 2e-4, 2e-3),
            seeds=1 if quick else 2,
            rows=(STOCK, AGAIN, "plateau", "rollback"),
            steps=30 if quick else 60,
            eval_steps=5 if quick else 6,
            batch=16,
            eval_batch=50,
            warmup=3 if quick else 6,
            threads=torch.get_num_threads(),
        )
    )
    return chosen


def main() -> None:
    args = arguments(__doc__ or "")
    for setting in settings(args.quick):
        measured = measure(setting, args.device)
        about = conditions(
            args.device,
            seeds=setting.seeds,
            rates=setting.rates,
            max_steps=setting.steps,
            batch=setting.batch,
            eval_steps=setting.eval_steps,
        )
        results = headline_results(setting, measured, about)
        if args.json:
            results += detail_results(setting, measured, about)
        else:
            Console(width=160).print(detail_table(setting, measured))
        show(results, as_json=args.json)


if __name__ == "__main__":
    main()
