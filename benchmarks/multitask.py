"""What one pass for several tasks saves, and what it costs in quality, on the English Web Treebank.

    python -m benchmarks.multitask [--device cuda] [--quick] [--json] [--write] [--only speed|quality|long]

Three tasks on the same sentences: parts of speech, a dependency parser (biaffine, maximum spanning tree), and named
entities (CRF), on MiniLM-L6. Needs the folder FT_DATA (default ../shared/data).

- speed, in CPU seconds (`--device cuda`: seconds), in rounds whose runs are interleaved, each a run of its own whose
  first steps are not counted; the A/A is the joint model against itself. Of sentences whose rows carry all labels, how
  many a second are learned for all three tasks: by one joint model, against a model of its own for each task, one after
  the other, and against one model on batches of one task in turn (round-robin). No step becomes faster: one joint
  step takes the place of three, which is all that is saved, and it costs more than a step of one task, as the rows
  "read in a step" say. Where each row has the labels of one task, nothing is saved.
- quality on the test set, after as many steps of one batch: all tasks jointly (`ours`) against a model of its own for
  each task (`baseline`), means over seeds. UPOS is accuracy, LAS is the CoNLL 2018 shared task's on gold words, F1 that
  of whole entities, all in points. The joint model's heads learn faster than its encoder (`head_rate`), a model of its
  own learns at one rate, as in a stock Trainer. The A/A is each seed's single-task model against the next one's.
  Nothing is chosen by the test set: tasks' weights, rates and steps are fixed, and the last weights are measured.
- published: joint UPOS, UAS and LAS beside MaChAmp's on EWT (van der Goot et al. 2021, results of its repository) by
  multilingual BERT base: 178 M parameters and 20 epochs, against MiniLM-L6's 22.7 M and the steps here.
- long (not with `--quick`): the same of one joint run of three epochs.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from benchmarks import report
from benchmarks.data import DATA, MINILM, lines_of
from benchmarks.report import Gate, LeftOut, Result, noise_floor, quartiles
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.multitask import MultiTaskCollator, MultiTaskModel, TaskSpec

BENCHMARK = "multitask"
TREEBANK = DATA / "ud_ewt_ner"
# The parser's loss is some twenty times that of the entities; unweighed it is the only one that the encoder follows in
# its first hundreds of steps. Chosen, with the rates, on the dev set with another seed.
TASKS = {
    "upos": TaskSpec(kind="token", weight=1.6),
    "parse": TaskSpec(kind="dependency", columns=("head", "deprel"), weight=1.2),
    "ner": TaskSpec(kind="crf", weight=4.0),
}
# Of several tasks, whose heads learn faster by default, and of one task with one rate for all.
RATE, RATE_ALONE = 4e-4, 6e-4
# A task's figure, and how far below its single-task model it may be.
FIGURES = {"upos": "upos_accuracy", "parse": "parse_las", "ner": "ner_f1"}
ALLOWED = 0.3
FASTER = 2.5
PUBLISHED = {"upos_accuracy": 94.93, "parse_uas": 89.75, "parse_las": 87.59}
BATCH = 16
JOINT, AGAIN, ROUND_ROBIN, EACH = "joint", "joint again (A/A)", "round-robin", "a model of its own for each task"
NOT_COUNTED = 3


class Clock(TrainerCallback):
    """Seconds of the steps after the first few."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.steps = 0

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == NOT_COUNTED:
            self.began = self.now()
        self.ended, self.steps = self.now(), state.global_step - NOT_COUNTED


def rows_of(part: str, limit: int | None = None) -> list[dict[str, Any]]:
    rows = list(lines_of(TREEBANK / f"ewt_multitask_{part}.jsonl.gz"))
    return rows[:limit]


def trained(kind: str, seed: int, steps: int, device: str, *, eval_rows: int | None) -> tuple[float, dict[str, float]]:
    """Train one model: `joint`, `round-robin`, or a task's name for a model of its own.

    Returns:
        Sentences that are read a second, and the metrics on the test set (none for `eval_rows` 0), in points.
    """
    train, test = rows_of("train"), rows_of("test", eval_rows)
    every = [*train, *rows_of("dev"), *rows_of("test")]
    tasks = {kind: TASKS[kind]} if kind in TASKS else TASKS
    model = MultiTaskModel.from_encoder(str(MINILM), tasks, every, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    clock = Clock(device == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        alone = kind in TASKS
        trainer = with_plugins(Trainer, f"multitask:mix=round_robin{',head_rate=1' if alone else ''}")(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                learning_rate=RATE_ALONE if alone else RATE,
                warmup_steps=steps // 10,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=64,
                bf16=device == "cuda",
                use_cpu=device == "cpu",
                save_strategy="no",
                eval_strategy="no",
                logging_steps=50,
                report_to="none",
                disable_tqdm=True,
                seed=seed,
            ),
            # A data set named after a task teaches this task alone.
            train_dataset=dict.fromkeys(TASKS, train) if kind == ROUND_ROBIN else train,
            data_collator=MultiTaskCollator(tokenizer, model),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        metrics = trainer.evaluate(test, metric_key_prefix="test") if test else {}
    speed = clock.steps * BATCH / (clock.ended - clock.began)
    prefix = "test_"
    return speed, {name.removeprefix(prefix): 100 * value for name, value in metrics.items() if name.startswith(prefix)}


def _in_a_process(job: tuple[str, int, int, str, int | None]) -> tuple[tuple[str, int], dict[str, float]]:
    kind, seed, steps, device, eval_rows = job
    torch.set_num_threads(1)
    return (kind, seed), trained(kind, seed, steps, device, eval_rows=eval_rows)[1]


def speed(device: str, rounds: int, steps: int, common: dict[str, Any]) -> list[Result]:
    read: dict[str, list[float]] = {name: [] for name in (JOINT, AGAIN, ROUND_ROBIN, *TASKS)}
    for turn in range(rounds):
        for name, rates in read.items():
            rates.append(trained(JOINT if name == AGAIN else name, turn, steps, device, eval_rows=0)[0])
    of_each_task = list(zip(*(read[task] for task in TASKS), strict=True))
    learned = {name: read[name] for name in (JOINT, AGAIN)}
    # A sentence is learned for all tasks once it has been read for each.
    learned[ROUND_ROBIN] = [rate / len(TASKS) for rate in read[ROUND_ROBIN]]
    learned[EACH] = [1 / sum(1 / rate for rate in rates) for rates in of_each_task]
    gates = {(JOINT, EACH): Gate("ratio", ">=", FASTER), (JOINT, ROUND_ROBIN): Gate("ratio", ">=", FASTER)}
    about = common | {"steps": steps}
    again = AGAIN, JOINT
    return [
        *report.compared(BENCHMARK, "sentences a second, learned for all tasks", learned, gates, again, about),
        *report.compared(
            *(BENCHMARK, "sentences a second, read in a step", read),
            *({(JOINT, task): None for task in (*TASKS, ROUND_ROBIN)}, again, about),
        )[1:],
    ]


def quality(device: str, seeds: int, steps: int, eval_rows: int | None, common: dict[str, Any]) -> Iterator[Result]:
    jobs = [(kind, seed, steps, device, eval_rows) for seed in range(seeds) for kind in (JOINT, *TASKS)]
    processes = 1 if device == "cuda" else multiprocessing.cpu_count()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        console = Console(stderr=True)
        found = dict(track(pool.imap_unordered(_in_a_process, jobs), "runs", total=len(jobs), console=console))
    common = common | {"seeds": seeds, "steps": steps, "test_sentences": eval_rows or "all"}

    def over_seeds(kind: str, figure: str) -> list[float]:
        return [found[kind, seed][figure] for seed in range(seeds)]

    for task, figure in FIGURES.items():
        ours, baseline = over_seeds(JOINT, figure), over_seeds(task, figure)
        pairs = zip(baseline, [*baseline[1:], baseline[0]], strict=True)
        again = [second / first for first, second in pairs if first]
        noise = noise_floor(again) if seeds > 1 and again else None
        means = statistics.mean(ours), statistics.mean(baseline)
        more = common | {"ours": ours, "baseline": baseline}
        if all(baseline):
            more["quartiles"] = quartiles([one / other for one, other in zip(ours, baseline, strict=True)])
        if noise is not None:
            yield report.row(
                *(BENCHMARK, f"{figure}, a model of its own against the next seed's (A/A)", means[1], means[1]),
                ratio=statistics.median(again),
                noise=noise,
                conditions=more | {"quartiles": quartiles(again)},
            )
        yield report.row(
            *(BENCHMARK, f"{figure}, joint against a model of its own", *means),
            ratio=means[0] / means[1] if means[1] else None,
            noise=noise,
            gate=Gate("difference", ">=", -ALLOWED),
            conditions=more,
        )
    means = {figure: statistics.mean(over_seeds(JOINT, figure)) for figure in PUBLISHED}
    yield from beside_published(means, "joint", common)


def beside_published(means: dict[str, float], what: str, common: dict[str, Any]) -> Iterator[Result]:
    for figure, published in PUBLISHED.items():
        yield report.row(
            *(BENCHMARK, f"{figure}, {what}, beside MaChAmp's published figure (mBERT, 20 epochs)"),
            *(means[figure], published),
            ratio=means[figure] / published,
            conditions=common,
        )


def long(device: str, epochs: int, common: dict[str, Any]) -> Iterator[Result]:
    steps = epochs * math.ceil(common["sentences"] / BATCH)
    means = trained(JOINT, 0, steps, device, eval_rows=None)[1]
    yield from beside_published(means, f"joint, {epochs} epochs", common | {"seeds": 1, "steps": steps, "all": means})


def measured(asked: Namespace) -> Iterator[Result | LeftOut]:
    if not (TREEBANK.is_dir() and MINILM.is_dir()):
        yield LeftOut(f"all: {TREEBANK} or {MINILM} is not there; set FT_DATA")
        return
    cuda = asked.device == "cuda"
    torch.set_num_threads(1)
    common = report.conditions(asked.device, batch=BATCH, encoder="MiniLM-L6", sentences=len(rows_of("train")))
    if asked.only in (None, "speed"):
        yield from speed(asked.device, 2 if asked.quick else 5, 10 if asked.quick else 20, common)
    if asked.only in (None, "quality"):
        steps = 7840 if cuda else 40 if asked.quick else 400
        yield from quality(asked.device, 1 if asked.quick else 3, steps, 300 if asked.quick else None, common)
    if asked.only == "long" or (asked.only is None and not asked.quick):
        yield from long(asked.device, 3, common)


if __name__ == "__main__":
    more = {"--only": {"choices": ("speed", "quality", "long"), "help": "one part"}}
    raise SystemExit(report.run(BENCHMARK, __doc__, measured, more))
