"""The steps by which a program mends what was refused: what `PluginError.mend` holds, one function each.

A step is a plain dict: `do`, and what it acts on. A refusal's list holds alternatives, the best first: one of them is
enough. Where several steps belong together, they are one alternative, `all_of`. The list is empty where only a human
can decide.

    {"do": "set-option", "technique": "adaptive-lr", "option": "patience", "value": 1}

"The run" is what a program has in hand: the techniques that it names, the options of `hf-ft`, the arguments of the
script, its model and its data. `hf-ft explain --json` and docs/errors/README.md list the steps with these docstrings.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Step = dict[str, Any]
MOST_ROWS = 1000

__all__ = [
    "add_flag",
    "add_technique",
    "all_of",
    "drop_rows",
    "encode_column",
    "install",
    "launch_with",
    "name_once",
    "remove_column",
    "remove_option",
    "remove_technique",
    "rename_argument",
    "rename_column",
    "rename_option",
    "rename_technique",
    "set_argument",
    "set_model_argument",
    "set_option",
    "set_variable",
    "use_checkpoint",
]


# ---- techniques and their options ----


def set_option(technique: str, option: str, value: Any) -> Step:
    """Give this option of a named technique this value, in place of the one that it has; null is `none`."""
    return {"do": "set-option", "technique": technique, "option": option, "value": _plain(value)}


def remove_option(technique: str, option: str) -> Step:
    """Leave this option of a named technique out, so that it has its default."""
    return {"do": "remove-option", "technique": technique, "option": option}


def rename_option(technique: str, from_: str, to: str) -> Step:
    """Write `to` for the option `from` of a named technique; its value stays."""
    return {"do": "rename-option", "technique": technique, "from": from_, "to": to}


def add_technique(technique: str, options: Mapping[str, Any] | None = None) -> Step:
    """Name this technique, with these options, behind the others; one that is named already gets these options."""
    return {"do": "add-technique", "technique": technique, "options": _plain(options or {})}


def rename_technique(from_: str, to: str) -> Step:
    """Write `to` for the technique `from`; its options stay."""
    return {"do": "rename-technique", "from": from_, "to": to}


def remove_technique(technique: str) -> Step:
    """Leave this technique out."""
    return {"do": "remove-technique", "technique": technique}


def name_once(technique: str, options: Mapping[str, Any]) -> Step:
    """Name this technique once, with these options, where it is named several times."""
    return {"do": "name-once", "technique": technique, "options": _plain(options)}


# ---- the command line, and what stands around it ----


def set_argument(name: str, value: Any) -> Step:
    """Give this field of the script's `TrainingArguments` (or its subclass; of `hf-ft check` its --arg) this value;
    null leaves it unset.
    """
    return {"do": "set-argument", "name": name, "value": _plain(value)}


def rename_argument(from_: str, to: str) -> Step:
    """Write `to` for the field `from` of `TrainingArguments`; its value stays."""
    return {"do": "rename-argument", "from": from_, "to": to}


def add_flag(flag: str, value: Any = None) -> Step:
    """Add this option to the `hf-ft` command, before the script, or change its value; null: it takes none."""
    return {"do": "add-flag", "flag": flag, "value": value}


def set_variable(name: str, value: str) -> Step:
    """Set this environment variable; an empty text unsets it."""
    return {"do": "set-variable", "name": name, "value": value}


def launch_with(*command: str) -> Step:
    """Start the run by this launcher: its words, then `-m hf_ft_plugins run ...`, or the script."""
    return {"do": "launch-with", "command": list(command)}


def install(*packages: str) -> Step:
    """Install these packages, as pip takes them, into the environment that runs `hf-ft`."""
    return {"do": "install", "packages": list(packages)}


def use_checkpoint(path: str | None) -> Step:
    """Resume from this folder; null: begin anew, from no checkpoint."""
    return {"do": "use-checkpoint", "path": path}


# ---- the model and the data ----


def set_model_argument(name: str, value: Any) -> Step:
    """Load the model with this argument of `from_pretrained`."""
    return {"do": "set-model-argument", "name": name, "value": _plain(value)}


def drop_rows(split: str, rows: Iterable[int]) -> Step:
    """Leave these rows, counted from 0, out of a split of the data (`train` or an evaluation set's name).

    At most the first 1,000 of them: the next refusal names the next.
    """
    return {"do": "drop-rows", "split": split, "rows": [int(row) for row in itertools.islice(rows, MOST_ROWS)]}


def rename_column(from_: str, to: str) -> Step:
    """Rename a column of the data: `dataset.rename_column(from, to)`."""
    return {"do": "rename-column", "from": from_, "to": to}


def remove_column(column: str) -> Step:
    """Take a column out of the data: `dataset.remove_columns(column)`."""
    return {"do": "remove-column", "column": column}


def encode_column(column: str) -> Step:
    """Number the values of a column: `dataset.class_encode_column(column)`."""
    return {"do": "encode-column", "column": column}


def all_of(*steps: Step) -> Step:
    """Take all of these steps, in this order: together they are one alternative."""
    return steps[0] if len(steps) == 1 else {"do": "all-of", "steps": list(steps)}


# ---- the vocabulary ----


def vocabulary() -> dict[str, tuple[tuple[str, ...], str]]:
    """Each step's name with its keys beside `do`, and what it says to do."""
    made: dict[str, tuple[tuple[str, ...], str]] = {}
    for name in __all__:
        function = getattr(sys.modules[__name__], name)
        keys = tuple(key.rstrip("_") for key in inspect.signature(function).parameters)
        made[name.replace("_", "-")] = keys, inspect.getdoc(function) or ""
    return made


def refuse_strangers(mend: Sequence[Any]) -> None:
    """Raise `ValueError` unless each step is of the vocabulary, with its keys and no others."""
    known = vocabulary()
    for step in mend:
        keys = known.get(step.get("do"), ((), ""))[0]
        if step.get("do") not in known or step.keys() != {"do", *keys}:
            raise ValueError(f"{step} is no step; there are {', '.join(known)}, each with its keys.")
        if step["do"] == "all-of":
            refuse_strangers(step["steps"])


def _plain(value: Any) -> Any:
    """What JSON has a form for: tuples as lists, a value of anything else as its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
