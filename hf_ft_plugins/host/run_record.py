"""Trainer mix-in: a record of the run in its `output_dir`, `hf_ft_run.json`, for `hf-ft report` and the model card.

It is written with each checkpoint, so that a killed run has one, too, when training ends, and with what is logged
after that: the log, what the techniques said and decided, their sections, options, arguments, versions, and how time,
memory and tokens went. No run depends on it; one that resumes takes over the points before its checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from .. import report_sections as sections
from ..errors import PluginError
from ..models.inputs import bare
from ..registry import DISTRIBUTION
from ..training_log import plain
from . import model_card, state
from .hook_calls import CallsHooks
from .hooks import add_note
from .journal import MOST, journal
from .manifest import read_json, write_atomically
from .run_progress import Progress

logger = logging.getLogger(__name__)

RECORD_FILE = "hf_ft_run.json"
FORMAT = 1
# In the name of an option: its value is nobody else's business.
SECRETS = {"token", "secret", "password", "key", "apikey"}
HIDDEN = "(not shown)"
# Of `hf-ft run`, see `cli/app.py`; each with a value.
INTERNAL = ("--record", "--output-subfolder", "--comparison")


class RunRecord(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    # As `_ft_progress`.
    _ft_record: dict[str, Any] | None = None
    # What the process had logged when this trainer was built.
    _ft_journal_start = 0
    _ft_told: tuple[dict[str, Any], ...] = ()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._ft_progress = self._ft_record = None
        try:
            ended = super().train(*args, **kwargs)
        except BaseException as error:
            self._write_record("raised", f"{type(error).__name__}: {error}")
            raise
        if getattr(self, "preempted", False):
            self._write_record("stopped", "SIGTERM: it ends with a checkpoint, from which it can go on")
        else:
            # Before techniques are asked: one that raises leaves the record of a run that has ended.
            self._write_record("ended")
            self._add_sections()
        return ended

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        found = super().get_batch_samples(*args, **kwargs)
        if self._ft_progress is None:
            self._begin_record()
        if self._ft_progress is not None:
            self._ft_progress.count(found[0])
        return found

    def log(self, *args: Any, **kwargs: Any) -> None:
        super().log(*args, **kwargs)
        if self._ft_record is None or self._ft_progress is None:
            return
        if self._ft_record["status"] == "running":
            self._ft_progress.note(self.state.global_step, self.model)
        else:
            # An evaluation after training.
            self._write_record(self._ft_record["status"], self._ft_record["why"])

    def _run_notes(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """What the summary of a run says besides Trainer's own: on the first rank, of its share of the data."""
        return self._ft_progress.summary() if self._ft_progress is not None and "train_runtime" in logs else {}

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        self._write_record("running")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            record = self._ft_record or self._new_record()
            model_card.add_to_card(Path(self.args.output_dir), record | {"log": self.state.log_history})

    def _begin_record(self) -> None:
        if self.hp_search_backend is not None or not self.is_world_process_zero():
            return
        known = _earlier(Path(self.args.output_dir), self.state.global_step) if self.state.global_step else {}
        self._ft_progress = Progress(known.get("points", ()))
        self._ft_told = tuple(known.get("told", ()))
        self._ft_record = self._new_record() | {"began": known.get("began") or _now()}

    def _new_record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "status": "running",
            "why": None,
            "began": _now(),
            "command": command_line(sys.orig_argv),
            "trainer": type(self).__name__,
            "model": _about_model(self.model),
            "data": {"train": _rows(self.train_dataset), **_evaluation_rows(self.eval_dataset)},
            "techniques": state.describe(self._ft_techniques),
            "arguments": changed_arguments(self.args),
            "versions": _versions(),
            "device": str(self.args.device),
            "ranks": self.args.world_size,
            "sections": {},
        }

    def _write_record(self, status: str, why: str | None = None) -> None:
        if self._ft_record is None or self._ft_progress is None:
            return
        self._ft_record |= {
            "status": status,
            "why": why,
            "updated": _now(),
            "step": self.state.global_step,
            "max_steps": self.state.max_steps,
            "best": {"metric": self.state.best_metric, "checkpoint": self.state.best_model_checkpoint},
            "points": self._ft_progress.points,
            "told": [*self._ft_told, *self._new_messages()][-MOST:],
            "log": self.state.log_history,
        }
        file = Path(self.args.output_dir) / RECORD_FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(self._ft_record, indent=1, default=plain))
        except OSError as error:
            # The run and its checkpoints do not need it.
            logger.warning("%s cannot be written (%s): `hf-ft report` will know less of this run.", file, error)

    def _new_messages(self) -> Iterator[dict[str, Any]]:
        for level, text in journal().since(self._ft_journal_start):
            yield {"level": level, "text": text}

    def _add_sections(self) -> None:
        if self._ft_record is None:
            return
        for technique, answer in self._ask_all("ft_report", trainer=self):
            try:
                self._ft_record["sections"][technique.name] = [sections.as_json(_checked(one)) for one in answer]
            except Exception as error:
                add_note(error, "the answer to ft_report", technique)
                raise
        self._write_record(self._ft_record["status"], self._ft_record["why"])
        if model_card.has_section(Path(self.args.output_dir)):
            # Made when a checkpoint was saved.
            model_card.add_to_card(Path(self.args.output_dir), self._ft_record)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run's `output_dir`; None where there is none.

    Raises:
        PluginError: it cannot be read, or is another version's.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        return None
    try:
        content = read_json(file)
    except (ValueError, RecursionError, OSError) as error:
        raise PluginError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Remove it; the checkpoints hold the log, too.",
            code="file-unusable",
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PluginError(
            f"{file}: it is no record that this version reads (format {FORMAT}). Remove it.", code="file-unusable"
        )
    return content


def _earlier(folder: Path, step: int) -> dict[str, Any]:
    """Of the run that is gone on with: what its record tells of the steps up to this one."""
    try:
        known = read_record(folder) or {}
    except PluginError as error:
        logger.warning("%s", error)
        return {}
    return {
        "began": known.get("began"),
        "points": [point for point in _dicts_with("step", known.get("points")) if point["step"] <= step],
        "told": _dicts_with("text", known.get("told")),
    }


def _dicts_with(key: str, listed: Any) -> list[dict[str, Any]]:
    return [one for one in listed or () if key in one] if isinstance(listed, list) else []


def _checked(section: Any) -> sections.Section:
    if not isinstance(section, sections.Section):
        raise PluginError(
            f"ft_report answers a {type(section).__name__} among its sections. Answer a list of Facts, Rows, Grid and "
            "Curve (hf_ft_plugins/report_sections.py).",
            code="part-misused",
        )
    wrong = sections.misshapen(section)
    if wrong:
        raise PluginError(
            f"ft_report: the section {section.title!r} has not the shape that it must have: {wrong}.",
            code="part-misused",
        )
    return section


def command_line(given: Sequence[str]) -> list[str]:
    """A command line as one types it, without what is secret in it.

    `hf-ft compare` runs scripts with options of its own, which nobody types.
    """
    words = list(given)
    for at in range(len(words) - 1):
        if words[at : at + 2] == ["-m", "hf_ft_plugins"] or Path(words[at + 1]).name == "hf-ft":
            words = ["hf-ft", *words[at + 2 :]]
            break
    shown, hide = [], False
    for word in _without_internal(words):
        name, sign, _ = word.partition("=")
        secret = word.startswith("-") and not SECRETS.isdisjoint(re.split("[-_.]", name.lower()))
        shown.append(HIDDEN if hide else f"{name}={HIDDEN}" if secret and sign else word)
        hide = secret and not sign
    return shown


def _without_internal(words: list[str]) -> Iterator[str]:
    if words[:2] != ["hf-ft", "run"]:
        yield from words
        return
    following = iter(words)
    for word in following:
        if word in INTERNAL:
            next(following, None)
        else:
            yield word


def changed_arguments(args: Any) -> dict[str, Any]:
    """The fields of the trainer's arguments that are not as by default, as JSON can hold them."""
    shown = args.to_dict()
    return {
        field.name: shown[field.name]
        for field in dataclasses.fields(args)
        if field.init and field.name in shown and getattr(args, field.name) != _default(field)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _about_model(model: Any) -> dict[str, Any]:
    inner = bare(model)
    return {
        "class": type(inner).__name__,
        "name": str(getattr(getattr(inner, "config", None), "name_or_path", "") or ""),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _rows(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None


def _evaluation_rows(datasets: Any) -> dict[str, int | None]:
    if isinstance(datasets, Mapping):
        return {f"eval_{name}": _rows(dataset) for name, dataset in datasets.items()}
    return {} if datasets is None else {"eval": _rows(datasets)}


def _versions() -> dict[str, str]:
    """Of what this distribution needs, or an extra of it, and the process has imported."""
    names = {Requirement(line).name for line in requires(DISTRIBUTION) or ()}
    imported = sorted(name for name in names if name.replace("-", "_") in sys.modules)
    return {"python": sys.version.split()[0], **{name: version(name) for name in (DISTRIBUTION, *imported)}}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
