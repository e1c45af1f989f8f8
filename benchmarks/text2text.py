"""Text to text against stock: padding, collation, training speed, the loss under accumulation, quality.

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
- Quality: the same T5 with stock Trainer and with ours, on the same number of real target tokens, over seeds: dev loss
  at the end, chrF of greedy translations of unseen sentences, and CPU seconds until stock's final dev loss is reached.
  Means over seeds; the A/A is stock with each seed against stock with the next. Nothing is chosen by dev or test data.
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
from sacrebleu.metrics import CHRF
from torch.utils.data import DataLoader
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import report
from benchmarks.data import DATA, lines_of
from benchmarks.packing_exactness import differences
from benchmarks.report import Gate, LeftOut, Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.text2text import (
    TextPairCollator,
    TokenBudgetBatchSampler,
    TokenMeanLoss,
    TokenTable,
    pack_aware,
)
from hf_ft_plugins.techniques.text2text.batches import padded_tokens

BENCHMARK = "text2text"
TOKENIZER = ByT5Tokenizer()
STEPS = 4  # in one turn
PAIRS = 32  # per batch, as in per_device_train_batch_size
STOCK, AGAIN, GROUPED, OURS = "random", "random again (A/A)", "group_by_length", "ours"
PACKED, RANDOM_PACKED = "ours, packed", "random, packed"
Lengths = tuple[np.ndarray, np.ndarray]
Run = tuple[float, float, list[tuple[float, float]]]  # final dev loss, chrF, (CPU seconds, dev loss) as it fell


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
        seed=seed,
    )
    return sampler.plan(0)


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
        by_chance, by_chance_again = (wasted(random_batches(lengths, seed)) for seed in (0, 1))
        noise = abs(by_chance_again / by_chance - 1)
        weights = np.array([lengths[1][batch].sum() for batch in ours])
        more = {**about, "batches": len(ours), "target_tokens_cv": float(weights.std() / weights.mean())}
        more["share_of_slots_padded"] = wasted(ours) / (wasted(ours) + real)
        for row, slots, baseline, padded, gate in (
            (AGAIN, by_chance_again, STOCK, by_chance, None),
            (OURS, wasted(ours), STOCK, by_chance, 0.15),
            (OURS, wasted(ours), GROUPED, wasted(grouped_batches(lengths, 0)), 0.5),
            (OURS, wasted(ours), "fairseq's rule", wasted(fairseq_batches(lengths, len(ours))), 0.6),
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
        runs[kind] = turn_of(model, table, collate, cycle, device)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in track(range(rounds + 1), "speed", console=Console(stderr=True), transient=True):
        for kind in random.Random(number).sample(list(kinds), len(kinds)):
            rates[kind].append(runs[kind]())
    rates = {kind: values[1:] for kind, values in rates.items()}
    gates: dict[tuple[str, str], Gate | None] = {
        (OURS, GROUPED): Gate("ratio", ">=", 1.2),
        (OURS, STOCK): Gate("ratio", ">=", 2.5),
    }
    gates |= {(PACKED, OURS): None, (RANDOM_PACKED, OURS): None} if packed else {}
    unit = f"real target tokens per CPU s, T5 on {name}"
    return report.compared(BENCHMARK, unit, rates, gates, (AGAIN, STOCK), about)


def turn_of(
    model: Any, table: TokenTable, collate: Any, batches: Iterator[np.ndarray], device: str
) -> Callable[[], float]:
    optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=1e-3), TokenMeanLoss(shift=False)

    def turn() -> float:
        tokens, start = 0, time.process_time()
        for _ in range(STEPS):
            batch = {name: value.to(device) for name, value in collate(table.__getitems__(next(batches))).items()}
            labels = batch.pop("labels")
            loss_of(model(**batch), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += int((labels >= 0).sum())
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


class Quiet(TrainerCallback):
    """CPU seconds of the training alone, and the dev loss after each evaluation."""

    def __init__(self) -> None:
        self.spent, self._since = 0.0, 0.0
        self.curve: list[tuple[float, float]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._since = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent += time.process_time() - self._since

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        self.curve.append((self.spent, metrics["eval_loss"]))


def trained(
    dataset: Dataset,
    dev: Dataset | None,
    technique: str | None,
    seed: int,
    device: str,
    loss: TokenMeanLoss | None = None,
    **settings: Any,
) -> Any:
    set_seed(seed)
    model, watch = new_t5(device), Quiet()
    trainer_class = with_plugins(Seq2SeqTrainer, technique) if technique else Seq2SeqTrainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=folder,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device == "cpu",
                prediction_loss_only=True,
                **settings,
            ),
            data_collator=DataCollatorForSeq2Seq(TOKENIZER, model),
            train_dataset=dataset,
            eval_dataset=dev,
            processing_class=TOKENIZER,
            callbacks=[watch],
            compute_loss_func=loss,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer, watch


def accumulation_results(dataset: Dataset, device: str, about: dict[str, Any]) -> Iterator[Result]:
    few = dataset.select(range(8))
    for smoothing in (0.0, 0.1):
        ratios = []
        for loss in (TokenMeanLoss(shift=False, label_smoothing=smoothing), None):
            logged = []
            for steps in (4, 1):
                trainer, _ = trained(
                    *(few, None, None, 0, device, loss),
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


# ---- quality ----


@torch.no_grad()
def chrf(model: Any, test: Dataset, device: str) -> float:
    collate = TextPairCollator(TOKENIZER, model)
    texts, references = [], []
    for start in range(0, len(test), 50):
        batch = collate(TokenTable(test).__getitems__(range(start, min(start + 50, len(test)))))
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        texts += TOKENIZER.batch_decode(model.generate(**inputs, max_new_tokens=60), skip_special_tokens=True)
        labels = batch["labels"].masked_fill(batch["labels"] < 0, 0)
        references += TOKENIZER.batch_decode(labels, skip_special_tokens=True)
    return CHRF().corpus_score(texts, [references]).score


def quality_results(
    data: tuple[Dataset, Dataset, Dataset], steps: int, seeds: int, device: str, about: dict[str, Any]
) -> Iterator[Result]:
    train, dev, test = data
    settings = {"max_steps": steps, "per_device_train_batch_size": PAIRS, "per_device_eval_batch_size": 100}
    settings |= {"learning_rate": 2e-3, "warmup_steps": steps // 10, "logging_steps": steps}
    settings |= {"eval_strategy": "steps", "eval_steps": max(1, steps // 16)}
    runs: dict[str | None, list[Run]] = {None: [], "text2text": []}
    for seed in track(range(seeds), "quality", console=Console(stderr=True), transient=True):
        for technique in runs:
            trainer, watch = trained(train, dev, technique, seed, device, **settings)
            runs[technique].append((watch.curve[-1][1], chrf(trainer.model.eval(), test, device), watch.curve))
    stock, ours = runs[None], runs["text2text"]
    more = {**about, "seeds": seeds, "steps": steps, "dev_loss": {str(k): [r[0] for r in v] for k, v in runs.items()}}
    more["chrf"] = {str(technique): [run[1] for run in measured] for technique, measured in runs.items()}
    for index, name, relation in ((0, "dev loss", "<="), (1, "chrF", ">=")):
        a, b = np.array([run[index] for run in ours]), np.array([run[index] for run in stock])
        again = np.roll(b, -1) / b
        noise = noise_floor(again)
        yield report.row(
            *(BENCHMARK, f"{name}: stock against stock with the next seed (A/A)", float(b.mean()), float(b.mean())),
            ratio=float(np.median(again)),
            noise=noise,
            conditions={**more, "quartiles": quartiles(again)},
        )
        yield report.row(
            *(BENCHMARK, f"{name} at equal real target tokens", float(a.mean()), float(b.mean())),
            ratio=float(a.mean() / b.mean()),
            noise=noise,
            gate=Gate("ratio", relation, 1),
            conditions={**more, "quartiles": quartiles(a / b)},
        )
    yield time_result(ours, stock, more)


def time_result(ours: list[Run], stock: list[Run], about: dict[str, Any]) -> Result:
    """CPU seconds until the dev loss is what stock's was in the end; a run that never got there has none.

    The noise is that of stock's seconds for as many steps, each seed against the next.
    """
    whole = [run[2][-1][0] for run in stock]
    needed = [
        next((spent for spent, loss in one[2] if loss <= other[0]), None)
        for one, other in zip(ours, stock, strict=True)
    ]
    ratios = [a / b for a, b in zip(needed, whole, strict=True) if a is not None]
    reached = len(ratios) == len(stock)
    return report.row(
        *(BENCHMARK, "CPU s to stock's final dev loss"),
        float(np.median([spent for spent in needed if spent is not None])) if ratios else None,
        float(np.median(whole)),
        ratio=float(np.median(ratios)) if reached else None,
        noise=noise_floor(np.roll(whole, -1) / np.array(whole)),
        gate=Gate("ratio", "<=", 0.5),
        conditions={**about, "ratios": ratios, "seeds_that_reached_it": len(ratios)}
        | ({"quartiles": quartiles(ratios)} if ratios else {}),
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
        return
    yield from speed_results("Tatoeba", real, rounds, asked.device, about)
    data = (real, tatoeba("dev", 300), tatoeba("test", 50 if asked.quick else 300))
    steps, seeds = (24, 2) if asked.quick else (400, 3)
    yield from quality_results(data, steps, seeds, asked.device, about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
