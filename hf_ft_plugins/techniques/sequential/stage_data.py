"""The data of one stage as they come to `sequential`, and the evaluation sets of all stages of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from ...host.stash import StashKey
from .stage_records import StageRecords
from .transfer_matrix import set_name

EVALUATION = "evaluation"
UPCOMING = "upcoming"


@dataclass
class StageData:
    """What a trainer was given, before anything of other stages came to it.

    Attributes:
        train: the training data; None until they are known.
        evaluations: the evaluation sets, by the names that Trainer gives them; "eval" is the one without a name.
        kept: of `evaluations`, the rows to keep and to measure by; None until they are drawn (`own_sets`).
        replayed: rows of earlier stages in the trainer's data set, behind its own, by stage.
        is_complete: all data of the trainer are known; what comes later are other data.
    """

    train: Any = None
    evaluations: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] | None = None
    replayed: dict[str, int] = field(default_factory=dict)
    is_complete: bool = False


STAGE_DATA = StashKey[StageData]("sequential: the stage's data")


def named(stage: str, evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation sets of a stage by the names that they have among those of all stages."""
    return {set_name(stage, name, only=len(evaluations) == 1): rows for name, rows in evaluations.items()}


def folder_of_set(folder: Path, name: str) -> Path:
    """Where the rows of an evaluation set are kept, whatever it is called: `owner/data` is one folder."""
    return folder / quote(name, safe=" ")


def kept_evaluations(records: StageRecords, stages: list[str]) -> dict[str, Any]:
    """The evaluation rows that finished stages have kept, in the order of `stages`, and those of stages to come."""
    kept: dict[str, Any] = {}
    for stage in stages:
        kept |= _read(stage, records.of(stage) / EVALUATION)
    upcoming = records.folder / UPCOMING
    for folder in sorted(upcoming.iterdir()) if upcoming.is_dir() else []:
        if folder.name not in stages:
            kept |= _read(folder.name, folder)
    return kept


def _read(stage: str, folder: Path) -> dict[str, Any]:
    from .kept_rows import load_rows

    if not folder.is_dir():
        return {}
    return named(stage, {unquote(one.name): load_rows(one) for one in sorted(folder.iterdir()) if one.is_dir()})
