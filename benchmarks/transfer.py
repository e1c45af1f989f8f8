"""What transfer gains on small data sets, in and out of distribution, against stock fine-tuning.

    python -m benchmarks.transfer [--device cuda] [--quick] [--json] [--write]

Settings, each a pretrained model, a few labelled examples and a test set, all rows with the same examples, steps,
batches and new head:

- digits: a small ResNet that has learned 900 scans, half of them inverted, shifted or blurred, gets a new head and 80
  other, plain scans; tested plain (in distribution) and inverted, shifted, blurred (out of it).
- flowers: MobileNetV1 0.25/128 from ImageNet, 40 photographs of each of five flowers; tested likewise. Its config's
  dropout of 0.999 (of a converted checkpoint; the share that is kept) is set to 0.001 in every row.
- sentiment: MiniLM-L6 on 8, 32 or 128 film-review sentences a class; tested in distribution.

Flowers and sentiment need the folder FT_DATA (default ../shared/data) and are skipped without it. A row's rate is the
one of three with the best mean accuracy in distribution on dev data, for each row its own. `ours` and `baseline` are
mean accuracies over seeds, in points; `ratio` is their quotient. `noise` is `report.noise_floor` of stock's accuracy
with another initialization and order of data over stock's, one ratio a seed; `quartiles` are of the seeds' ratios.
`by_rate` holds mean and deviation of every part at every rate.

The probe's speed: seconds until the head on the frozen MobileNet reaches, on dev data, the accuracy that the slower of
the two ends with, less a point; evaluations are not counted. Rounds are interleaved; the A/A is stock's probe again.
What both reach on the test set stands in the conditions.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from benchmarks import report
from benchmarks.data import DATA, MINILM, has_reviews, reviews
from benchmarks.report import Gate, LeftOut, Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.transfer import fit_probe

BENCHMARK = "transfer"
STOCK, AGAIN, SCRATCH = "stock", "stock, other seed (A/A)", "stock from scratch"
OURS = ("transfer", "transfer:strategy=gradual")
OTHER_SEED = 1000
Examples = tuple[dict[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """A pretrained model, its data, and how long to train."""

    name: str
    data: Callable[[int], dict[str, Examples]]  # seed -> train, dev, test, and tests out of distribution
    model: Callable[[int, bool], Any]  # seed, from scratch?
    rates: tuple[float, ...]
    steps: int
    batch: int
    rows: tuple[str, ...]


# ---- images, out of distribution ----


def inverted(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.max() + pixels.min() - pixels


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    by = max(1, pixels.shape[-1] // 6)
    moved = torch.full_like(pixels, pixels.min().item())
    moved[..., by:, by:] = pixels[..., :-by, :-by]
    return moved


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    reach = 1 if pixels.shape[-1] < 32 else 2
    edges = torch.nn.functional.pad(pixels, (reach,) * 4, mode="replicate")
    return torch.nn.functional.avg_pool2d(edges, 2 * reach + 1, 1)


SHIFTS = {"inverted": inverted, "shifted": shifted, "blurred": blurred}


def images(pixels: torch.Tensor, labels: torch.Tensor) -> Examples:
    return {"pixel_values": pixels}, labels


def with_shifts(parts: dict[str, Examples]) -> dict[str, Examples]:
    inputs, labels = parts["test"]
    return parts | {name: images(change(inputs["pixel_values"]), labels) for name, change in SHIFTS.items()}


# ---- digits ----


@cache
def scans(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    small = torch.tensor(pixels[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    # The network halves the sides four times.
    return torch.nn.functional.interpolate(small, scale_factor=4), torch.tensor(labels[order])


def digits(seed: int) -> dict[str, Examples]:
    pixels, labels = scans(seed)
    parts = {"train": slice(900, 980), "dev": slice(980, 1180), "test": slice(1180, None)}
    return with_shifts({name: images(pixels[part], labels[part]) for name, part in parts.items()})


def small_resnet() -> Any:
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10
        )
    )


@cache
def pretrained_resnet(seed: int) -> Any:
    set_seed(seed + 2 * OTHER_SEED)  # Else the new head would begin as the head that these features grew up with.
    model, (pixels, labels) = small_resnet(), scans(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(900, (64,))
        shown = pixels[rows]
        kinds = torch.randint(2 * len(SHIFTS), (len(rows), 1, 1, 1))
        for kind, change in enumerate(SHIFTS.values()):
            shown = torch.where(kinds == kind, change(pixels[rows]), shown)
        model(pixel_values=shown, labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def digits_model(seed: int, scratch: bool) -> Any:
    pretrained = pretrained_resnet(seed % OTHER_SEED)
    set_seed(seed)
    model = small_resnet()
    if not scratch:
        model.resnet.load_state_dict(pretrained.resnet.state_dict())
    return model


# ---- flowers ----


def mobilenet(seed: int, scratch: bool) -> Any:
    folder = DATA / "ckpt_mobilenet_v1_025_128" / "hf"
    config = AutoConfig.from_pretrained(folder, id2label={index: str(index) for index in range(5)})
    config.classifier_dropout_prob = 0.001
    set_seed(seed)
    if scratch:
        return AutoModelForImageClassification.from_config(config)
    return AutoModelForImageClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)


@cache
def photographs() -> dict[str, Examples]:
    found: dict[str, list[tuple[np.ndarray, str]]] = {"train": [], "validation": [], "test": []}
    with tarfile.open(DATA / "flowers5_128px" / "flowers5_128px.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".jpg"):
                split, flower = member.name.split("/")[-3:-1]
                content = archive.extractfile(member)
                assert content is not None
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                found[split].append((np.asarray(image).transpose(2, 0, 1), flower))
    names = sorted({flower for _, flower in found["test"]})
    return {
        split: images(
            torch.from_numpy(np.stack([pixels for pixels, _ in rows])).float() / 127.5 - 1,
            torch.tensor([names.index(flower) for _, flower in rows]),
        )
        for split, rows in found.items()
    }


def flowers(seed: int, each: int = 40) -> dict[str, Examples]:
    parts = photographs()
    inputs, labels = parts["train"]
    random = np.random.default_rng(seed)
    rows = np.concatenate([random.permutation(np.flatnonzero(labels.numpy() == flower))[:each] for flower in range(5)])
    train = images(inputs["pixel_values"][rows], labels[rows])
    return with_shifts({"train": train, "dev": parts["validation"], "test": parts["test"]})


# ---- sentiment ----


def minilm(seed: int, scratch: bool) -> Any:
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=2)


@cache
def encoded_reviews(part: str) -> Examples:
    tokenizer, rows = AutoTokenizer.from_pretrained(MINILM), reviews(part)
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=32, padding="max_length", return_tensors="pt"
    )
    return dict(encoded), torch.tensor([row["label"] for row in rows])


def few_reviews(seed: int, each: int, quick: bool) -> dict[str, Examples]:
    random = np.random.default_rng(seed)
    labels = encoded_reviews("train")[1].numpy()
    few = np.concatenate([random.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)])
    some = np.random.default_rng(0).permutation(1000)
    return {
        "train": chosen(encoded_reviews("train"), few),
        "dev": chosen(encoded_reviews("dev"), some[: 80 if quick else 200]),
        "test": chosen(encoded_reviews("test"), some[: 160 if quick else 400]),
    }


def chosen(examples: Examples, rows: np.ndarray) -> Examples:
    inputs, labels = examples
    return {name: values[rows] for name, values in inputs.items()}, labels[rows]


# ---- one run ----


def as_rows(examples: Examples) -> list[dict[str, torch.Tensor]]:
    inputs, labels = examples
    return [
        {"labels": label, **{name: values[row] for name, values in inputs.items()}} for row, label in enumerate(labels)
    ]


def accuracy(model: Any, examples: Examples, device: str) -> float:
    """In points."""
    inputs, labels = examples
    model.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(labels), 100):
            batch = {name: values[start : start + 100].to(device) for name, values in inputs.items()}
            hits += int((model(**batch).logits.argmax(-1).cpu() == labels[start : start + 100]).sum())
    return 100 * hits / len(labels)


def trainer_of(model: Any, rows: list[Any], folder: str, device: str, *techniques: str, **changes: Any) -> Trainer:
    host = with_plugins(Trainer, *techniques) if techniques else Trainer
    settings: dict[str, Any] = {
        "output_dir": folder,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
    }
    trainer = host(
        model=model,
        args=TrainingArguments(**(settings | changes)),
        train_dataset=rows,
        data_collator=default_data_collator,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def one_run(setting: str, row: str, rate: float, seed: int, device: str, threads: int, quick: bool) -> dict[str, float]:
    """Accuracies in points on every part but the training set."""
    torch.set_num_threads(threads)
    task = settings(quick)[setting]
    data = task.data(seed)
    own_seed = seed + (OTHER_SEED if row == AGAIN else 0)
    model = task.model(own_seed, row == SCRATCH)
    techniques = [row] if row.startswith("transfer") else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            model,
            as_rows(data["train"]),
            folder,
            device,
            *techniques,
            learning_rate=rate,
            max_steps=task.steps,
            per_device_train_batch_size=task.batch,
            seed=own_seed,
        )
        trainer.train()
    return {name: accuracy(model, examples, device) for name, examples in data.items() if name != "train"}


def _in_a_process(job: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, float]]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return job, one_run(*job)


@cache
def settings(quick: bool) -> dict[str, Setting]:
    """By name; quick ones have fewer steps and rows, and but for digits only the middle rate."""
    rows: tuple[str, ...] = (STOCK, AGAIN, *(OURS[:1] if quick else OURS))
    image_rows = rows if quick else (*rows, SCRATCH)
    share = 0.4 if quick else 1.0
    found = [
        Setting("digits", digits, digits_model, (3e-4, 1e-3, 3e-3), 200, 16, image_rows),
        Setting("flowers", flowers, mobilenet, (3e-4, 1e-3, 3e-3), round(100 * share), 32, image_rows),
    ]
    for each, steps in ((8, 30), (32, 40), (128, 60)):
        data = partial(few_reviews, each=each, quick=quick)
        name = f"sentiment with {each} a class"
        found.append(Setting(name, data, minilm, (2e-5, 1e-4, 5e-4), round(steps * share), 16, rows))
    if quick:
        found = [found[0], *(replace(setting, rates=setting.rates[1:2]) for setting in found[1:])]
    return {setting.name: setting for setting in found}


Measured = dict[str, dict[str, np.ndarray]]  # row -> part -> accuracies [rates, seeds]


def measure(names: list[str], seeds: dict[str, int], device: str, quick: bool) -> dict[str, Measured]:
    """All runs, two processes at a time on a CPU: what is measured does not depend on time."""
    threads = 1 if device == "cpu" else torch.get_num_threads()
    jobs = [
        (name, row, rate, seed, device, threads, quick)
        for name in names
        for seed in range(seeds[name])
        for rate in settings(quick)[name].rates
        for row in settings(quick)[name].rows
    ]
    processes = (os.cpu_count() or 1) if device == "cpu" else 1
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        console = Console(stderr=True)
        found = dict(track(pool.imap(_in_a_process, jobs), "runs", total=len(jobs), console=console))
    measured: dict[str, Measured] = {}
    for name in names:
        setting, over_seeds = settings(quick)[name], range(seeds[name])
        parts = found[name, STOCK, setting.rates[0], 0, device, threads, quick]
        measured[name] = {
            row: {
                part: np.array(
                    [
                        [found[name, row, rate, seed, device, threads, quick][part] for seed in over_seeds]
                        for rate in setting.rates
                    ]
                )
                for part in parts
            }
            for row in setting.rows
        }
    return measured


# ---- results ----


def at_its_best(run: dict[str, np.ndarray]) -> tuple[int, np.ndarray, np.ndarray | None]:
    """The best rate by dev accuracy, and the seeds' accuracies in and out of distribution there."""
    best = int(run["dev"].mean(axis=1).argmax())
    out = [run[name][best] for name in SHIFTS if name in run]
    return best, run["test"][best], np.mean(out, axis=0) if out else None


def results_of(setting: Setting, measured: Measured, about: dict[str, Any]) -> Iterator[Result]:
    name = setting.name
    _, stock, stock_out = at_its_best(measured[STOCK])
    _, again, again_out = at_its_best(measured[AGAIN])
    for row in setting.rows:
        if row == STOCK:
            continue
        best, inside, outside = at_its_best(measured[row])
        for metric, ours, base, aa in (
            ("in distribution", inside, stock, again),
            ("out of distribution", outside, stock_out, again_out),
        ):
            if ours is None or base is None or aa is None:
                continue
            yield report.row(
                *(BENCHMARK, f"{name}: {row}: accuracy {metric}", float(ours.mean()), float(base.mean())),
                ratio=float(ours.mean() / base.mean()),
                noise=noise_floor(aa / base),
                gate=gate_of(name, metric) if row in OURS else None,
                conditions={
                    **about,
                    "rate": setting.rates[best],
                    "quartiles": quartiles(ours / base),
                    "over_seeds": ours.tolist(),
                    "stock_over_seeds": base.tolist(),
                    "by_rate": {
                        f"{rate:g}": {
                            part: [float(found[index].mean()), float(found[index].std())]
                            for part, found in measured[row].items()
                        }
                        for index, rate in enumerate(setting.rates)
                    },
                },
            )


def gate_of(setting: str, metric: str) -> Gate:
    """In points, but for digits out of distribution."""
    if metric == "out of distribution":
        return Gate("ratio", ">=", 1.8) if setting == "digits" else Gate("difference", ">=", 5)
    if not setting.startswith("sentiment"):
        return Gate("difference", ">=", 1)
    # With 128 a class there is little to gain.
    return Gate("difference", ">=", -1 if "128" in setting else 3)


# ---- the probe's speed ----


class FirstReached(TrainerCallback):
    """Dev accuracy after every `every` steps, with the seconds of training before it."""

    def __init__(self, dev: Examples, every: int, device: str) -> None:
        self.dev, self.every, self.device = dev, every, device
        self.seconds, self.curve = 0.0, []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.seconds += time.perf_counter() - self.began
            self.curve.append((self.seconds, accuracy(model, self.dev, self.device)))
            model.train()
            self.began = time.perf_counter()


def stock_probe(seed: int, steps: int, device: str) -> tuple[list[tuple[float, float]], float]:
    """Seconds and dev accuracy as it trained, and the test accuracy in the end."""
    data, model = flowers(seed), mobilenet(seed, False)
    for weight in model.mobilenet_v1.parameters():
        weight.requires_grad_(False)
    watch = FirstReached(data["dev"], steps // 20, device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            model,
            as_rows(data["train"]),
            folder,
            device,
            learning_rate=1e-2,
            max_steps=steps,
            per_device_train_batch_size=32,
            seed=seed,
        )
        trainer.add_callback(watch)
        trainer.train()
    return watch.curve, accuracy(model, data["test"], device)


def our_probe(seed: int, device: str) -> tuple[float, float, float]:
    """Seconds, and accuracy on dev and test."""
    data, model = flowers(seed), mobilenet(seed, False).to(device)
    loader = DataLoader(as_rows(data["train"]), batch_size=100, collate_fn=default_data_collator)
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in loader]
    began = time.perf_counter()
    fit_probe(model, batches, learning_rate=1e-2, steps=300, seed=seed)
    seconds = time.perf_counter() - began
    return seconds, accuracy(model, data["dev"], device), accuracy(model, data["test"], device)


def probe_results(rounds: int, steps: int, device: str) -> list[Result]:
    """Of a second, how many probes are fitted to equal accuracy."""
    probes: dict[str, list[float]] = {"our probe": [], "stock's": [], "stock's again (A/A)": []}
    reached = []
    for seed in range(rounds):
        curve, stock_test = stock_probe(seed, steps, device)
        seconds, score, test = our_probe(seed, device)
        again, _ = stock_probe(seed, steps, device)
        target = min(score, curve[-1][1]) - 1
        probes["our probe"].append(1 / seconds)
        for name, found in (("stock's", curve), ("stock's again (A/A)", again)):
            probes[name].append(1 / next((at for at, value in found if value >= target), math.inf))
        reached.append((test, stock_test))
    gates = {("our probe", "stock's"): Gate("ratio", ">=", 10)}
    about = report.conditions(device, stock_steps=steps, test_accuracies_ours_and_stock=reached)
    again_of = "stock's again (A/A)", "stock's"
    return report.compared(BENCHMARK, "flowers: probes a second, to equal accuracy", probes, gates, again_of, about)


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    names = ["digits"]
    if (DATA / "flowers5_128px").exists() and (DATA / "ckpt_mobilenet_v1_025_128").exists():
        names.append("flowers")
    if has_reviews():
        names += [name for name in settings(asked.quick) if name.startswith("sentiment")]
    for name in settings(asked.quick):
        if name not in names:
            yield LeftOut(f"{name}: FT_DATA names no folder with its data")
    seeds = {name: (1 if name != "digits" else 2) if asked.quick else 5 for name in names}
    if "flowers" in names:
        yield from probe_results(1 if asked.quick else 5, 60 if asked.quick else 200, asked.device)
    measured = measure(names, seeds, asked.device, asked.quick)
    for name in names:
        setting = settings(asked.quick)[name]
        about = report.conditions(asked.device, seeds=seeds[name], rates=setting.rates, max_steps=setting.steps)
        yield from results_of(setting, measured[name], about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
