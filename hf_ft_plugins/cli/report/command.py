"""`hf-ft report`: read the runs, write the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import PluginError
from .page import page
from .panels import decisions_of, metrics_of
from .reading import Found, read_runs

FILE = "report.html"


def write_report(folders: list[Path], output: Path | None, title: str | None) -> tuple[Path, Found]:
    """Write the page of these folders' runs; by default into the first folder, as `report.html`.

    Raises:
        PluginError: a folder holds no run, or the page cannot be written.
    """
    found = read_runs(folders)
    file = output or folders[0] / FILE
    if file.is_dir():
        file = file / FILE
    text = page(found, title or _title(found))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PluginError(
            f"report: {file} cannot be written ({error}). Name another file with --output.", code="file-unusable"
        ) from error
    return file, found


def as_json(found: Found) -> str:
    """What the page shows, for programs: a run an object."""
    return json.dumps([_run(run) for run in found.runs], indent=1)


def _run(run: Any) -> dict[str, Any]:
    return {
        "name": run.name,
        "steps": run.training.steps,
        "status": run.about.get("status"),
        "techniques": run.about.get("techniques", []),
        "metrics": run.training.final_metrics(),
        "evaluated": metrics_of([run]),
        "decisions": [{"run": run.name} | vars(one) for one in decisions_of(run)],
        "sections": run.about.get("sections", {}),
    }


def _title(found: Found) -> str:
    names = list(dict.fromkeys(run.name for run in found.runs))
    if found.comparison is not None:
        named = [one["name"] for run in found.runs for one in run.about.get("techniques", ())]
        return f"Without and with {' + '.join(dict.fromkeys(named)) or 'techniques'}"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more runs"
