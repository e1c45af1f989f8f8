"""The probe's speed: how soon a head on frozen features is as good as the slower of two ways makes it."""

from __future__ import annotations

import math
import tempfile
import time
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, default_data_collator

from benchmarks import report
from benchmarks.report import Gate, Result
from benchmarks.transfer.images import Examples, flowers, mobilenet
from benchmarks.transfer.runs import accuracy, as_rows, trainer_of
from benchmarks.transfer.settings import BENCHMARK
from hf_ft_plugins.techniques.transfer import fit_probe


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
