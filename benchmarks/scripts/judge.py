"""One run in a process of its own, and what came of it."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.scripts.runs import REASONS, Run, shared

Verdict = Literal["right", "refused", "wrong", "raw error", "the script alone fails"]
STAND_INS = Path(__file__).parent / "stand_ins"
TRAINING = "***** Running training *****"
TRACEBACK = "Traceback (most recent call last)"
OURS = "hf-ft: "
SECONDS = 300
# The only files of the script alone that a run may lack: those of the weights, which an adapter replaces.
WEIGHTS = re.compile(r"model.*\.safetensors|adapter_.*|config\.json|generation_config\.json|training_args\.bin")
# Metrics that say how long something took or how much was read, not how well.
TIMES = re.compile(r"runtime|per_second|flos|num_tokens|memory")


@dataclass(frozen=True)
class Ended:
    """What a process left behind.

    Attributes:
        code: exit status; None: it was stopped after `SECONDS`.
        text: all that it printed.
        files: names in its output folder.
        metrics: by name, from the files of results and the last state of the trainer.
        steps: of the optimizer; None where no checkpoint says.
    """

    code: int | None
    text: str
    seconds: float
    files: frozenset[str] = frozenset()
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None


def script_line(run: Run, scripts: Path, folder: Path, output: Path, again: Path) -> list[str]:
    """The script and its arguments, as `python` and `hf-ft run` take them."""
    target = ["-m", run.script] if run.script.startswith("trl.") else [str(scripts / run.script)]
    arguments = shlex.split(run.arguments.format(data=folder, again=again))
    return [*target, "--output_dir", str(output), *shared(run), *arguments]


def command(techniques: tuple[str, ...], line: list[str]) -> list[str]:
    ours = ["-m", "hf_ft_plugins", "run", *(part for name in techniques for part in ("--with", name))]
    return [sys.executable, *(ours if techniques else []), *line]


def carry_out(line: list[str], folder: Path, output: Path) -> Ended:
    paths = [str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    began = time.monotonic()
    try:
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Ended(None, "", time.monotonic() - began)
    files = frozenset(file.name for file in output.iterdir() if file.is_file()) if output.is_dir() else frozenset()
    metrics, steps = results(output)
    return Ended(done.returncode, done.stdout + done.stderr, time.monotonic() - began, files, metrics, steps)


def results(output: Path) -> tuple[dict[str, float], int | None]:
    found: dict[str, float] = {}
    steps = None
    states = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda file: file.stat().st_mtime)
    for file in [*states[-1:], *output.glob("trainer_state.json")]:
        state = json.loads(file.read_text())
        steps = max(steps or 0, state["global_step"])
        for entry in state["log_history"]:
            found |= {name: value for name, value in entry.items() if isinstance(value, int | float)}
    for file in output.glob("*_results.json"):
        found |= {name: value for name, value in json.loads(file.read_text()).items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if not TIMES.search(name)}, steps


def judge(run: Run, ended: Ended, alone: Ended | None) -> tuple[Verdict, str]:
    """The verdict, and why: what was refused, which error, or what is missing beside the run of the script alone."""
    if ended.code is None:
        return "wrong", f"still running after {SECONDS} s"
    if ended.code != 0:
        message = last_words(ended.text)
        if alone is None:
            return "the script alone fails", message
        if not message.startswith(OURS):
            return "raw error", message
        message = message.removeprefix(OURS)
        if TRAINING in ended.text:
            return "wrong", f"refused after training began: {message}"
        expected = any(
            name in {one.split(":")[0] for one in run.techniques} and re.search(why, message) for name, why in REASONS
        )
        return ("refused" if expected else "wrong"), message
    odd = [name for name, value in ended.metrics.items() if not math.isfinite(value)]
    if odd:
        return "wrong", f"not finite: {', '.join(sorted(odd))}"
    if alone is not None:
        return beside(run, ended, alone)
    return "right", ""


def beside(run: Run, ended: Ended, alone: Ended) -> tuple[Verdict, str]:
    lost = {name for name in alone.files - ended.files if not WEIGHTS.fullmatch(name)}
    gone = set(alone.metrics) - set(ended.metrics)
    if lost or gone:
        return "wrong", f"the script alone also gives {', '.join(sorted(lost | gone))}"
    if "model.safetensors" in alone.files and not any(name.endswith(".safetensors") for name in ended.files):
        return "wrong", "no weights were saved"
    # An epoch has as many batches as a technique makes of it.
    if ended.steps != alone.steps and "--num_train_epochs" not in run.arguments:
        return "wrong", f"{ended.steps} steps; the script alone makes {alone.steps}"
    if run.learns:
        name = next(name for name in ("eval_f1", "eval_accuracy") if name in alone.metrics)
        if ended.metrics[name] < alone.metrics[name] - 0.1:
            return "wrong", f"{name} {ended.metrics[name]:.3f}; the script alone reaches {alone.metrics[name]:.3f}"
    return "right", ""


def last_words(text: str) -> str:
    """The message that a process ended with: our error's paragraph, or the last line of a traceback."""
    ours, trace = text.rfind(f"\n{OURS}"), text.rfind(TRACEBACK)
    if trace < 0 or ours > trace:
        return " ".join(text[max(ours, 0) :].split())
    after = text[trace:].splitlines()[1:]
    return next((line for line in after if line[:1].strip()), "").strip()
