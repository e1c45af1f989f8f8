"""What is left of a language model without some of its layers: quality after healing, speed, and whether it is right.

    python -m benchmarks.layer_removal [--device cuda] [--quick] [--json] [--write]

- healing: a Llama of 12 layers that was trained on 10.1 M tokens of books and Wikipedia loses 2, 3 and 4 of them, and
  heals in Trainer on 1 % as many tokens of the same books (full fine-tuning, `layer-removal` with its defaults and
  `distill=8`). Baselines, healed alike, distilled alike: the last layers, and random ones, the mean of five draws.
  Measured on held-out books, on other passages of them than those by which rate, batch and weight were chosen. `ours`
  and `baseline` are gaps of perplexity to the whole model as it was; gates: at most 1/2 of either baseline's gap, and
  at least 60 % of the gap before healing recovered. In the conditions: the draws (`draws`), the whole model trained on
  the same tokens (`whole_trained_alike`), and the gaps to that; `noise`: twice the deviation of the healed model's
  perplexity, from a second order of the data (the A/A row), as a share of our gap. `--quick`: 3 layers,
  0.6 % as many tokens, two draws, and no whole model trained alike.
- speed: forward passes (8 rows of 256 tokens) and greedy decoding with a cache (8 rows, 64 tokens) a second,
  interleaved with the whole model, whose second run is the A/A; gate 0.9 / (1 - fraction). Embeddings and head stay;
  `share_of_blocks` is the blocks' part of the forward time.
- right: 25 architectures with two of six layers removed, saved, loaded, and generating with a cache; counts of right or
  refused by name. Baseline: taking the modules out of their list alone.

Model and books are read from FT_DATA (default ../shared/data); without them the first two rows are left out.
"""

from __future__ import annotations

import json
import lzma
import math
import statistics
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Trainer, TrainingArguments, set_seed

from benchmarks import report
from benchmarks.data import DATA
from benchmarks.report import Gate, LeftOut, Result
from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.layer_removal import (
    LayerRemoval,
    block_stacks,
    choose_layers,
    remove_layers,
    verify_model,
)
from hf_ft_plugins.techniques.layer_removal.score import mean_loss
from hf_ft_plugins.testing.examples.layer_removal import REFUSED, RIGHT, built

BENCHMARK = "layer_removal"
BOOKS = DATA / "ckpt_books_lm"
TEXTS = DATA / "gutenberg_books"
TRAINED_ON = 10_100_000  # tokens, by the model's SOURCE.md
LENGTH, EVALUATED_AT_ONCE = 256, 8
# Of 1e-4 to 2e-3, batches of 2 to 8, and weights of 0 to 16: what recovered most on the dev rows. The original is
# at its optimum for this text, and a higher rate, or the text alone, undoes a part of that (`whole_trained_alike`).
BATCH, RATE, DISTILL = 2, 3e-4, 8.0
OURS, LAST, RANDOM = "auto", "last", "random"
GAP, RECOVERED, SPEED = 0.5, 0.6, 0.9
# File, and the character where each book's rows begin: past the front matter; the test rows past all dev rows.
PARTS = {"train": ("train", 20_000), "dev": ("validation", 20_000), "test": ("validation", 60_000)}


def rows_of(part: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Windows of 256 tokens, from all books of a part alike that are long enough."""
    tokenizer = AutoTokenizer.from_pretrained(BOOKS)
    file, start = PARTS[part]
    with lzma.open(TEXTS / f"{file}.jsonl.xz", "rt", encoding="utf-8") as lines:
        books = [book for book in (json.loads(line)["text"] for line in lines) if len(book) > start]
    each = math.ceil(count / len(books))
    rows = []
    for book in books:
        # About four characters a token.
        ids = tokenizer(book[start : start + 6 * LENGTH * each])["input_ids"]
        windows = [torch.tensor(ids[at : at + LENGTH]) for at in range(0, len(ids) - LENGTH + 1, LENGTH)]
        rows += [{"input_ids": window, "labels": window} for window in windows[:each]]
    return rows[:count]


def whole(device: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(BOOKS, dtype=torch.float32).to(device)


def perplexity(model: Any, rows: list[dict[str, torch.Tensor]]) -> float:
    model.train(False)
    batches = [
        {name: torch.stack([row[name] for row in rows[start : start + EVALUATED_AT_ONCE]]) for name in rows[0]}
        for start in range(0, len(rows), EVALUATED_AT_ONCE)
    ]
    with torch.no_grad():
        return math.exp(mean_loss(model, batches))


def healed(
    technique: LayerRemoval | None, train: list[Any], held_out: list[Any], device: str, seed: int = 0
) -> tuple[float, float]:
    """Perplexity before and after healing in a Trainer."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=max(2, len(train) // BATCH // 10),
            seed=seed,
            use_cpu=device == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        hosted = Trainer if technique is None else with_plugins(Trainer, technique)
        trainer = hosted(whole(device), args, train_dataset=train)
        trainer.remove_callback(PrinterCallback)
        before = perplexity(trainer.model, held_out)
        trainer.train()
        return before, perplexity(trainer.model, held_out)


def healing(quick: bool, device: str, common: dict[str, Any]) -> Iterator[Result]:
    train, held_out = rows_of("train", 240 if quick else 400), rows_of("test", 24 if quick else 96)
    assert len(train) * LENGTH <= 0.05 * TRAINED_ON
    original = perplexity(whole(device), held_out)
    alike = None if quick else healed(None, train, held_out, device)[1]
    draws = 2 if quick else 5

    def of(arm: str, number: int, draw: int = 0, seed: int = 0) -> tuple[float, float]:
        options: dict[str, Any] = {"method": arm, "number": number}
        if arm == RANDOM:
            options = {"layers": tuple(choose_layers(whole(device), [], number, method=RANDOM, seed=draw))}
        technique = LayerRemoval(**options, distill=DISTILL, max_degradation=None, max_repetition=None)
        return healed(technique, train, held_out, device, seed=seed)

    for number in (3,) if quick else (2, 3, 4):
        layers = f"{number} of 12 layers"
        found = {OURS: [of(OURS, number)], LAST: [of(LAST, number)]}
        found[RANDOM] = [of(RANDOM, number, draw) for draw in range(draws)]
        again = of(OURS, number, seed=1)[1]
        gaps = {arm: statistics.mean(after for _, after in runs) - original for arm, runs in found.items()}
        before, after = found[OURS][0]
        noise = 2 * abs(after - again) / 2**0.5
        more: dict[str, Any] = {"tokens": len(train) * LENGTH, "whole": original, "before_and_after": found}
        more["draws"] = [one - original for _, one in found[RANDOM]]
        if alike is not None:
            more["whole_trained_alike"] = alike
            more["gaps_to_whole_trained_alike"] = {arm: gap - alike + original for arm, gap in gaps.items()}
        yield report.row(
            *(BENCHMARK, f"gap of perplexity, {layers}, in another order of the data (A/A)", again - original),
            *(gaps[OURS],),
            ratio=(again - original) / gaps[OURS],
            noise=noise / abs(gaps[OURS]),
            conditions=common | more,
        )
        for baseline in (LAST, RANDOM):
            yield report.row(
                *(BENCHMARK, f"gap of perplexity, {layers}, against {baseline}", gaps[OURS], gaps[baseline]),
                ratio=gaps[OURS] / gaps[baseline],
                noise=noise / abs(gaps[OURS]),
                gate=Gate("ratio", "<=", GAP),
                conditions=common | more,
            )
        lost = before - original
        yield report.row(
            *(BENCHMARK, f"gap after over before healing, {layers}", gaps[OURS], lost),
            ratio=gaps[OURS] / lost,
            noise=noise / abs(gaps[OURS]),
            gate=Gate("ratio", "<=", 1 - RECOVERED),
            conditions=common | more,
        )


def speed(quick: bool, device: str, common: dict[str, Any]) -> Iterator[Result]:
    ids = torch.stack([row["input_ids"] for row in rows_of("test", 8)]).to(device)
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 1}

    def forward(model: Any) -> None:
        model(ids)

    def decode(model: Any) -> None:
        model.generate(ids[:, :32], attention_mask=torch.ones_like(ids[:, :32]), **settings)

    models = {0: whole(device).train(False)}
    for number in (2, 3, 4):
        models[number] = whole(device).train(False)
        remove_layers(models[number], list(range(4, 4 + number)))
    without_blocks = whole(device).train(False)
    without_blocks.model.layers = nn.ModuleList()
    works: dict[str, tuple[Callable[[Any], None], int]] = {
        "forward": (forward, 4 if quick else 20),
        "decoding": (decode, 3 if quick else 10),
    }
    for name, (work, rounds) in works.items():
        times: dict[Any, list[float]] = {key: [] for key in (*models, "again", "none")}
        for turn in range(rounds + 1):
            order = [*models.items(), ("again", models[0]), *([("none", without_blocks)] if name == "forward" else [])]
            for key, model in order[::-1] if turn % 2 else order:
                took = _timed(work, model, device)
                # The first turn warms up.
                if turn:
                    times[key].append(took)
        more: dict[str, Any] = {}
        if times["none"]:
            more["share_of_blocks"] = 1 - statistics.median(times["none"]) / statistics.median(times[0])
        names = {0: "the whole", "again": "the whole again (A/A)"} | {n: f"{n} of 12 layers removed" for n in (2, 3, 4)}
        rates = {name: [1 / took for took in times[key]] for key, name in names.items()}
        gates = {(names[n], names[0]): Gate("ratio", ">=", SPEED / (1 - n / 12)) for n in (2, 3, 4)}
        again = names["again"], names[0]
        yield from report.compared(BENCHMARK, f"{name} passes a second", rates, gates, again, common | more)


@torch.no_grad()
def _timed(work: Callable[[Any], None], model: Any, device: str) -> float:
    began = time.perf_counter()
    work(model)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def architectures(common: dict[str, Any]) -> Result:
    models = [*RIGHT.items(), *REFUSED.items()]
    ours = [_outcome(kind, settings, _by_us) for kind, settings in models]
    naive = [_outcome(kind, settings, _by_hand) for kind, settings in models]
    good = ("right", "refused by name")
    counts = [sum(one in good for one in found) for found in (ours, naive)]
    more = {"ours": _counted(ours), "list_alone": _counted(naive)}
    return report.row(
        *(BENCHMARK, f"architectures right or refused, of {len(models)}", counts[0], counts[1]),
        gate=Gate("ours", "=", len(models)),
        conditions=common | more,
    )


def _by_us(model: Any) -> None:
    remove_layers(model, [1, 4])


def _by_hand(model: Any) -> None:
    stack = block_stacks(model)[""]
    kept = [layer for number, layer in enumerate(stack.layers) if number not in (1, 4)]
    setattr(stack.parent, stack.key, nn.ModuleList(kept))


def _outcome(kind: str, settings: dict[str, Any], remove: Callable[[Any], None]) -> str:
    model = built(kind, settings)
    try:
        remove(model)
    except PluginError:
        return "refused by name"
    try:
        verify_model(model)
    except PluginError:
        return "silently wrong"
    return "right"


def _counted(found: list[str]) -> dict[str, int]:
    return {word: found.count(word) for word in dict.fromkeys(found)}


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    warnings.simplefilter("ignore")
    common = report.conditions(asked.device)
    yield architectures(common)
    if BOOKS.is_dir() and TEXTS.is_dir():
        yield from speed(asked.quick, asked.device, common)
        yield from healing(asked.quick, asked.device, common)
    else:
        yield LeftOut(f"healing and speed: no model and books at {DATA}")


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured))
