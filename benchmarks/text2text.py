"""Text to text against stock: padding, collation, training speed, the loss under accumulation.

What the models learn is in `text2text_quality`.

    python -m benchmarks.text2text [--device cuda] [--quick] [--json] [--write]

- Padding: slots of the batches that hold no token, over the same of a baseline. Four sets of lengths: three lognormal
  ones (translation, summaries, instructions) and, where the data is (folder FT_DATA, default ../shared/data),
  Tatoeba's English-French in bytes. Baselines: random batches; Trainer's group_by_length; fairseq's rule (sort by
  target, then source; pairs x longest side), its budget searched until the number of batches equals ours. A/A: random
  batches of another seed against random batches.
- Collation: examples a second through a DataLoader on an Arrow data set. Interleaved; `ratio` is the median over
  rounds, A/A is stock against stock.
- Training speed: real target tokens per CPU second (forward, backward, AdamW) of a T5 of 4 + 4 layers, d_model 128,
  one thread, dropout 0; each kind of batch in turns of four steps, from the same weights.
  "Packed" (on the translation lengths): the same batches, each packed into shared rows; of our own batches ("ours"),
  and of random ones, which packing alone frees of padding.
- Packing exactness: the largest relative difference of loss and gradients between a packed batch and the padded one, in
  float64; `leaky`: of a control, the same rows under one plain mask.
- Accumulation: loss of 4 batches of 2 over that of 1 batch of 8, with `TokenMeanLoss` and stock.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import report
from benchmarks.data import DATA, lines_of
from benchmarks.packing_exactness import differences
from benchmarks.report import Gate, LeftOut, Result
from hf_ft_plugins.techniques.text2text import (
    TextPairCollator,
    TokenBudgetBatchSampler,
    TokenMeanLoss,
    TokenTable,
    pack_aware,
)
from hf_ft_plugins.techniques.text2text.batches import MIXED, POOL_STEPS, padded_tokens
from hf_ft_plugins.techniques.text2text.parts import SLOTS_OF_A_CALL, Extents, cheapest_groups, in_parts

BENCHMARK = "text2text"
TOKENIZER = ByT5Tokenizer()
STEPS = 4  # in one turn
PAIRS = 32  # per batch, as in per_device_train_batch_size
STOCK, AGAIN, GROUPED, OURS = "random", "random again (A/A)", "group_by_length", "ours"
PACKED, RANDOM_PACKED = "ours, packed", "random, packed"
Lengths = tuple[np.ndarray, np.ndarray]


# ---- data ----


def lognormal(number: int, source: float, target: float, sigma: float, correlation: float) -> Lengths:
    """Lengths with these means."""
    drawn = np.random.default_rng(0).multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], number)
    means = np.array([source, target])
    lengths = np.exp(np.log(means) - sigma**2 / 2 + sigma * drawn).round().astype(np.int64)
    return np.maximum(lengths[:, 0], 1), np.maximum(lengths[:, 1], 1)


def tatoeba(split: str, number: int) -> Dataset | None:
    """Pairs as bytes' ids, or None where the data is not."""
    file = DATA / "tatoeba_eng_fra" / f"{split}.jsonl.gz"
    if not file.is_file():
        return None
    rows = list(itertools.islice(lines_of(file), number))
    sources, targets = TOKENIZER([row["en"] for row in rows]), TOKENIZER([row["fr"] for row in rows])
    return Dataset.from_dict(
        {"input_ids": sources["input_ids"], "attention_mask": sources["attention_mask"], "labels": targets["input_ids"]}
    )


def synthetic(lengths: Lengths) -> Dataset:
    draw = np.random.default_rng(1)
    sources, targets = ([draw.integers(3, 380, length).tolist() for length in side] for side in lengths)
    masks = [[1] * len(ids) for ids in sources]
    return Dataset.from_dict({"input_ids": sources, "attention_mask": masks, "labels": targets})


def lengths_of(dataset: Dataset) -> Lengths:
    table = TokenTable(dataset)
    return table.sources.lengths.astype(np.int64), table.targets.lengths.astype(np.int64)


def new_t5(device: str) -> T5ForConditionalGeneration:
    size = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 4, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(vocab_size=384, decoder_start_token_id=0, pad_token_id=0, **size)
    return T5ForConditionalGeneration(config).to(device)


# ---- batches of each kind ----


def in_order(order: Sequence[int]) -> list[np.ndarray]:
    return np.split(np.asarray(order), range(PAIRS, len(order), PAIRS))


def random_batches(lengths: Lengths, seed: int) -> list[np.ndarray]:
    return in_order(np.random.default_rng(seed).permutation(len(lengths[0])))


def grouped_batches(lengths: Lengths, seed: int) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return in_order(list(LengthGroupedSampler(PAIRS, lengths=lengths[0].tolist(), generator=generator)))


def our_batches(lengths: Lengths, seed: int) -> list[np.ndarray]:
    source, target = lengths
    sampler = TokenBudgetBatchSampler(
        source,
        target,
        max_tokens=int(2 * PAIRS * (source + target).mean()),
        target_tokens=int(PAIRS * target.mean()),
        pool=POOL_STEPS * PAIRS,
        parts=MIXED,
        seed=seed,
    )
    return sampler.plan(0)


def part_slots(batches: list[np.ndarray], lengths: Lengths) -> int:
    """Slots of batches that are padded part by part."""
    none = np.zeros(len(lengths[0]), np.int64)
    extents = Extents(none, lengths[0], none, lengths[1])
    return sum(cheapest_groups(Extents(*(side[batch] for side in extents)), MIXED)[0] for batch in batches)


def fairseq_batches(lengths: Lengths, number: int) -> list[np.ndarray]:
    """fairseq's rule, with the least budget that needs no more than `number` batches."""
    source, target = lengths
    order = np.lexsort((source, target))
    longest = np.maximum(source, target)[order].tolist()

    def cut(budget: int) -> list[np.ndarray]:
        ends, start, most = [], 0, 0
        for position, length in enumerate(longest):
            if position > start and (position + 1 - start) * max(most, length) > budget:
                ends.append(position)
                start, most = position, 0
            most = max(most, length)
        return np.split(order, ends)

    low, high = max(longest), PAIRS * max(longest) * 4
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= number else (middle + 1, high)
    return cut(low)


def padding_results(sets: dict[str, Lengths], about: dict[str, Any]) -> Iterator[Result]:
    for name, lengths in sets.items():
        real = int(sum(side.sum() for side in lengths))

        def wasted(batches: list[np.ndarray], lengths: Lengths = lengths, real: int = real) -> int:
            return padded_tokens(batches, *lengths) - real

        ours = our_batches(lengths, 0)
        wasted_by_ours = part_slots(ours, lengths) - real
        by_chance, by_chance_again = (wasted(random_batches(lengths, seed)) for seed in (0, 1))
        noise = abs(by_chance_again / by_chance - 1)
        weights = np.array([lengths[1][batch].sum() for batch in ours])
        more = {**about, "batches": len(ours), "target_tokens_cv": float(weights.std() / weights.mean())}
        more["share_of_slots_padded"] = wasted_by_ours / (wasted_by_ours + real)
        for row, slots, baseline, padded, gate in (
            (AGAIN, by_chance_again, STOCK, by_chance, None),
            (OURS, wasted_by_ours, STOCK, by_chance, 0.15),
            (OURS, wasted_by_ours, GROUPED, wasted(grouped_batches(lengths, 0)), 0.5),
            (OURS, wasted_by_ours, "fairseq's rule", wasted(fairseq_batches(lengths, len(ours))), 0.6),
        ):
            yield report.row(
                *(BENCHMARK, f"padded slots, {name}: {row} against {baseline}", slots, padded),
                ratio=slots / padded,
                noise=noise,
                gate=None if gate is None else Gate("ratio", "<=", gate),
                conditions=more,
            )


# ---- interleaved timing ----


def collation_results(dataset: Dataset, rounds: int, about: dict[str, Any]) -> Iterator[Result]:
    model = new_t5("cpu")
    stock, ours = DataCollatorForSeq2Seq(TOKENIZER, model), TextPairCollator(TOKENIZER, model)
    pairs = dataset.remove_columns("attention_mask")
    ways = {
        STOCK: (dataset, stock),
        AGAIN: (dataset, stock),
        "drop-in": (pairs, ours),
        "buffers": (TokenTable(pairs), ours),
    }
    for batch in (32, 256):
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds + 1):
            for way in random.Random(len(rates[STOCK])).sample(list(ways), len(ways)):
                data, collator = ways[way]
                start = time.perf_counter()
                for _ in DataLoader(data, batch_size=batch, collate_fn=collator):
                    pass
                rates[way].append(len(dataset) / (time.perf_counter() - start))
        rates = {way: values[1:] for way, values in rates.items()}
        gates = {("drop-in", STOCK): Gate("ratio", ">=", 5.0), ("buffers", STOCK): Gate("ratio", ">=", 20.0)}
        unit = f"collated examples/s, batch {batch}"
        yield from report.compared(BENCHMARK, unit, rates, gates, (AGAIN, STOCK), about)


def speed_results(
    name: str, dataset: Dataset, rounds: int, device: str, about: dict[str, Any], *, packed: bool = False
) -> list[Result]:
    lengths, table = lengths_of(dataset), TokenTable(dataset)
    kinds = {STOCK: random_batches, AGAIN: random_batches, GROUPED: grouped_batches, OURS: our_batches}
    kinds |= {PACKED: our_batches, RANDOM_PACKED: random_batches} if packed else {}
    set_seed(0)
    first = new_t5(device).state_dict()
    runs: dict[str, Callable[[], float]] = {}
    for kind, batches in kinds.items():
        model = new_t5(device)
        model.load_state_dict(first)
        packing = "pairs" if kind in (PACKED, RANDOM_PACKED) else "none"
        collate = TextPairCollator(TOKENIZER, pack_aware(model) if packing == "pairs" else model, packing=packing)
        # In another order than they were cut: a turn is a fair sample.
        plan = batches(lengths, 1 if kind == AGAIN else 0)
        cycle = iter([plan[index] for index in np.random.default_rng(0).permutation(len(plan))] * rounds)
        runs[kind] = turn_of(model, table, collate, cycle, device, MIXED if kind == OURS else 1)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in track(range(rounds + 1), "speed", console=Console(stderr=True), transient=True):
        for kind in random.Random(number).sample(list(kinds), len(kinds)):
            rates[kind].append(runs[kind]())
    rates = {kind: values[1:] for kind, values in rates.items()}
    gates: dict[tuple[str, str], Gate | None] = {
        (OURS, GROUPED): Gate("ratio", ">=", 1.15),
        (OURS, STOCK): Gate("ratio", ">=", 1.8),
    }
    gates |= {(PACKED, OURS): None, (RANDOM_PACKED, OURS): None} if packed else {}
    unit = f"real target tokens per CPU s, T5 on {name}"
    return report.compared(BENCHMARK, unit, rates, gates, (AGAIN, STOCK), about)


def turn_of(
    model: Any, table: TokenTable, collate: Any, batches: Iterator[np.ndarray], device: str, parts: int
) -> Callable[[], float]:
    optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=1e-3), TokenMeanLoss(shift=False)
    slots_of_a_call = SLOTS_OF_A_CALL["cpu" if device == "cpu" else "other"]

    def turn() -> float:
        tokens, start = 0, time.process_time()
        for _ in range(STEPS):
            batch = {name: value.to(device) for name, value in collate(table.__getitems__(next(batches))).items()}
            real = int((batch["labels"] >= 0).sum())
            cut = in_parts(batch, parts, causal=False, slots_of_a_call=slots_of_a_call)
            labels = [part.pop("labels") for part in cut]
            losses = [loss_of(model(**part), target, real) for part, target in zip(cut, labels, strict=True)]
            torch.stack(losses).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += real
        return tokens / (time.process_time() - start)

    return turn


# ---- packing ----


def packing_results(about: dict[str, Any]) -> Iterator[Result]:
    for name, difference, leaky in differences():
        yield report.row(
            *(BENCHMARK, f"packing exactness, {name}", difference, 0.0),
            gate=Gate("ours", "<=", 1e-12),
            also={"leaky > 0.001": leaky > 1e-3},
            conditions={**about, "leaky": leaky, "dtype": "float64"},
        )


# ---- the loss under accumulation ----


def trained(dataset: Dataset, loss: TokenMeanLoss | None, device: str, **settings: Any) -> Any:
    set_seed(0)
    model = new_t5(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device == "cpu",
                **settings,
            ),
            data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
            train_dataset=dataset,
            processing_class=TOKENIZER,
            compute_loss_func=loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def accumulation_results(dataset: Dataset, device: str, about: dict[str, Any]) -> Iterator[Result]:
    few = dataset.select(range(8))
    for smoothing in (0.0, 0.1):
        ratios = []
        for loss in (TokenMeanLoss(shift=False, label_smoothing=smoothing), None):
            logged = []
            for steps in (4, 1):
                trainer = trained(
                    *(few, loss, device),
                    per_device_train_batch_size=8 // steps,
                    gradient_accumulation_steps=steps,
                    label_smoothing_factor=smoothing,
                    train_sampling_strategy="sequential",
                    learning_rate=0.0,
                    num_train_epochs=1,
                    logging_steps=1,
                )
                logged.append(trainer.state.log_history[0]["loss"])
            ratios.append(logged[0] / logged[1])
        yield report.row(
            *(BENCHMARK, f"loss of 4 x 2 over loss of 1 x 8, smoothing {smoothing}", *ratios),
            also={"ours within 0.001 of 1": abs(ratios[0] - 1) <= 0.001},
            conditions=about,
        )


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    torch.set_num_threads(1)
    number = 5_000 if asked.quick else 50_000
    sets = {
        "translation": lognormal(number, 26, 29, 0.65, 0.9),
        "summaries": lognormal(number, 553, 64, 0.5, 0.3),
        "instructions": lognormal(number, 80, 154, 1.0, 0.2),
    }
    real = tatoeba("train", number)
    about = report.conditions(
        asked.device, pairs=number, pairs_per_batch=PAIRS, data="synthetic" if real is None else "Tatoeba"
    )
    if real is not None:
        sets["Tatoeba"] = lengths_of(real)
    made_up = synthetic((sets["translation"][0][:5000], sets["translation"][1][:5000]))
    trained_on = made_up if real is None else real
    rounds = 3 if asked.quick else 28
    yield from padding_results(sets, about)
    yield from collation_results(trained_on.select(range(5000)), 2 if asked.quick else 9, about)
    yield from speed_results("translation", made_up, rounds, asked.device, about, packed=True)
    yield from packing_results(about)
    yield from accumulation_results(trained_on, asked.device, about)
    if real is None:
        yield LeftOut(f"Tatoeba: it is not in {DATA}")
    else:
        yield from speed_results("Tatoeba", real, rounds, asked.device, about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
