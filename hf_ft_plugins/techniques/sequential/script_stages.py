"""`hf-ft stages RECIPE`: scripts as stages of one sequence, one after the other, each in a process of its own.

    folder: stages
    techniques: [sequential, low-memory]
    script: train.py
    arguments: {learning_rate: 1e-4, num_train_epochs: 1}
    stages:
      - {name: general, arguments: {train_file: books.txt, model_name_or_path: base}}
      - {name: medical, arguments: {train_file: medical.txt, model_name_or_path: "{previous}"}}

What stands beside `stages` holds for each; what a stage says itself comes on top. Run again, finished stages are
skipped, and the one that was begun goes on from its newest whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ... import registry
from ...cli.recipes import read_yaml
from ...errors import OptionError, PluginError
from ...host import hooks
from ...host.state import RESUME_VARIABLE
from ...technique import Technique
from . import stage_plan
from .settings import NAME
from .stage_records import StageRecords

FORM = (
    "a recipe of stages is a mapping with 'folder' and 'stages', a list of mappings with 'name', and, there or beside "
    "'stages', 'script', 'arguments' (a mapping), 'techniques' (a list) and 'launch' (a command, such as torchrun)."
)
COMMON = ("script", "arguments", "techniques", "launch")


@dataclass(frozen=True)
class ScriptStage:
    """One stage of a recipe.

    Attributes:
        name: of the stage.
        script: the script, or "-m MODULE".
        arguments: of the script, by name; in texts `{previous}` is the folder of the model that the stage before has
            ended with. None leaves one out.
        techniques: `sequential` among them.
        launch: what runs the script, instead of this Python.
    """

    name: str
    script: str
    arguments: Mapping[str, Any]
    techniques: tuple[Technique, ...]
    launch: str = ""

    @property
    def output_dir(self) -> str:
        """Where its checkpoints are: as its arguments say, else in the folder of the stages."""
        sequential: Any = next(one for one in self.techniques if one.name == NAME)
        return str(self.arguments.get("output_dir") or Path(sequential.folder) / "runs" / self.name)

    def command(self, records: StageRecords, previous: str | None, *, as_json: bool = False) -> list[str]:
        """The command line of this stage."""
        launch = shlex.split(self.launch) or [sys.executable]
        chosen = [word for technique in self.techniques for word in ("--with", str(technique))]
        given = {**self.arguments, "output_dir": self.output_dir}
        model = None if previous is None else str(records.model_of(previous))
        words = [word for name, value in given.items() for word in _words(name, value, model, self.name)]
        said = ["--json"] if as_json else []
        return [*launch, "-m", "hf_ft_plugins", "run", *said, *chosen, *shlex.split(self.script), *words]

    def described(self) -> dict[str, Any]:
        """What it is, as JSON can hold it."""
        techniques = {one.name: one.changed_options() for one in self.techniques}
        return {**dataclasses.asdict(self), "arguments": dict(self.arguments), "techniques": techniques}


def _words(name: str, value: Any, previous: str | None, stage: str) -> list[str]:
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    if any(isinstance(one, str) and "{previous}" in one for one in values) and previous is None:
        raise PluginError(
            f"{NAME}: stage {stage} is the first, and its argument {name}={value} names the model of the stage before. "
            "Say there what the first stage starts from.",
            code="recipe-unreadable",
        )
    return [f"--{name}", *(str(one).replace("{previous}", str(previous)) for one in values)] if values else []


def read_stages(recipe: Path) -> tuple[StageRecords, list[ScriptStage]]:
    """The folder and the stages of a recipe.

    Raises:
        PluginError: the file is not of its form, or a technique in it would be refused.
    """
    content = read_yaml(recipe, FORM)
    if not isinstance(content, dict) or not {"folder", "stages"} <= set(content) <= {"folder", "stages", *COMMON}:
        raise OptionError(f"{recipe}: {FORM}", code="recipe-unreadable")
    entries = content["stages"]
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise OptionError(f"{recipe}: {FORM}", code="recipe-unreadable")
    stages = [_stage(recipe, str(content["folder"]), content, entry) for entry in entries]
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise OptionError(
            f"{recipe}: two stages have one name, of {', '.join(names)}. Rename one.", code="recipe-unreadable"
        )
    folders = [str(stage.output_dir) for stage in stages]
    if len(set(folders)) < len(folders):
        raise OptionError(
            f"{recipe}: two stages have one output_dir, of {', '.join(folders)}, and each goes on from the checkpoints "
            "in its own. Leave the argument out: they are kept in the folder of the stages.",
            code="recipe-unreadable",
        )
    sequential: Any = next(one for one in stages[0].techniques if one.name == NAME)
    return sequential.records, stages


def _stage(recipe: Path, folder: str, common: Mapping[str, Any], entry: Mapping[str, Any]) -> ScriptStage:
    if not {"name"} <= set(entry) <= {"name", *COMMON}:
        raise OptionError(
            f"{recipe}: a stage has the keys {', '.join(map(str, entry))}. {FORM.capitalize()}",
            code="recipe-unreadable",
        )
    script = entry.get("script", common.get("script"))
    given = [part.get("arguments") or {} for part in (common, entry)]
    listed = [part.get("techniques") or [] for part in (common, entry)]
    if script is None or not all(isinstance(one, dict) for one in given):
        raise OptionError(
            f"{recipe}: stage {entry['name']}: it needs a script, and arguments by name. {FORM}",
            code="recipe-unreadable",
        )
    if not all(isinstance(one, list) for one in listed):
        raise OptionError(
            f"{recipe}: stage {entry['name']}: its techniques must be a list. {FORM.capitalize()}",
            code="recipe-unreadable",
        )
    # A technique that a stage names itself replaces the one that all have.
    chosen = {one.name: one for part in listed for one in map(registry.resolve, part)}
    own = chosen.pop(NAME, None) or registry.resolve(NAME)
    options = {**own.options(), "folder": folder, "stage": str(entry["name"])}
    techniques = (*chosen.values(), type(own).from_options(options))
    hooks.manager(techniques)
    launch = entry.get("launch", common.get("launch")) or ""
    return ScriptStage(str(entry["name"]), str(script), {**given[0], **given[1]}, techniques, str(launch))


def run_scripts(recipe: Path, console: Console, *, as_json: bool = False) -> dict[str, Any]:
    """Run the stages of a recipe that are not finished.

    Args:
        as_json: whether stdout is for the result alone: what the scripts print goes to stderr, and a refusal is JSON on
            its last line.

    Returns:
        `folder`, `stages` with the name and the model's folder of each, and `picture`, the file or None.

    Raises:
        PluginError: see `read_stages`; a stage that began as another, or whose script fails or trains nothing.
    """
    records, stages = read_stages(recipe)
    plan = [stage.described() for stage in stages]
    for number, stage in enumerate(stages):
        command = stage.command(records, stages[number - 1].name if number else None, as_json=as_json)
        stage_plan.begin(records.folder, number, plan)
        title = f"stage {number + 1} of {len(stages)}: {stage.name}"
        if stage.name in _finished(records):
            console.print(f"{title} is finished", highlight=False)
            continue
        console.rule(title)
        console.print(shlex.join(command), markup=False, highlight=False)
        status = _ended(command, as_json=as_json)
        if status != 0 or stage.name not in _finished(records):
            what = f"ended with status {status}" if status else "ended, and its stage is not finished"
            raise PluginError(
                f"{NAME}: {title} {what}. The stages before it are kept in {records.folder}; mend it and run the same "
                "again.",
                code="script-failed",
            )
    file = records.folder / "hf_ft_forgetting.png"
    if file.is_file():
        console.print(f"what was learned and forgotten: {file}", highlight=False)
    models = [{"name": stage.name, "model": str(records.model_of(stage.name))} for stage in stages]
    return {"folder": str(records.folder), "stages": models, "picture": str(file) if file.is_file() else None}


def _ended(command: Sequence[str], *, as_json: bool = False) -> int:
    """The exit status of a process that is told to end (SIGTERM) when this one is."""
    out = sys.stderr if as_json else None
    with subprocess.Popen(command, env={**os.environ, RESUME_VARIABLE: "1"}, stdout=out) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)


def _finished(records: StageRecords) -> Sequence[str]:
    return [stage.name for stage in records.finished()]
