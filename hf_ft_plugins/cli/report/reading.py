"""The runs that folders hold: the host's records, stock Trainers' logs, and the two sides of a comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from ... import report_sections as sections
from ...errors import PluginError
from ...host.manifest import read_json
from ...host.run_record import RECORD_FILE, read_record
from ...training_log import Training
from ..compare.verdicts import WITH

STOCK_FILE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
COMPARISON_FILE = "compare.json"
SIDE = re.compile(r"(with(?:out)?)(?:-seed(\d+))?\.json")
# What a record holds, by its kind, so that a page is never made of something else.
SHAPES: dict[str, type] = {
    **dict.fromkeys(("command", "techniques", "points", "told", "log"), list),
    **dict.fromkeys(("model", "data", "arguments", "versions", "sections", "best"), dict),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: how the page calls it; group: runs of one group are drawn alike (the seeds of one side).
        training: its log.
        about: the host's record of it, of any keys of `run_record.py`; empty for a stock run.
        report: each technique's sections.
    """

    name: str
    group: str
    training: Training
    about: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, list[sections.Section]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What there is to report.

    Attributes:
        comparison: `compare.json` of a comparison; None where the runs are of no such.
    """

    runs: list[Run]
    comparison: Mapping[str, Any] | None = None


def read_runs(folders: list[Path]) -> Found:
    """The runs of these folders, each an `output_dir`, a folder of several, or the output of `hf-ft compare`.

    Raises:
        PluginError: a folder holds no run, or what it holds cannot be read.
    """
    runs: list[Run] = []
    comparison = None
    names = _short_names(folders)
    for folder, name in zip(folders, names, strict=True):
        if not folder.is_dir():
            raise PluginError(
                f"report: there is no folder {folder}. Name the output_dir of a run.", code="file-unusable"
            )
        if (folder / COMPARISON_FILE).is_file():
            comparison = _read(folder / COMPARISON_FILE, dict)
            found = list(_sides(folder))
        else:
            found = list(_in_folder(folder, name))
        if not found:
            raise PluginError(
                f"report: {folder} holds no run: neither {RECORD_FILE}, nor {STOCK_FILE} in it or in a checkpoint, nor "
                "folders that do. Name the output_dir of a run, or the --output of hf-ft compare.",
                code="file-unusable",
            )
        runs += found
    return Found(runs, comparison if len(folders) == 1 else None)


def _in_folder(folder: Path, name: str) -> Iterator[Run]:
    run = _run_of(folder, name)
    if run is not None:
        yield run
        return
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        run = _run_of(inner, f"{name}/{inner.name}")
        if run is not None:
            yield run


def _run_of(folder: Path, name: str) -> Run | None:
    record = read_record(folder)
    if record is not None:
        return run_of_record(record, name, str(folder / RECORD_FILE))
    states = [folder / STOCK_FILE, *(path / STOCK_FILE for path in _checkpoints(folder))]
    file = next((one for one in states if one.is_file()), None)
    if file is None:
        return None
    state = _read(file, dict)
    history = _entries(state.get("log_history"), str(file))
    return Run(name, name, Training(history, steps=int(state.get("global_step") or 0)))


def run_of_record(record: Mapping[str, Any], name: str, file: str, group: str | None = None) -> Run:
    """A run from the host's record.

    Raises:
        PluginError: the record is not of its form.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise PluginError(f"report: in {file}, {what}. Remove the file.", code="file-unusable")

    for key, kind in SHAPES.items():
        require(isinstance(record.get(key, kind()), kind), f"{key!r} is no {kind.__name__}")
    for key in ("techniques", "points", "told"):
        require(all(isinstance(one, dict) for one in record.get(key, [])), f"{key!r} holds something else than objects")
    values = (value for point in record.get("points", []) for value in point.values())
    require(all(isinstance(one, (int, float, NoneType)) for one in values), "'points' hold something else than numbers")
    report = {}
    for technique, listed in record.get("sections", {}).items():
        require(isinstance(listed, list), f"the sections of {technique!r} are no list")
        report[technique] = [sections.from_json(one) for one in listed]
    steps = record.get("step")
    training = Training(_entries(record.get("log"), file), steps=steps if isinstance(steps, int) else 0)
    return Run(name, group or name, training, record, report)


def _sides(folder: Path) -> Iterator[Run]:
    files = {match: file for file in folder.iterdir() if (match := SIDE.fullmatch(file.name))}
    # The run without before the run with, each by its seeds.
    for match in sorted(files, key=lambda match: (match[1] == WITH, int(match[2] or 0))):
        file, (side, seed) = files[match], match.groups()
        trainings = _read(file, dict).get("trainings") or []
        for position, item in enumerate(trainings):
            name = side + (f", seed + {seed}" if seed and seed != "0" else "")
            name += f", training {position + 1}" if len(trainings) > 1 else ""
            group = side + (f", training {position + 1}" if len(trainings) > 1 else "")
            if item.get("run"):
                yield run_of_record(item["run"], name, str(file), group)
            else:
                yield Run(name, group, Training(_entries(item.get("log"), str(file)), item.get("step") or 0))


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _entries(log: Any, file: str) -> list[dict[str, Any]]:
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise PluginError(
            f"report: {file} holds no log of a Trainer. Remove the file, or name another folder.", code="file-unusable"
        )
    return log


def _read(file: Path, kind: type) -> Any:
    try:
        content = read_json(file)
    except (ValueError, RecursionError, OSError) as error:
        raise PluginError(
            f"report: {file} cannot be read ({type(error).__name__}: {error}). Remove it.", code="file-unusable"
        ) from error
    if not isinstance(content, kind):
        raise PluginError(f"report: {file} holds no {kind.__name__}. Remove it.", code="file-unusable")
    return content


def _short_names(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for depth in range(1, 1 + max(len(folder.resolve().parts) for folder in folders)):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names
