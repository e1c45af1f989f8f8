"""What the adaptive learning rate gains: test quality and steps over three base rates, against early stopping.

    python -m benchmarks.adaptive_lr [--device cuda] [--quick] [--json] [--write]

Settings: 300 of scikit-learn's digits with 40 % wrong training labels, at most 600 steps, the dev set's labels as
noisy or clean; and, where the data is (folder FT_DATA, default ../shared/data), fine-tuning a pretrained MiniLM encoder
on a few hundred film reviews, of which 10 or 40 % have the wrong label, in the dev set, too. The test set is always
clean. All rows use the real Trainer, the same data, the same initial weights and the same evaluations of the dev loss;
`default` is adaptive-lr without options (climb), `plateau`, `greedy` and `rollback` its other controllers, all on the
linear schedule. Defaults were chosen on digits with seeds 100 to 105 and 200 to 215.

The baseline is the strongest that transformers has: `reduce_lr_on_plateau` with `EarlyStoppingCallback` and the best
checkpoint. It gets what `plateau` has: the factor, the patience of a cut, and the stop after as many evaluations
without improvement as that waits for three cuts and an end, eight. A second row stops after four. Of transformers' own
adaptive schedulers without early stopping, `reduce_lr_on_plateau` gets that factor and patience (its default patience
of 10 evaluations rarely ends before these runs do), and `greedy` gets the lower bound of its paper (arXiv:2512.14527),
a tenth of the base rate, since its default of 1e-3 only ever raises lower rates, with our factor and patience for the
same reason.

No checkpoint is written: a callback takes the test metrics at each best dev loss ("best"), and the model that `train()`
leaves behind gives the others ("end"). `ours` and `baseline` are means over seeds, `quartiles` are of the seeds'
ratios. "Worst rate" is the rate at which that mean is worst, for each row its own. The baseline's best rate is the one
with its lowest mean dev loss. `noise` is `report.noise_floor` of the A/A ratios, one per seed: the baseline with
another initialization and data order against itself.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks import report
from benchmarks.data import MINILM, has_reviews, reviews
from benchmarks.report import Gate, LeftOut, Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins

BENCHMARK = "adaptive_lr"
PLATEAU = "stock reduce_lr_on_plateau"
# Evaluations without improvement after which a run stops: `plateau` has a patience of two and makes three cuts.
EARLY_STOPPING = {f"{PLATEAU}, early stopping": 8, f"{PLATEAU}, early stopping after 4": 4}
STOCK = next(iter(EARLY_STOPPING))
AGAIN = f"{STOCK}, other seed (A/A)"
DEFAULT = "default"
OURS = (DEFAULT, "plateau", "greedy", "rollback")
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
    gate: float  # of the worst rate's NLL


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


def sentiment(seed: int, *, train: int, dev: int, test: int, max_length: int, wrong: float) -> Task:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    collate = DataCollatorWithPadding(tokenizer)

    def rows(part: str, count: int, wrong: float) -> list[dict[str, Any]]:
        examples, random = reviews(part), np.random.default_rng(seed)
        chosen = random.permutation(len(examples))[:count]
        texts = [examples[index]["text"] for index in chosen]
        labels = np.array([examples[index]["label"] for index in chosen])
        encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        noisy = with_wrong_labels(labels, wrong, 2, random)
        return [{"input_ids": ids, "labels": int(label)} for ids, label in zip(encoded, noisy, strict=True)]

    def by_length(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(examples, key=lambda example: len(example["input_ids"]))

    both = rows("train", train + dev, wrong)
    tested = by_length(rows("test", test, 0))
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
    if row.startswith("stock"):
        return Trainer
    return with_plugins(Trainer, "adaptive-lr" if row == DEFAULT else f"adaptive-lr:controller={row}")


def schedule(row: str, rate: float) -> dict[str, Any]:
    """A row's scheduler, as TrainingArguments name it."""
    if row.startswith(PLATEAU):
        # torch forgives `patience` bad values and cuts at the next; ours cuts at the second.
        return {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.3, "patience": 1}}
    if row == "stock greedy":
        return {
            "lr_scheduler_type": "greedy",
            "lr_scheduler_kwargs": {"factor": 0.9, "patience": 0, "min_lr": 0.1 * rate},
        }
    return {"lr_scheduler_type": "cosine" if row == "stock cosine" else "linear"}


def early_stopping(row: str) -> list[TrainerCallback]:
    patience = EARLY_STOPPING.get(row.removesuffix(AGAIN.removeprefix(STOCK)))
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


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
            callbacks=[best, *early_stopping(row)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    end = test_quality(trainer.model, task.test)
    values = (best.quality[0], end[0], best.quality[1], end[1], float(trainer.state.global_step))
    return dict(zip(METRICS, values, strict=True)) | {"dev loss": best.loss}


# ---- all runs ----

Measured = dict[str, dict[str, np.ndarray]]  # row -> metric -> values, (rates, seeds)


def one_of_each(quick: bool, name: str, index: int, seed: int, device: str) -> dict[str, dict[str, float]]:
    """All rows of a setting, at one of its rates and one seed; to be called in any process."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    setting = next(one for one in settings(quick) if one.name == name)
    task = setting.task(seed)
    return {row: train_once(setting, task, row, setting.rates[index], seed, device) for row in setting.rows}


def measured_by(setting: Setting, quick: bool, device: str, pool: Executor) -> Measured:
    """Every row at every rate and seed."""
    shape = (len(setting.rates), setting.seeds)
    measured: Measured = {
        row: {name: np.full(shape, np.nan) for name in (*METRICS, "dev loss")} for row in setting.rows
    }
    running = {
        (index, seed): pool.submit(one_of_each, quick, setting.name, index, seed, device)
        for seed in range(setting.seeds)
        for index in range(len(setting.rates))
    }
    for place, job in track(running.items(), setting.name, console=Console(stderr=True), transient=True):
        for row, values in job.result().items():
            for name, value in values.items():
                measured[row][name][place] = value
    return measured


def worst(values: np.ndarray) -> float:
    return float(values.mean(axis=1).max())


def headline_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    """The gated quantities, for every row but the baseline."""
    stock, again = measured[STOCK], measured[AGAIN]
    tuned = int(stock["dev loss"].mean(axis=1).argmin())
    more = {**about, "baseline": STOCK, "baseline_best_rate": setting.rates[tuned]}

    def result(
        row: str, metric: str, values: tuple[float, float], seeds: list[np.ndarray], gate: Gate | None
    ) -> Result:
        ours, aa, baseline = seeds
        return report.row(
            *(BENCHMARK, f"{setting.name}: {row}: {metric}", *values),
            ratio=values[0] / values[1],
            noise=noise_floor(aa / baseline),
            gate=gate if row == DEFAULT else None,
            conditions={**more, "quartiles": quartiles(ours / baseline)},
        )

    for row in setting.rows:
        if row == STOCK:
            continue
        run = measured[row]
        for ours_at, stock_at, gate in (
            ("end", "best", Gate("ratio", "<=", setting.gate)),
            ("best", "best", None),
            ("end", "end", None),
        ):
            values = worst(run[f"NLL {ours_at}"]), worst(stock[f"NLL {stock_at}"])
            seeds = [run[f"NLL {ours_at}"], again[f"NLL {stock_at}"], stock[f"NLL {stock_at}"]]
            metric = f"worst-rate NLL, {ours_at} against the baseline's {stock_at}"
            yield result(row, metric, values, [one.max(axis=0) for one in seeds], gate)
        values = worst(run["NLL end"]), float(stock["NLL best"][tuned].mean())
        seeds = [run["NLL end"].max(axis=0), again["NLL best"][tuned], stock["NLL best"][tuned]]
        metric = "worst-rate NLL, end against the baseline's best at its best rate"
        yield result(row, metric, values, seeds, Gate("ratio", "<=", 1.05))
        steps = [one["steps"].mean(axis=0) for one in (run, again, stock)]
        values = float(steps[0].mean()), float(steps[2].mean())
        yield result(row, "steps, mean over rates", values, steps, Gate("ratio", "<=", 0.6))
        for ours_at, gate in (("end", Gate("difference", ">=", -0.01)), ("best", None)):
            seeds = [run[f"accuracy {ours_at}"], again["accuracy best"], stock["accuracy best"]]
            seeds = [one[tuned] for one in seeds]
            metric = f"accuracy at the baseline's best rate, {ours_at} against its best"
            yield result(row, metric, (float(seeds[0].mean()), float(seeds[2].mean())), seeds, gate)


def detail_results(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    """Every row, rate and metric against the baseline at the same rate, without gates."""
    stock = measured[STOCK]
    for row in setting.rows:
        for index, rate in enumerate(setting.rates):
            for name in METRICS:
                ours, baseline = measured[row][name][index], stock[name][index]
                yield report.row(
                    *(BENCHMARK, f"{setting.name}: {row}: {name} at {rate:g}"),
                    *(float(ours.mean()), float(baseline.mean())),
                    ratio=float(ours.mean() / baseline.mean()),
                    noise=noise_floor(measured[AGAIN][name][index] / baseline),
                    conditions={
                        **about,
                        "quartiles": quartiles(ours / baseline),
                        "deviation": float(ours.std()),
                        "over_seeds": ours.tolist(),
                    },
                )


def settings(quick: bool) -> list[Setting]:
    on_digits: dict[str, Any] = {
        "rates": (3e-4, 3e-3, 3e-2),
        "seeds": 3 if quick else 6,
        "rows": ("stock linear", "stock cosine", PLATEAU, "stock greedy", *EARLY_STOPPING, AGAIN, *OURS),
        "steps": 600,
        "eval_steps": 20,
        "batch": 32,
        "eval_batch": 300,
        "warmup": 20,
    }
    chosen = [
        Setting(name="digits, noisy dev", task=lambda seed: digits(seed, noisy_dev=True), gate=0.93, **on_digits),
        Setting(name="digits, clean dev", task=lambda seed: digits(seed, noisy_dev=False), gate=0.9, **on_digits),
    ]
    if not has_reviews():
        return chosen
    size = (
        {"train": 100, "dev": 100, "test": 200, "max_length": 24}
        if quick
        else {"train": 200, "dev": 150, "test": 300, "max_length": 32}
    )
    chosen += [
        Setting(
            name=f"sentiment, {wrong:.0%} wrong labels",
            task=lambda seed, wrong=wrong: sentiment(seed, **size, wrong=wrong),
            rates=(2e-5, 2e-4, 2e-3),
            seeds=1 if quick else 3,
            rows=(STOCK, AGAIN, DEFAULT),
            steps=30 if quick else 60,
            eval_steps=5 if quick else 6,
            batch=16,
            eval_batch=50,
            warmup=3 if quick else 6,
            gate=1.0,
        )
        for wrong in (0.1, 0.4)
    ]
    return chosen


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    # One run a core; what is measured does not depend on time. A GPU takes one after the other.
    workers = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for setting in settings(asked.quick):
            measured = measured_by(setting, asked.quick, asked.device, pool)
            about = report.conditions(
                asked.device,
                seeds=setting.seeds,
                rates=setting.rates,
                max_steps=setting.steps,
                batch=setting.batch,
                eval_steps=setting.eval_steps,
                threads_a_run=1,
            )
            yield from headline_results(setting, measured, about)
            yield from detail_results(setting, measured, about)
    if not has_reviews():
        yield LeftOut("sentiment: FT_DATA names no folder with ckpt_minilm_l6 and sentiment_mr")


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
