"""What is trained, on which rates and seeds, in which rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.adaptive_lr.tasks import Task, digits, sentiment
from benchmarks.data import has_reviews

BENCHMARK = "adaptive_lr"
PLATEAU = "stock reduce_lr_on_plateau"
# Evaluations without improvement after which a run stops: `plateau` has a patience of two and makes three cuts.
EARLY_STOPPING = {f"{PLATEAU}, early stopping": 8, f"{PLATEAU}, early stopping after 4": 4}
STOCK = next(iter(EARLY_STOPPING))
OTHER = ", other seed (A/A)"
AGAIN = STOCK + OTHER
LINEAR = "stock linear"
DEFAULT, HELD_OUT = "default", "default, hold_out=0.2"
# What is named for `adaptive-lr`, by row.
OURS = {DEFAULT: "adaptive-lr", HELD_OUT: "adaptive-lr:hold_out=0.2"} | {
    controller: f"adaptive-lr:controller={controller}" for controller in ("plateau", "greedy", "rollback")
}
METRICS = ("NLL best", "NLL end", "accuracy best", "accuracy end", "steps")
OTHER_SEED = 1000  # added for the A/A row


@dataclass(frozen=True)
class Setting:
    """A task family and how long to train on it, at which base rates.

    Attributes:
        eval_steps: None: nothing is evaluated, so that what a run ends with stands for its best.
        gate: of the worst rate's NLL of `gated`.
        stock, again: the row that all are compared with, and the one that is the same with another seed.
    """

    name: str
    task: Callable[[int], Task]
    rates: tuple[float, float, float]
    seeds: int
    rows: tuple[str, ...]
    steps: int
    eval_steps: int | None
    batch: int
    eval_batch: int
    warmup: int
    gate: float
    gated: str = DEFAULT
    stock: str = STOCK
    again: str = AGAIN


def settings(quick: bool) -> list[Setting]:
    on_digits: dict[str, Any] = {
        "rates": (3e-4, 3e-3, 3e-2),
        "seeds": 3 if quick else 16,
        "steps": 600,
        "batch": 32,
        "eval_batch": 300,
        "warmup": 20,
    }
    others = ("stock cosine", PLATEAU, "stock greedy", *list(EARLY_STOPPING)[1:], "plateau", "greedy", "rollback")
    evaluated: dict[str, Any] = on_digits | {
        "rows": (LINEAR, STOCK, AGAIN, DEFAULT, *(() if quick else others)),
        "eval_steps": 20,
    }
    chosen = [
        Setting(name="digits, noisy dev", task=lambda seed: digits(seed, noisy_dev=True), gate=0.93, **evaluated),
        Setting(name="digits, clean dev", task=lambda seed: digits(seed, noisy_dev=False), gate=0.9, **evaluated),
        Setting(
            name="digits, nothing evaluated",
            task=lambda seed: digits(seed, noisy_dev=True),
            rows=(LINEAR, LINEAR + OTHER, "stock cosine", DEFAULT, HELD_OUT),
            eval_steps=None,
            gate=0.93,
            gated=HELD_OUT,
            stock=LINEAR,
            again=LINEAR + OTHER,
            **on_digits,
        ),
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
            seeds=1 if quick else 5,
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
