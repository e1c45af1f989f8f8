"""What is trained: a pretrained model, its data, the rows that are compared, their rates and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from benchmarks.transfer.images import Examples, digits, digits_model, flowers, mobilenet
from benchmarks.transfer.sentences import FOLDERS, few_sentences, minilm

BENCHMARK = "transfer"


STOCK, AGAIN, SCRATCH = "stock", "stock, other seed (A/A)", "stock from scratch"


OURS = ("transfer", "transfer:strategy=gradual")


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
    for name in FOLDERS:
        for each, steps in ((8, 30), (32, 40), (128, 60)):
            data = partial(few_sentences, name=name, each=each, quick=quick)
            setting = (f"{name} with {each} a class", data, minilm, (2e-5, 1e-4, 5e-4), round(steps * share), 16)
            # Without `gradual`, which is not for runs as short as these: the time goes to more seeds.
            found.append(Setting(*setting, rows[:3]))
    if quick:
        found = [found[0], *(replace(setting, rates=setting.rates[1:2]) for setting in found[1:])]
    return {setting.name: setting for setting in found}
