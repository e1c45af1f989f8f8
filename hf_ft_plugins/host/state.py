"""The host's files in a checkpoint: the state of the techniques' parts, with the techniques, versions and options.

Nothing here loads pickles: states are JSON, tensors are safetensors. `manifest.py` checks that the files are as they
were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .. import mends
from ..errors import CheckpointError, PluginError
from ..registry import is_on, origin
from ..technique import Technique
from .manifest import STATE_FILE, TENSORS_FILE, read_json, write_atomically

ALLOW_CHANGED_VARIABLE = "HF_FT_ALLOW_CHANGED_PLUGINS"
RESUME_VARIABLE = "HF_FT_RESUME"
FORMAT = 1
TENSOR_MARK = "__tensor__"
ANOTHER = "Resume from another checkpoint, or with resume_from_checkpoint=True, which takes the newest whole one."


def describe(techniques: Iterable[Technique]) -> list[dict[str, Any]]:
    """Name, origin and options of each technique, as they stand in the state file."""
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
        PluginError: a state holds a value of another type; the message names the part and the place. Nothing is
            written.
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
    write_atomically(folder / STATE_FILE, text)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The states that `write_state` wrote, with their tensors on the CPU; None if the checkpoint has no state file.

    Raises:
        CheckpointError: the file is not of that form, or another version's.
    """
    file = folder / STATE_FILE
    if not file.is_file():
        return None
    try:
        content = read_json(file)
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error}). {ANOTHER}") from error
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise CheckpointError(
            f"{file}: its format is {content['format']!r} and this version reads {FORMAT}. "
            "Resume with the version of hf-ft-plugins that wrote it.",
            code="checkpoint-other-run",
        )
    wrong = _what_is_wrong(content)
    if wrong is not None:
        raise CheckpointError(f"{file} cannot be read: {wrong}. {ANOTHER}")
    content["states"] = _with_tensors(content["states"], _read_tensors(folder / TENSORS_FILE))
    return content


def _what_is_wrong(content: Any) -> str | None:
    if not isinstance(content, dict) or content.keys() != {"format", "techniques", "states"}:
        return "it must have the keys format, techniques and states, and no others"
    techniques, states = content["techniques"], content["states"]
    if not isinstance(techniques, list):
        return "its techniques must be a list"
    for item in techniques:
        if not isinstance(item, dict) or item.keys() != {"name", "distribution", "version", "options"}:
            return "each of its techniques must have the keys name, distribution, version and options, and no others"
        if not isinstance(item["name"], str) or not isinstance(item["options"], dict):
            return "each of its techniques must have a text for its name and a mapping for its options"
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        return "its states must be mappings"
    return None


def _read_tensors(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). {ANOTHER}") from error


def _without_tensors(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise PluginError(
                    f"{path}: the state has the key {key!r}; JSON keeps only text keys. Make it a string.",
                    code="plugin-broken",
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
        "Return numbers, text, lists, dicts or torch tensors from state_dict().",
        code="plugin-broken",
    )


def _with_tensors(value: Any, tensors: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if set(value) == {TENSOR_MARK}:
            name = value[TENSOR_MARK]
            if not isinstance(name, str) or name not in tensors:
                raise CheckpointError(f"the tensor {name} is not in {TENSORS_FILE}. {ANOTHER}")
            return tensors[name]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def allow_changed_by_environment() -> bool:
    """Whether `HF_FT_ALLOW_CHANGED_PLUGINS` (what `--allow-changed-plugins` sets) is on."""
    return is_on(ALLOW_CHANGED_VARIABLE)


def refuse_changes(folder: Path, content: Mapping[str, Any] | None, techniques: Sequence[Technique]) -> None:
    """Raise `CheckpointError` with a diff unless the checkpoint was made with the same techniques and options.

    The order in which techniques were listed does not count, nor does a plugin's version, nor an option that has come
    since and is as by default.
    """
    stored, present = _options_then(content, techniques), _options_now(techniques)
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
            f"({ALLOW_CHANGED_VARIABLE}=1) to go on: parts without a stored state then start afresh.",
            code="checkpoint-other-run",
            mend=[*back_to(content, techniques), mends.add_flag("--allow-changed-plugins")],
        )


def back_to(content: Mapping[str, Any] | None, techniques: Sequence[Technique]) -> list[mends.Step]:
    """The mend that gives a run the techniques and options that a checkpoint was made with."""
    stored, present = _options_then(content, techniques), _options_now(techniques)
    steps = [mends.remove_technique(name) for name in present if name not in stored]
    steps += [mends.add_technique(name, options) for name, options in stored.items() if name not in present]
    for name in stored.keys() & present.keys():
        was, now = stored[name], present[name]
        steps += [mends.set_option(name, option, value) for option, value in was.items() if now.get(option) != value]
        steps += [mends.remove_option(name, option) for option in now if option not in was]
    return [mends.all_of(*steps)] if steps else []


def _options_then(content: Mapping[str, Any] | None, techniques: Sequence[Technique]) -> dict[str, dict[str, Any]]:
    """By technique. An option that has come since counts as its default: it was made without."""
    defaults = {
        item.name: _as_json({field.name: field.default for field in fields(item) if field.default is not MISSING})
        for item in techniques
    }
    stored = {item["name"]: item["options"] for item in (content or {}).get("techniques", [])}
    return {name: defaults.get(name, {}) | options for name, options in stored.items()}


def _options_now(techniques: Sequence[Technique]) -> dict[str, dict[str, Any]]:
    return {item.name: _as_json(item.options()) for item in techniques}


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """A tuple here is to equal the list that it became in the file."""
    plain: dict[str, Any] = json.loads(json.dumps(options))
    return plain
