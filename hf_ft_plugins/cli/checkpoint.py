"""`hf-ft checkpoint sign`: a checkpoint that somebody changed on purpose is taken for whole, as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import CheckpointError
from ..host.manifest import (
    CUT_OFF,
    LAST_STOCK_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    TENSORS_FILE,
    UNFINISHED_MARKER,
    changes,
    files_of,
    read_manifest,
    write_manifest,
)
from ..host.state import read_state
from .options import AsJson, Debug

app = typer.Typer(help="Checkpoints of a run.", no_args_is_help=True)
console = Console()


@app.callback()
def checkpoint() -> None:
    """Checkpoints of a run."""


@app.command("sign")
def sign_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="output_dir/checkpoint-N, or a finished stage's folder.")
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take a checkpoint that you changed on purpose for whole, as it is; the state of its techniques stays."""
    changed = sign(folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "changed": changed}))
        return
    for line in changed:
        console.print(line, markup=False, highlight=False)
    console.print(f"{folder} is signed: {len(changed)} changes", markup=False, highlight=False)


def sign(folder: Path) -> list[str]:
    """Write the manifest of a checkpoint anew: weights in other shards, a file taken out, edited or added.

    Returns:
        What was not as the manifest said, and what is new.

    Raises:
        CheckpointError: its save was never finished, it is no checkpoint, or the techniques' state is gone or cannot
            be read. Nothing is written.
    """
    is_stock = (folder / LAST_STOCK_FILE).is_file()
    no_checkpoint = CheckpointError(
        f"{folder} is no checkpoint: there is no {LAST_STOCK_FILE} in it. Name its folder.", code="checkpoint-missing"
    )
    if not is_stock and not (folder / MANIFEST_FILE).is_file():
        raise no_checkpoint
    try:
        known = read_manifest(folder)
    except CheckpointError as error:
        known, found = {}, [str(error)]
    else:
        if (folder / UNFINISHED_MARKER).is_file() or (known is None and (folder / MANIFEST_FILE).is_file()):
            raise CheckpointError(
                f"{folder} cannot be signed: {CUT_OFF}, so nobody knows what is in it. Resume from another one."
            )
        found = changes(folder, known) if known else []
    # What a finished stage has left (`sequential`) is behind a manifest, too, and never had that file.
    if not is_stock and (not known or LAST_STOCK_FILE in known):
        raise no_checkpoint
    gone = [name for name in (STATE_FILE, TENSORS_FILE) if name in (known or {}) and not (folder / name).is_file()]
    if gone:
        raise CheckpointError(
            f"{folder} cannot be signed: {' and '.join(gone)}, the state of its techniques, is not there any more. "
            "Copy it from the checkpoint that this one was made of."
        )
    read_state(folder)
    if known:
        names = (file.relative_to(folder).as_posix() for file in files_of(folder))
        found += [f"{name} is new" for name in names if name not in known]
    write_manifest(folder)
    return found
