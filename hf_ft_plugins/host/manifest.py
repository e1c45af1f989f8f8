"""The manifest of a checkpoint: which files make it whole, and whether they still do.

Trainer writes `checkpoint-N` in place, and resumes from the highest number unchecked; a run killed during a save would
resume from an incomplete checkpoint. Therefore a manifest (names, sizes, SHA-256 digests) marks a checkpoint as
unfinished before its first file is written, and is replaced atomically, after a flush, when its last one is. On resume
a checkpoint that does not match its manifest is skipped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..progress import progress
from ..registry import is_on

logger = logging.getLogger(__name__)

MANIFEST_FILE = "hf_ft_manifest.json"
STATE_FILE = "hf_ft_plugins.json"
TENSORS_FILE = "hf_ft_plugins.safetensors"
LAST_STOCK_FILE = "trainer_state.json"
# Trainer's checkpoint at SIGTERM puts it there first, and takes it away last.
UNFINISHED_MARKER = "checkpoint-is-incomplete.txt"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
MACHINES = "machines"
# Very large checkpoints on slow disks: what was cut off is still found, and what was changed is not.
SIZES_VARIABLE = "HF_FT_MANIFEST_SIZES_ONLY"
FORMAT = 1
CUT_OFF = "its save was cut off"

Files = dict[str, dict[str, Any]]


def begin_manifest(folder: Path) -> None:
    """Mark a checkpoint as unfinished, before its first file is written."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, None)


def write_manifest(folder: Path, *, save: str | None = None, part: bool = False) -> None:
    """Mark a checkpoint as complete: flush every file, then write names, sizes and digests atomically.

    Args:
        save: of a run on several machines without a common disk, what all parts of this checkpoint are of.
        part: whether the folder lacks what another machine has.
    """
    found = progress(files_of(folder), f"{folder.name}: digests", unit="files")
    files = {file.relative_to(folder).as_posix(): _flushed(file) for file in found}
    _write(folder, files, _of_machines(save, part))


def save_of(folder: Path) -> tuple[str | None, bool]:
    """The save that a machine's checkpoint is of, None where all machines have one disk, and whether it is a part.

    Raises:
        CheckpointError: its manifest cannot be read.
    """
    of_machines = (_content(folder) or {}).get(MACHINES, {})
    return of_machines.get("save"), of_machines.get("part", False)


def withdraw_manifest(folder: Path) -> None:
    """Remove the manifest and the host's other files from a folder."""
    for name in (MANIFEST_FILE, STATE_FILE, TENSORS_FILE):
        (folder / name).unlink(missing_ok=True)


def refresh_manifest(folder: Path) -> None:
    """Update the manifest with files added, changed or removed since `write_manifest`; only those are read."""
    manifest = folder / MANIFEST_FILE
    content = _content(folder)
    if content is None or content["files"] is None:
        return
    known = content["files"]
    written = manifest.stat().st_mtime_ns
    files = {}
    for file in files_of(folder):
        name, stat = file.relative_to(folder).as_posix(), file.stat()
        same = name in known and stat.st_size == known[name]["size"] and stat.st_mtime_ns < written
        files[name] = known[name] if same else _flushed(file)
    if files != known:
        _write(folder, files, {key: value for key, value in content.items() if key == MACHINES})


def read_manifest(folder: Path) -> Files | None:
    """Size and digest of each file, by its path in the folder; None where the save was not finished, or there is no
    manifest.

    Raises:
        CheckpointError: it is no manifest.
    """
    content = _content(folder)
    return content["files"] if content else None


def _content(folder: Path) -> dict[str, Any] | None:
    file = folder / MANIFEST_FILE
    if not file.is_file():
        return None
    try:
        content = read_json(file)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
    wrong = _what_is_wrong(content)
    if wrong is not None:
        raise CheckpointError(f"its manifest cannot be read ({wrong})")
    return content


def read_json(file: Path) -> Any:
    """The content of a JSON file in which no key stands twice.

    Raises:
        ValueError: it is no JSON, or a key stands twice, of which Python would keep the last.
        RecursionError: it is nested deeper than Python goes.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
        return content

    return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)


def _what_is_wrong(content: Any) -> str | None:
    if not isinstance(content, dict) or content.keys() - {MACHINES} != {"format", "files"}:
        return f"it must have the keys format and files, perhaps {MACHINES}, and no others"
    machines = content.get(MACHINES, {"save": "", "part": False})
    if not isinstance(machines, dict) or {key: type(value) for key, value in machines.items()} != {
        "save": str,
        "part": bool,
    }:
        return f"its entry {MACHINES} must have the keys save, a text, and part, true or false"
    if content["format"] != FORMAT:
        return f"its format is {content['format']!r}, and this version reads {FORMAT}"
    files = content["files"]
    if files is None:
        return None
    if not isinstance(files, dict):
        return "its files must be a mapping"
    sizes_alone = all(isinstance(entry, dict) and entry.get("sha256", "") is None for entry in files.values())
    for name, entry in files.items():
        if not isinstance(entry, dict) or entry.keys() != {"size", "sha256"}:
            return f"its entry {name!r} must have the keys size and sha256, and no others"
        digest = entry["sha256"]
        if type(entry["size"]) is not int or not (sizes_alone or re.fullmatch("[0-9a-f]{64}", str(digest))):
            return f"its entry {name!r} has no size or no digest"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"its entry {name!r} lies outside of the checkpoint"
    return None


def damage(folder: Path, *, part: bool = False) -> str | None:
    """The reason why a checkpoint cannot be resumed, or None if every file is as it was written.

    A checkpoint without a manifest is a stock Trainer's; it counts as complete if it has the file written last.

    Args:
        part: whether one that lacks what another machine has counts as complete, too.
    """
    try:
        return _damage(folder, part)
    except OSError as error:
        return f"it cannot be read ({error})"


def _damage(folder: Path, part: bool) -> str | None:
    if (folder / UNFINISHED_MARKER).is_file():
        return CUT_OFF
    if not (folder / MANIFEST_FILE).is_file():
        if (folder / STATE_FILE).is_file():
            return "it has no manifest"
        return None if (folder / LAST_STOCK_FILE).is_file() else f"there is no {LAST_STOCK_FILE} in it"
    try:
        content = _content(folder)
    except CheckpointError as error:
        return str(error)
    files = content["files"] if content else None
    if content is None or files is None:
        return CUT_OFF
    if content.get(MACHINES, {}).get("part") and not part:
        return "it is one machine's part of a checkpoint of several; resume on all of them, or copy the first one's"
    return next(iter(changes(folder, files)), None)


def changes(folder: Path, files: Files) -> list[str]:
    """The files that differ from the manifest; digests are compared only if all sizes match."""
    found = []
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != expected["size"]:
            found.append(f"{name} has {file.stat().st_size} bytes instead of {expected['size']}")
    if not found:
        found = [
            f"{name} has changed since it was written"
            for name, expected in progress(files.items(), f"{folder.name}: comparing digests", unit="files")
            if expected["sha256"] not in (None, digest_of(folder / name))
        ]
    return found


def newest_whole_checkpoint(
    output_dir: Path, also: Callable[[Path], str | None] = lambda folder: None
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint that matches its manifest, and the newer ones that were skipped, each with the reason.

    Args:
        also: a further check of a checkpoint; it returns a reason to skip it, or None.
    """
    numbered = []
    for folder in output_dir.iterdir() if output_dir.is_dir() else []:
        match = CHECKPOINT_NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            numbered.append((int(match[1]), folder))
    passed_over: list[tuple[Path, str]] = []
    for _, folder in sorted(numbered, reverse=True):
        reason = damage(folder) or also(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append((folder, reason))
    return None, passed_over


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that Trainer's rotation, which keeps the highest numbers, cannot keep it instead
    of a complete one. Its files stay readable.

    Incomplete ones that were renamed earlier are deleted: on a full disk, every start would leave another.

    Raises:
        OSError: it cannot be renamed.
    """
    for other in folder.parent.glob("damaged-checkpoint-*"):
        if other.is_dir() and _is_unfinished(other):
            logger.warning("%s is removed: its save was never finished.", other)
            shutil.rmtree(other)
    target = folder.with_name(f"damaged-{folder.name}")
    count = 1
    while target.exists():
        count += 1
        target = folder.with_name(f"damaged-{folder.name}.{count}")
    folder.rename(target)
    return target


def _is_unfinished(folder: Path) -> bool:
    """Whether it was never complete; one that was damaged later may still be useful."""
    try:
        return (folder / MANIFEST_FILE).is_file() and read_manifest(folder) is None
    except CheckpointError:
        return False


def write_atomically(file: Path, text: str) -> None:
    """Write and flush the text under another name, then rename: after a crash, the old or the new file is complete."""
    scratch = file.with_name(file.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    rename_flushed(scratch, file)


def rename_flushed(scratch: Path, file: Path) -> None:
    """Let a flushed file take the place of `file`, and flush the folder, so that the name lasts, too."""
    scratch.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _of_machines(save: str | None, part: bool) -> dict[str, Any]:
    return {} if save is None else {MACHINES: {"save": save, "part": part}}


def _write(folder: Path, files: Files | None, more: dict[str, Any] | None = None) -> None:
    content = {"format": FORMAT, "files": files, **(more or {})}
    write_atomically(folder / MANIFEST_FILE, json.dumps(content, indent=1))


def files_of(folder: Path) -> list[Path]:
    """The files that a manifest covers: all but itself, files being written, and Trainer's marker."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.name not in (MANIFEST_FILE, UNFINISHED_MARKER) and not file.name.endswith(".tmp")
    )


def _flushed(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    sizes_alone = is_on(SIZES_VARIABLE)
    return {"size": file.stat().st_size, "sha256": None if sizes_alone else digest_of(file)}


def digest_of(file: Path) -> str:
    """A file's SHA-256 digest, in hexadecimal digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
