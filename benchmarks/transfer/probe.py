"""The probe's speed: 20 epochs of a head on a frozen backbone, and how soon it is as good as the slower way's."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, default_data_collator

from benchmarks import report
from benchmarks.report import Gate, Result
from benchmarks.transfer.images import Examples, flowers, mobilenet
from benchmarks.transfer.runs import accuracy, as_rows, trainer_of
from benchmarks.transfer.sentences import long_texts, minilm
from benchmarks.transfer.settings import BENCHMARK
from hf_ft_plugins.techniques.transfer import fit_probe

EPOCHS = 20


@dataclass(frozen=True)
class Probed:
    """What a head learns from: the data of a seed, a new model, how to freeze it, and stock's rate."""

    name: str
    data: Callable[[int], dict[str, Examples]]
    model: Callable[[int, bool], Any]
    backbone: str
    rate: float


PROBED = (
    Probed("MobileNet photographs", flowers, mobilenet, "mobilenet_v1", 1e-2),
    Probed("MiniLM at 128 tokens", long_texts, minilm, "bert", 1e-3),
)
STOCK_PROBE, AGAIN_PROBE, OUR_PROBE = "stock", "stock again (A/A)", "transfer:strategy=probe"


def twenty_epochs(quick: bool, device: str) -> Iterator[Result]:
    """Seconds of `train()`, of processor time on a CPU; ours is done before the first step, and the run then ends."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    for probed in PROBED:
        seconds: dict[str, list[float]] = {STOCK_PROBE: [], AGAIN_PROBE: [], OUR_PROBE: []}
        right: dict[str, list[float]] = {name: [] for name in seconds}
        for seed in range(1 if quick else 3):
            data = probed.data(seed)
            if quick:
                data["train"] = _every_third(data["train"])
            for row in seconds:
                model = probed.model(seed, False)
                if row != OUR_PROBE:
                    getattr(model, probed.backbone).requires_grad_(False)
                with tempfile.TemporaryDirectory() as folder:
                    more = {"num_train_epochs": EPOCHS, "per_device_train_batch_size": 32, "seed": seed}
                    techniques = [row] if row == OUR_PROBE else []
                    trainer = trainer_of(
                        *(model, as_rows(data["train"]), folder, device, *techniques), learning_rate=probed.rate, **more
                    )
                    began = clock()
                    trainer.train()
                    seconds[row].append(clock() - began)
                right[row].append(accuracy(model, data["test"], device))
        ours, stock = (sum(right[row]) / len(right[row]) for row in (OUR_PROBE, STOCK_PROBE))
        about = report.conditions(device, epochs=EPOCHS, accuracy_ours=ours, accuracy_stock=stock)
        speeds = {row: [1 / value for value in found] for row, found in seconds.items()}
        yield from report.compared(
            *(BENCHMARK, f"{probed.name}: heads a second, {EPOCHS} epochs", speeds),
            *({(OUR_PROBE, STOCK_PROBE): Gate("ratio", ">=", 10)}, (AGAIN_PROBE, STOCK_PROBE), about),
        )


def _every_third(examples: Examples) -> Examples:
    inputs, labels = examples
    return {name: values[::3] for name, values in inputs.items()}, labels[::3]


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
    gates: dict[tuple[str, str], Gate | None] = {("our probe", "stock's"): None}
    about = report.conditions(device, stock_steps=steps, test_accuracies_ours_and_stock=reached)
    again_of = "stock's again (A/A)", "stock's"
    return report.compared(BENCHMARK, "flowers: probes a second, to equal accuracy", probes, gates, again_of, about)
