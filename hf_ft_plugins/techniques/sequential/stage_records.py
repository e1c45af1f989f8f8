"""What stages leave in the folder of their sequence, and the one file that says which of them are finished.

    folder/
      hf_ft_stages.json     the finished stages, in order, and what was measured after each; replaced atomically
      STAGE/                what a finished stage keeps, behind a manifest of digests (`host/manifest.py`)
        model/              where the next stage starts; adapters are merged into it
        adapter/            an adapter's own weights
        replay/             rows of its training data
        evaluation/NAME/    rows of its evaluation data

A stage is finished when the file lists it, and it is listed when everything else of it is on the disk: whatever ends a
stage early leaves those before as they were.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...errors import PluginError
from ...host import manifest
from .settings import NAME

STAGES_FILE = "hf_ft_stages.json"
FORMAT = 1
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Of the sequence's own files.
RESERVED = ("runs", "upcoming")

# Of an evaluation set: what was measured on it, by the metric's name.
Measured = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """One stage in `hf_ft_stages.json`.

    Attributes:
        name: of the stage.
        steps: optimizer steps that it took.
        options: of the technique.
        model: see `model_identity.identity_of`.
        before: what was measured when it began, of sets that the stage before had not measured.
        after: what was measured when it ended.
    """

    name: str
    steps: int
    options: dict[str, Any]
    model: dict[str, Any]
    before: Measured = field(default_factory=dict)
    after: Measured = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecords:
    """The folder of one sequence of stages."""

    folder: Path

    def finished(self) -> list[FinishedStage]:
        """The finished stages, the earliest first.

        Raises:
            PluginError: the file is not of its form, or a stage's files are not as they were written.
        """
        file = self.folder / STAGES_FILE
        if not file.is_file():
            return []
        try:
            content = manifest.read_json(file)
        except (ValueError, RecursionError, OSError) as error:
            raise self._unreadable(f"{type(error).__name__}: {error}") from error
        if not isinstance(content, dict) or set(content) != {"format", "stages"} or content["format"] != FORMAT:
            raise self._unreadable(f"it must have the keys format, which is {FORMAT}, and stages, and no others")
        stages = []
        known = {one.name for one in fields(FinishedStage)}
        for entry in content["stages"]:
            if not isinstance(entry, dict) or set(entry) != known:
                raise self._unreadable(f"each stage must have the keys {', '.join(sorted(known))}, and no others")
            stages.append(FinishedStage(**entry))
        return stages

    def refuse_finished(self, stage: str, finished: Sequence[FinishedStage]) -> None:
        """Raise `PluginError` where a stage has ended: what it has left is not to be written over."""
        if any(one.name == stage for one in finished):
            raise PluginError(
                f"{NAME}: stage={stage} is finished in folder={self.folder}. Name another stage, or another folder; to "
                f"train it again, remove {self.of(stage)}, its entry in {STAGES_FILE}, and those of later stages.",
                code="stages",
            )

    def refuse_damage(self, stages: Sequence[FinishedStage]) -> None:
        """Raise `PluginError` where files of a finished stage are not as they were written."""
        for stage in stages:
            reason = manifest.damage(self.of(stage.name))
            if reason is not None:
                raise PluginError(
                    f"{NAME}: stage {stage.name} in {self.folder} is finished, and {reason}. Put its files back; if "
                    f"they were changed on purpose: hf-ft checkpoint sign {self.of(stage.name)}",
                    code="checkpoint-damaged",
                )

    def of(self, stage: str) -> Path:
        """The folder of what a stage keeps."""
        return self.folder / stage

    def model_of(self, stage: str) -> Path:
        """Where the model is that a stage ended with."""
        return self.of(stage) / "model"

    def begin(self, stage: str) -> None:
        """Make the folder for what a stage keeps, empty; nothing in it counts yet."""
        folder = self.of(stage)
        if folder.is_dir():
            # Left by an end of this stage that was cut off.
            shutil.rmtree(folder)
        manifest.begin_manifest(folder)

    def finish(self, stage: FinishedStage) -> None:
        """Declare what a stage keeps whole, and list it as finished, behind those before it."""
        manifest.write_manifest(self.of(stage.name))
        stages = [asdict(one) for one in (*self.finished(), stage)]
        text = json.dumps({"format": FORMAT, "stages": stages}, indent=1)
        manifest.write_atomically(self.folder / STAGES_FILE, text)

    def _unreadable(self, why: str) -> PluginError:
        return PluginError(
            f"{NAME}: {self.folder / STAGES_FILE} cannot be read: {why}. Put back the file as it was, or begin with "
            "another folder=...",
            code="file-unusable",
        )
