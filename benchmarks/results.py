"""The files of `docs/results/`: one for each benchmark, with a head that says where its rows come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "results"
FIELDS = ("benchmark", "metric", "ours", "baseline", "ratio", "noise", "gate", "met", "conditions")
LIBRARIES = ("torch", "transformers", "accelerate", "trl", "peft", "bitsandbytes", "datasets", "tokenizers", "numpy")


@dataclass(frozen=True)
class ResultFile:
    """What one file holds; `rows` are objects of FIELDS, in the order in which they were measured."""

    name: str
    head: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def head(argv: Sequence[str], seconds: float) -> dict[str, Any]:
    """Commit (with "-dirty" where files have changed since), date, settings, machine and versions of a run."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": list(argv),
        "seconds": round(seconds),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """The processor's model, its cores, memory in GiB, and the GPU where torch finds one."""
    cpu = platform.processor() or platform.machine()
    memory = None
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory, **gpu}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def file_of(name: str, device: str) -> str:
    """A file's name without its ending: those of a GPU stand beside those of the CPU."""
    return name if device == "cpu" else f"{name}-{device}"


def write_results(name: str, device: str, about: Mapping[str, Any], rows: Iterable[str], folder: Path = FOLDER) -> Path:
    """Write a file of rows that are JSON already, one a line, so that a change of one shows as one line."""
    file = folder / f"{file_of(name, device)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    begin = json.dumps({"head": dict(about)}, indent=1).removesuffix("\n}")
    unfinished = file.with_suffix(".json.unfinished")
    unfinished.write_text(begin + ',\n "rows": [\n' + ",\n".join(rows) + "\n ]\n}\n", encoding="utf-8")
    unfinished.replace(file)
    return file


def read_results(file: Path) -> ResultFile:
    """A file of `write_results`.

    Raises:
        ValueError: it is not one, or a row has other fields than FIELDS.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or set(found) != {"head", "rows"}:
        raise ValueError(f"{file}: it must hold `head` and `rows`; write it with --write.")
    for one in found["rows"]:
        if tuple(one) != FIELDS:
            raise ValueError(f"{file}: a row has the fields {', '.join(one)}, not {', '.join(FIELDS)}.")
    return ResultFile(file.stem, found["head"], found["rows"])


def all_results(folder: Path = FOLDER) -> Iterator[ResultFile]:
    for file in sorted(folder.glob("*.json")):
        yield read_results(file)
