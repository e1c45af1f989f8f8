"""Whether `hf-ft compare` finds no difference where there is none, and resuming survives any flipped byte.

    python -m benchmarks.compare [--quick] [--json] [--write]

- "no difference": a script that seeds nothing is compared with itself (a technique that never acts) 20 times; `ours` is
  how often the comparison called the two runs identical, `baseline` how often the same script, started twice by plain
  Python, ends with the same weights (twice alone, for the time it takes).
- "flipped bytes": one bit of every byte of a checkpoint's manifest, then of its state, is flipped; `ours` is how often
  the newest whole checkpoint was found without an error (the older one, or the same where the file still says the
  same), `baseline` the number of flips. `raw_errors` are other exceptions than ours.

`ratio` is ours / baseline for the flips, and the share of comparisons for the others. No time is measured, so there is
no noise.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Gate, Result, conditions, row
from hf_ft_plugins import AdaptiveLR
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.manifest import MANIFEST_FILE, STATE_FILE, newest_whole_checkpoint
from hf_ft_plugins.testing import tiny_trainer

BENCHMARK = "compare"
SCRIPT = Path(__file__).parents[1] / "tests" / "scripts" / "train_unseeded.py"
COMPARISONS = 20
NEVER_ACTS = "adaptive-lr:patience=99"


def compared(folder: Path) -> dict[str, Any]:
    """What a comparison of the script with itself tells."""
    command = ["-m", "hf_ft_plugins", "compare", "--json", "--with", NEVER_ACTS, str(SCRIPT)]
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"identical": False, "failed": done.stderr[-500:]}


def plain_weights(folder: Path) -> str:
    """The weights that the script ends with under plain Python, as a digest."""
    code = (
        "import runpy\n"
        f"trainer = runpy.run_path({str(SCRIPT)!r})['trainer']\n"
        "from hf_ft_plugins.cli.record import weights_digest\n"
        "print(weights_digest(trainer.model))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def no_difference(quick: bool) -> Result:
    count = 3 if quick else COMPARISONS
    with tempfile.TemporaryDirectory() as place:
        found = [compared(Path(place)) for _ in range(count)]
        alike = plain_weights(Path(place)) == plain_weights(Path(place))
    identical = sum(one["identical"] for one in found)
    return row(
        *(BENCHMARK, "a script that seeds nothing, with itself: no difference", identical, float(alike)),
        ratio=identical / count,
        gate=Gate("ratio", "=", 1.0),
        conditions=conditions("cpu", comparisons=count, failed=[one["failed"] for one in found if "failed" in one]),
    )


def flipped_bytes(name: str, quick: bool) -> Result:
    with tempfile.TemporaryDirectory() as place:
        options = {"controller": "rollback", "patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
        with contextlib.redirect_stdout(sys.stderr):
            tiny_trainer(Path(place), AdaptiveLR(**options), max_steps=8, save_steps=4).train()
        file = Path(place) / "checkpoint-8" / name
        content = file.read_bytes()
        positions = range(0, len(content), 10 if quick else 1)
        older = same = errors = 0
        for position in positions:
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            file.write_bytes(changed)
            try:
                newest, _ = newest_whole_checkpoint(Path(place))
            except PluginError:
                continue
            except Exception:
                errors += 1
                continue
            older += newest is not None and newest.name == "checkpoint-4"
            # Only where the file says the same as before: white space.
            same += newest is not None and newest.name == "checkpoint-8" and json.loads(changed) == json.loads(content)
    return row(
        *(BENCHMARK, f"flipped bytes of {name}: a whole checkpoint is found", older + same, len(positions)),
        ratio=(older + same) / len(positions),
        gate=Gate("ratio", "=", 1.0),
        also={"no raw error": errors == 0},
        conditions=conditions("cpu", older=older, same=same, raw_errors=errors, bytes=len(content)),
    )


def measured(asked: Namespace) -> Iterator[Result]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in (MANIFEST_FILE, STATE_FILE):
        yield flipped_bytes(name, asked.quick)
    yield no_difference(asked.quick)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured))
