"""What one pass for several tasks saves, and what it costs in quality, on the English Web Treebank.

    python -m benchmarks.multitask [--device cuda] [--quick] [--json]

Three tasks on the same sentences: parts of speech, a dependency parser (biaffine, maximum spanning tree), and named
entities (CRF), on MiniLM-L6. Needs the folder FT_DATA (default ../shared/data).

- speed: sentences times tasks learned in a CPU second (`--device cuda`: a second), `multitask` on rows that carry all
  labels against batches of one task in turn (round-robin, the same model and batch size). Rounds are interleaved, each
  a run of its own; its first steps are not counted. `noise` is that of round-robin against itself.
- quality on the test set, after as many steps of one batch: all tasks jointly (`ours`) against a model of its own for
  each task (`baseline`), means over seeds. UPOS is accuracy, LAS is the CoNLL 2018 shared task's on gold words, F1 that
  of whole entities, all in points. `noise` is that of each seed's single-task model against the next one's.
- published: joint UPOS, UAS and LAS beside MaChAmp's on EWT (van der Goot et al. 2021, results of its repository) by
  multilingual BERT base: 178 M parameters and 20 epochs, against MiniLM-L6's 22.7 M and the steps here.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from benchmarks.data import DATA, MINILM, lines_of
from benchmarks.report import Result, arguments, conditions, noise_floor, quartiles, show
from hf_ft_plugins import with_plugins
from hf_ft_plugins.techniques.multitask import MultiTaskCollator, MultiTaskModel, TaskSpec

BENCHMARK = "multitask"
TREEBANK = DATA / "ud_ewt_ner"
# The parser's loss is some twenty times that of the entities; unweighed it is the only one that the encoder follows in
# its first hundreds of steps.
TASKS = {
    "upos": TaskSpec(kind="token"),
    "parse": TaskSpec(kind="dependency", columns=("head", "deprel"), weight=0.5),
    "ner": TaskSpec(kind="crf", weight=2.0),
}
# A task's figure, and how far below its single-task model it may be.
FIGURES = {"upos": "upos_accuracy", "parse": "parse_las", "ner": "ner_f1"}
ALLOWED = 0.3
FASTER = 2.5
PUBLISHED = {"upos_accuracy": 94.93, "parse_uas": 89.75, "parse_las": 87.59}
BATCH = 16
JOINT, ROUND_ROBIN = "joint", "round-robin"
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
        Sentences times tasks a second, and the metrics on the test set (none for `eval_rows` 0), in points.
    """
    train, test = rows_of("train"), rows_of("test", eval_rows)
    every = [*train, *rows_of("dev"), *rows_of("test")]
    tasks = {kind: TASKS[kind]} if kind in TASKS else TASKS
    model = MultiTaskModel.from_encoder(str(MINILM), tasks, every, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    clock = Clock(device == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        trainer = with_plugins(Trainer, "multitask:mix=round_robin")(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                learning_rate=6e-4,
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
    tasks_a_sentence = len(TASKS) if kind == JOINT else 1
    speed = clock.steps * BATCH * tasks_a_sentence / (clock.ended - clock.began)
    prefix = "test_"
    return speed, {name.removeprefix(prefix): 100 * value for name, value in metrics.items() if name.startswith(prefix)}


def _in_a_process(job: tuple[str, int, int, str, int | None]) -> tuple[tuple[str, int], dict[str, float]]:
    kind, seed, steps, device, eval_rows = job
    torch.set_num_threads(1)
    return (kind, seed), trained(kind, seed, steps, device, eval_rows=eval_rows)[1]


def speed(device: str, rounds: int, steps: int, common: dict[str, Any]) -> Result:
    measured: dict[str, list[float]] = {JOINT: [], ROUND_ROBIN: [], "again": []}
    for turn in range(rounds):
        for name in measured:
            kind = JOINT if name == JOINT else ROUND_ROBIN
            measured[name].append(trained(kind, turn, steps, device, eval_rows=0)[0])
    ratios = [ours / base for ours, base in zip(measured[JOINT], measured[ROUND_ROBIN], strict=True)]
    again = [second / first for first, second in zip(measured[ROUND_ROBIN], measured["again"], strict=True)]
    ratio = statistics.median(ratios)
    return Result(
        BENCHMARK,
        "task-sentences a second",
        statistics.median(measured[JOINT]),
        statistics.median(measured[ROUND_ROBIN]),
        ratio,
        noise_floor(again),
        f">= {FASTER} x round-robin",
        ratio >= FASTER,
        common | {"rounds": rounds, "steps": steps, "quartiles": quartiles(ratios)},
    )


def quality(device: str, seeds: int, steps: int, eval_rows: int | None, common: dict[str, Any]) -> list[Result]:
    jobs = [(kind, seed, steps, device, eval_rows) for seed in range(seeds) for kind in (JOINT, *TASKS)]
    processes = 1 if device == "cuda" else multiprocessing.cpu_count()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        console = Console(stderr=True)
        found = dict(track(pool.imap_unordered(_in_a_process, jobs), "runs", total=len(jobs), console=console))
    common = common | {"seeds": seeds, "steps": steps, "test_sentences": eval_rows or "all"}

    def over_seeds(kind: str, figure: str) -> list[float]:
        return [found[kind, seed][figure] for seed in range(seeds)]

    results = []
    for task, figure in FIGURES.items():
        ours, baseline = over_seeds(JOINT, figure), over_seeds(task, figure)
        again = [second / first for first, second in zip(baseline, [*baseline[1:], baseline[0]], strict=True) if first]
        below = statistics.mean(baseline) - statistics.mean(ours)
        results.append(
            Result(
                BENCHMARK,
                f"{figure}, joint against a model of its own",
                statistics.mean(ours),
                statistics.mean(baseline),
                statistics.mean(ours) / statistics.mean(baseline) if any(baseline) else None,
                noise_floor(again) if seeds > 1 and again else None,
                f"at most {ALLOWED} points below",
                below <= ALLOWED,
                common | {"ours": ours, "baseline": baseline},
            )
        )
    for figure, published in PUBLISHED.items():
        ours = statistics.mean(over_seeds(JOINT, figure))
        what = f"{figure}, joint, beside MaChAmp's published figure (mBERT, 20 epochs)"
        results.append(Result(BENCHMARK, what, ours, published, ours / published, None, None, None, common))
    return results


def main() -> None:
    args = arguments(__doc__ or "")
    if not (TREEBANK.is_dir() and MINILM.is_dir()):
        print(f"skipped: {TREEBANK} or {MINILM} is not there; set FT_DATA.")
        return
    cuda = args.device == "cuda"
    torch.set_num_threads(1)
    common = conditions(args.device, batch=BATCH, encoder="MiniLM-L6", sentences=len(rows_of("train")))
    results = [speed(args.device, 2 if args.quick else 5, 10 if args.quick else 20, common)]
    steps = 7840 if cuda else 40 if args.quick else 400
    results += quality(args.device, 1 if args.quick else 3, steps, 300 if args.quick else None, common)
    show(results, as_json=args.json)


if __name__ == "__main__":
    main()
