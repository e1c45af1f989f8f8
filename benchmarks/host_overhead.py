"""What the host costs: time of one optimizer step, stock Trainer against hosts of it; and of the import.

    python -m benchmarks.host_overhead [--device cuda] [--quick] [--json] [--write]

One process trains four Trainers from the same seed in turns: stock; stock again (A/A); `with_plugins(Trainer)` without
a technique; and with `adaptive-lr`, whose averaging time is set so long that it watches every step and decides
nothing. In every round each takes a block of ten steps, in shuffled order, so that a slow moment hits all alike; a
block holds one log. All of it is repeated with new Trainers, since where their tensors happen to lie makes one of two
equal ones faster for as long as it lives. `ours` and `baseline` are medians over blocks in milliseconds a step;
`ratio` is the median over rounds of (variant's block / stock's block in the same round), and `quartiles` are those of
it. `noise` is `report.noise_floor` of the A/A ratios: 95 % of bootstrap resamples of their median lie within it of 1. A
gate is met only if the ratio and the noise together keep it, so with more noise than a gate allows none is. One row
holds that all four end with the same training loss.

The same on two gloo ranks (CPU only), where ranks also have to agree on stops and saves in each step if a callback of
somebody else's is there: once without and once with one. Saving is not in it: each checkpoint costs what its manifest
does, which is measured apart, on one file of 1 GiB (`--quick`: 128 MiB): `ours` is the seconds of the manifest, with
digests or with sizes alone, `baseline` those of writing the file, by safetensors, to disk.

The import is timed as whole processes, `python -c "import hf_ft_plugins"` and `python -c "pass"` in turn; `ours` is the
difference of the medians in milliseconds, `baseline` the median of the bare process, and `noise` half the
interquartile range of the bare process's times; A/A is the bare process in every second round against the others.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks import report
from benchmarks.endurance.worlds import DDP, on_ranks
from benchmarks.report import Gate, Result
from hf_ft_plugins import with_plugins
from hf_ft_plugins.host.manifest import MANIFEST_FILE, SIZES_VARIABLE, write_manifest

BENCHMARK = "host_overhead"
STOCK, AGAIN, HOST, ADAPTIVE = "stock", "stock again (A/A)", "host, no technique", "host, adaptive-lr"
OWN_CALLBACK = "host, a callback of the script's own"
GATES = {HOST: 1.01, ADAPTIVE: 1.02}
IMPORT_GATE_MS = 60
BLOCK = 10  # steps in one turn, and between two logs
BATCH, TOKENS, VOCABULARY = 8, 16, 2000


class SomebodyElses(TrainerCallback):
    """A callback of the script's own, which does nothing."""


class InTurns(TrainerCallback):
    """Runs one trainer on a thread of its own, a block at a time when `turn` is called, and times the blocks."""

    # As one of Trainer's own: it sets no flag, so ranks need not agree because of it.
    __module__ = "transformers.trainer_callback"

    def __init__(self, trainer: Trainer) -> None:
        self.wall: list[float] = []  # ms a step
        self.cpu: list[float] = []
        self.loss = float("nan")
        self._error: BaseException | None = None
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._start = (0.0, 0.0)
        self.trainer = trainer
        trainer.add_callback(self)
        threading.Thread(target=self._run, daemon=True).start()

    def turn(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        self._begin_block()
        try:
            self.loss = self.trainer.train().training_loss
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    def _begin_block(self) -> None:
        self._go.acquire()
        self._start = (time.perf_counter(), time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % BLOCK:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = self._start
        self.wall.append(1000 * (time.perf_counter() - wall) / BLOCK)
        self.cpu.append(1000 * (time.process_time() - cpu) / BLOCK)
        self._done.release()
        self._begin_block()


def trainer_classes() -> dict[str, type[Trainer]]:
    return {
        STOCK: Trainer,
        AGAIN: Trainer,
        HOST: with_plugins(Trainer),
        ADAPTIVE: with_plugins(Trainer, "adaptive-lr:ema_steps=1000000000"),
    }


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row[0] % 2} for row in tokens]


def new_trainer(trainer_class: type[Trainer], steps: int, device: str, folder: str, ranks: int = 1) -> Trainer:
    """A Trainer of a tiny BERT, always with the same weights and data."""
    set_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
        # All trainers share one random state, so with dropout their losses would depend on the order of turns.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    trainer = trainer_class(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            logging_strategy="steps",
            logging_steps=BLOCK,
            eval_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            ddp_backend="gloo" if ranks > 1 else None,
        ),
        train_dataset=sentences(steps * BATCH * ranks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_in_turns(rounds: int, device: str, repetition: int, ranks: int = 1) -> dict[str, InTurns]:
    """Every variant's timed blocks; block i of one variant ran right before or after block i of every other."""
    shuffle = random.Random(repetition)
    classes = trainer_classes()
    if ranks > 1:
        classes[OWN_CALLBACK] = classes[HOST]
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            name: InTurns(new_trainer(trainer_class, (rounds + 1) * BLOCK, device, folder, ranks))
            for name, trainer_class in classes.items()
        }
        if ranks > 1:
            variants[OWN_CALLBACK].trainer.add_callback(SomebodyElses())
        # One turn more than there are blocks: the last is the end of the training.
        for _ in range(rounds + 2):
            for name in shuffle.sample(list(variants), len(variants)):
                variants[name].turn()
    return variants


def step_results(repetitions: list[dict[str, InTurns]], about: dict[str, Any]) -> list[Result]:
    results = []
    for clock in ("wall", "cpu"):
        blocks = {
            # The first block also builds the optimizer.
            name: np.concatenate([getattr(variants[name], clock)[1:] for variants in repetitions])
            for name in repetitions[0]
        }
        gates = {(name, STOCK): Gate("ratio", "<=", bound) for name, bound in GATES.items()}
        results += report.compared(BENCHMARK, f"{clock} ms per step", blocks, gates, (AGAIN, STOCK), about)
    return results


def two_rank_results(count: int, rounds: int, about: dict[str, Any]) -> list[Result]:
    """The same, of rank 0 beside another one, with the script's own callback besides."""

    def work(rank: int) -> dict[str, dict[str, list[float]]]:
        found = [run_in_turns(rounds, "cpu", number, ranks=2) for number in range(count)]
        return {
            clock: {name: [ms for one in found for ms in getattr(one[name], clock)[1:]] for name in found[0]}
            for clock in ("wall", "cpu")
        }

    end = on_ranks(DDP, work, patience=count * rounds * 60.0)[0]
    if "value" not in end:
        raise RuntimeError(str(end))
    gates: dict[tuple[str, str], Gate | None] = {(HOST, STOCK): Gate("ratio", "<=", GATES[HOST])}
    gates |= {(ADAPTIVE, STOCK): Gate("ratio", "<=", GATES[ADAPTIVE]), (OWN_CALLBACK, STOCK): None}
    return [
        result
        for clock, blocks in end["value"].items()
        for result in report.compared(
            BENCHMARK, f"two ranks, {clock} ms per step", blocks, gates, (AGAIN, STOCK), about | {"ranks": 2}
        )
    ]


def loss_result(repetitions: list[dict[str, InTurns]], about: dict[str, Any]) -> Result:
    losses = {name: variant.loss for name, variant in repetitions[0].items()}
    return report.row(
        *(BENCHMARK, "different training losses of the four", len(set(losses.values())), 1),
        gate=Gate("ours", "=", 1),
        conditions=about | {"training_losses": losses},
    )


def import_results(repetitions: int, about: dict[str, Any]) -> list[Result]:
    bare, ours = "pass", "import hf_ft_plugins"
    times: dict[str, list[float]] = {bare: [], ours: []}
    for code in (bare, ours):
        _process_ms(code)
    for _ in range(repetitions):
        for code in (bare, ours):
            times[code].append(_process_ms(code))
    first, again = times[bare][::2], times[bare][1::2]
    quarter, middle, three_quarters = statistics.quantiles(times[bare], n=4)
    noise = (three_quarters - quarter) / 2
    more = {**about, "processes": repetitions, "quartiles_of_the_bare_process": [quarter, three_quarters]}
    return [
        report.row(
            *(BENCHMARK, "ms of a bare process: every second against the others (A/A)"),
            *(statistics.median(again), statistics.median(first)),
            ratio=statistics.median(again) / statistics.median(first),
            noise=noise / middle,
            conditions=more,
        ),
        report.row(
            *(BENCHMARK, "ms that the import adds", statistics.median(times[ours]) - middle, middle),
            noise=noise,
            gate=Gate("ours", "<=", IMPORT_GATE_MS),
            conditions=more,
        ),
    ]


def manifest_results(size: int, rounds: int, about: dict[str, Any]) -> Iterator[Result]:
    """Seconds of a manifest against those of writing what it is of, medians of rounds."""
    weights = {"weight": torch.zeros(size // 4).uniform_()}
    written: list[float] = []
    took: dict[str, list[float]] = {"digests": [], "sizes alone": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(rounds):
            began = time.perf_counter()
            save_file(weights, folder / "model.safetensors")
            # What a checkpoint costs at least, whoever writes it: the manifest's flush finds it on the disk.
            with open(folder / "model.safetensors", "rb") as handle:
                os.fsync(handle.fileno())
            written.append(time.perf_counter() - began)
            for kind, seconds in took.items():
                os.environ[SIZES_VARIABLE] = str(int(kind == "sizes alone"))
                began = time.perf_counter()
                write_manifest(folder)
                seconds.append(time.perf_counter() - began)
                (folder / MANIFEST_FILE).unlink()
    del os.environ[SIZES_VARIABLE]
    for kind, seconds in took.items():
        yield report.row(
            *(BENCHMARK, f"seconds of a manifest with {kind}, of {size // 2**20} MiB"),
            *(statistics.median(seconds), statistics.median(written)),
            ratio=statistics.median(seconds) / statistics.median(written),
            conditions=about | {"rounds": rounds, "written": written, "seconds": seconds},
        )


def _process_ms(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - start)


def measured(asked: Namespace) -> Iterator[Result]:
    torch.set_num_threads(1)
    count, rounds = (5, 25) if asked.quick else (30, 30)
    # Before this process has threads, as it forks.
    two = two_rank_results(max(1, count // 3), rounds, report.conditions("cpu")) if asked.device == "cpu" else []
    repetitions = [
        run_in_turns(rounds, asked.device, number)
        for number in track(range(count), "repetitions", console=Console(stderr=True), transient=True)
    ]
    about = report.conditions(
        asked.device,
        repetitions=count,
        steps_per_block=BLOCK,
        model=f"BERT, one layer of 64, batch {BATCH} of {TOKENS} tokens",
    )
    yield from step_results(repetitions, about)
    yield from two
    yield loss_result(repetitions, about)
    yield from manifest_results(2**27 if asked.quick else 2**30, 3 if asked.quick else 5, report.conditions("cpu"))
    yield from import_results(15 if asked.quick else 31, about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured))
