"""What the host adds to a checkpoint: the state of the techniques' parts, and a manifest that makes it whole.

Trainer writes `checkpoint-N` in place and later takes the highest number unchecked, so a run killed inside a save
resumes from half a checkpoint. Here the manifest (names, sizes, SHA-256 digests) is written last, flushed and
replaced in one move; before anything is written, it says that the checkpoint is unfinished. A checkpoint whose
manifest does not hold is passed over.

Nothing here loads pickles: states are JSON, tensors are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, PluginError
from .technique import Technique

STATE_FILE = "hf_ft_plugins.json"
TENSORS_FILE = "hf_ft_plugins.safetensors"
MANIFEST_FILE = "hf_ft_manifest.json"
LAST_STOCK_FILE = "trainer_state.json"
ALLOW_CHANGED_VARIABLE = "HF_FT_ALLOW_CHANGED_PLUGINS"
FORMAT = 1
TENSOR_MARK = "__tensor__"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


def describe(techniques: Iterable[Technique]) -> list[dict[str, Any]]:
    """Name, origin and options of each technique, as they stand in the state file."""
    from .registry import origin

    described = []
    for technique in techniques:
        distribution, version = origin(technique)
        described.append(
            {
                "name": technique.name,
                "distribution": distribution,
                "version": version,
                "options": technique.options(),
            }
        )
    return described


def write_state(folder: Path, techniques: Iterable[Technique], states: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the parts' `states` (nested dicts of JSON values and torch tensors) into a checkpoint folder.

    Raises:
        PluginError: a state holds something that is neither; the text says which part and where. Nothing is written.
    """
    tensors: dict[str, Any] = {}
    plain = {key: _without_tensors(state, key, tensors) for key, state in states.items()}
    content = {"format": FORMAT, "techniques": describe(techniques), "states": plain}
    text = json.dumps(content, indent=1, allow_nan=True)
    if tensors:
        from safetensors.torch import save_file

        save_file(tensors, folder / TENSORS_FILE)
    else:
        (folder / TENSORS_FILE).unlink(missing_ok=True)
    _write_atomically(folder / STATE_FILE, text)


def read_state(folder: Path) -> dict[str, Any] | None:
    """What `write_state` wrote, tensors put back (on CPU); None where the checkpoint has no state file."""
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: its format is {content.get('format')!r} and this version reads {FORMAT}. "
            "Resume with the version of hf-ft-plugins that wrote it."
        )
    tensors = {}
    if (folder / TENSORS_FILE).is_file():
        from safetensors.torch import load_file

        tensors = load_file(folder / TENSORS_FILE)
    content["states"] = _with_tensors(content["states"], tensors)
    return content


def _without_tensors(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PluginError(
                    f"{path}: the state has the key {key!r}; JSON keeps only text keys. Make it a string."
                )
        return {key: _without_tensors(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_tensors(item, f"{path}[{index}]", tensors) for index, item in enumerate(value)]
    import torch

    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {TENSOR_MARK: path}
    raise PluginError(
        f"{path}: the state holds a {type(value).__name__}, which a checkpoint cannot keep. "
        "Return numbers, text, lists, dicts or torch tensors from state_dict()."
    )


def _with_tensors(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {TENSOR_MARK}:
            return tensors[value[TENSOR_MARK]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def allow_changed_by_environment() -> bool:
    """Whether `HF_FT_ALLOW_CHANGED_PLUGINS` (what `--allow-changed-plugins` sets) is on."""
    return os.environ.get(ALLOW_CHANGED_VARIABLE, "").lower() in ("1", "true", "yes", "on")


def refuse_changes(folder: Path, content: Mapping[str, Any] | None, techniques: Iterable[Technique]) -> None:
    """Raise `CheckpointError` with a diff unless the checkpoint was made with the same techniques and options.

    The order in which techniques were listed does not count, nor does a plugin's version.
    """
    stored = {item["name"]: item["options"] for item in (content or {}).get("techniques", [])}
    # Through JSON, so that a tuple here equals the list that it became in the file.
    present = {item.name: json.loads(json.dumps(item.options())) for item in techniques}
    lines = [f"- {name} (only in the checkpoint)" for name in stored if name not in present]
    lines += [f"+ {name} (only in this run)" for name in present if name not in stored]
    for name in stored.keys() & present.keys():
        for option in sorted(stored[name].keys() | present[name].keys()):
            was, now = stored[name].get(option, "(unset)"), present[name].get(option, "(unset)")
            if was != now:
                lines.append(f"! {name}: {option} was {was}, is {now}")
    if lines:
        raise CheckpointError(
            f"{folder} was made with other techniques than this run:\n  "
            + "\n  ".join(lines)
            + "\nUse the same techniques and options, start a new output_dir, or say --allow-changed-plugins "
            f"({ALLOW_CHANGED_VARIABLE}=1) to go on: parts without a stored state then start afresh."
        )


def begin_manifest(folder: Path) -> None:
    """Declare a checkpoint unfinished, before anything in it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(folder, None)


def write_manifest(folder: Path) -> None:
    """Declare a checkpoint whole: flush every file, then write names, sizes and digests in one move."""
    _write_manifest(folder, {file.relative_to(folder).as_posix(): _flushed(file) for file in _files(folder)})


def refresh_manifest(folder: Path) -> None:
    """Take in what was added, changed or removed since `write_manifest`; other files are not read again."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return
    written = manifest.stat().st_mtime_ns
    known = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    files = {}
    for file in _files(folder):
        name, stat = file.relative_to(folder).as_posix(), file.stat()
        same = name in known and stat.st_size == known[name]["size"] and stat.st_mtime_ns < written
        files[name] = known[name] if same else _flushed(file)
    if files != known:
        _write_manifest(folder, files)


def _flushed(file: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        os.fsync(handle.fileno())
    return {"size": file.stat().st_size, "sha256": digest}


def _write_manifest(folder: Path, files: dict[str, Any] | None) -> None:
    _write_atomically(folder / MANIFEST_FILE, json.dumps({"format": FORMAT, "files": files}, indent=1))


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed, or None when every file is as it was written.

    One without a manifest is a stock Trainer's; it counts as whole once its last file is there.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        if (folder / STATE_FILE).is_file():
            return "it has no manifest"
        return None if (folder / LAST_STOCK_FILE).is_file() else f"there is no {LAST_STOCK_FILE} in it"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    if files is None:
        return "its save was cut off"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
    for name, expected in files.items():
        with (folder / name).open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} has changed since it was written"
    return None


def newest_whole_checkpoint(output_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint whose manifest holds, and the newer ones that were passed over, each with the reason."""
    numbered = []
    for folder in output_dir.iterdir() if output_dir.is_dir() else []:
        match = CHECKPOINT_NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            numbered.append((int(match[1]), folder))
    passed_over: list[tuple[Path, str]] = []
    for _, folder in sorted(numbered, reverse=True):
        reason = damage(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append((folder, reason))
    return None, passed_over


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint so that Trainer's rotation, which takes the highest number for the newest, cannot
    keep it in place of a whole one. Its files stay readable."""
    target = folder.with_name(f"damaged-{folder.name}")
    count = 1
    while target.exists():
        count += 1
        target = folder.with_name(f"damaged-{folder.name}.{count}")
    folder.rename(target)
    return target


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.name != MANIFEST_FILE and not file.name.endswith(".tmp")
    )


def _write_atomically(file: Path, text: str) -> None:
    scratch = file.with_name(file.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    scratch.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
