"""What the stages of a sequence were when they began, so that none is changed behind the back of what it has left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import PluginError
from ...host.manifest import read_json, write_atomically
from .settings import NAME

PLAN_FILE = "hf_ft_plan.json"


def begin(folder: Path, number: int, plan: Sequence[Mapping[str, Any]], *, writes: bool = True) -> None:
    """Note that stage `number` (from 0) of a plan begins.

    Args:
        plan: of each stage `name` and whatever else it is; what JSON cannot hold is compared as text.
        writes: False: compare only, on the ranks behind the first.

    Raises:
        PluginError: a stage that has begun before is another now, or stands at another place; the file of what has
            begun cannot be read.
    """
    file = folder / PLAN_FILE
    begun = _read(file)
    # Through JSON, so that a tuple here equals the list that it became in the file.
    now = json.loads(json.dumps([dict(stage) for stage in plan], default=str))
    lines = [line for at, stage in enumerate(begun) for line in _changes(at, stage, now)]
    if lines:
        raise PluginError(
            f"{NAME}: stages in folder={folder} were other ones when they began:\n  "
            + "\n  ".join(lines)
            + "\nGo on with the stages as they were, or begin with another folder.",
            code="stages",
        )
    if writes and len(begun) <= number:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(now[: number + 1], indent=1))


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        begun = read_json(file)
    except (ValueError, RecursionError, OSError) as error:
        raise _unreadable(file, f"{type(error).__name__}: {error}") from error
    if not isinstance(begun, list) or not all(isinstance(one, dict) and "name" in one for one in begun):
        raise _unreadable(file, "it must be a list of stages, each with its name")
    return begun


def _unreadable(file: Path, why: str) -> PluginError:
    return PluginError(
        f"{NAME}: {file} cannot be read: {why}. Put it back as it was, or remove it: then nothing notices stages that "
        "have changed.",
        code="file-unusable",
    )


def _changes(at: int, was: Mapping[str, Any], plan: Sequence[Mapping[str, Any]]) -> list[str]:
    name = was["name"]
    if at >= len(plan) or plan[at]["name"] != name:
        now = plan[at]["name"] if at < len(plan) else "not there"
        return [f"! stage {at + 1} was {name}, and is {now}"]
    return _differences(name, was, plan[at])


def _differences(place: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key, "(unset)"), now.get(key, "(unset)")
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(f"{place}: {key}", before, after)
        elif before != after:
            lines.append(f"! {place}: {key} was {before}, is {after}")
    return lines
