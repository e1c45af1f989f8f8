"""The facts of installed techniques, without importing third parties' each time: these may import torch, or worse.

Our own are imported: they import nothing heavy. What a third party's has told is kept in a JSON file of the user's
cache folder, and holds until something is installed, upgraded or removed, or a file of its own changes. One that cannot
be imported is tried anew each time, since what it lacks may be there now. `HF_FT_PLUGINS_FORGET=1` keeps nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import registry
from ..host.manifest import write_atomically
from .plugin_facts import Facts, read_facts

FORGET_VARIABLE = "HF_FT_PLUGINS_FORGET"


def facts_of(offers: Iterable[registry.Offer], *, importing: bool = True) -> list[Facts | None]:
    """The facts of each offer, None where they would take an import of a third party's and `importing` is False."""
    memory = _Memory()
    found = [
        read_facts(offer) if offer.distribution == registry.DISTRIBUTION else memory.facts(offer, importing)
        for offer in offers
    ]
    memory.save()
    return found


class _Memory:
    """What third parties' techniques have told, in this environment."""

    def __init__(self) -> None:
        self.off = registry.is_on(FORGET_VARIABLE)
        self.new: dict[str, Any] = {}

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        return {} if self.off else _read()

    @functools.cached_property
    def environment(self) -> str:
        return _environment()

    def facts(self, offer: registry.Offer, importing: bool) -> Facts | None:
        place, mark = f"{offer.distribution} {offer.name}", _mark(offer, self.environment)
        known = self.known.get(place)
        if mark and isinstance(known, dict) and known.get("mark") == mark:
            return Facts(known["row"], known["choices"], lambda: [(name, text) for name, text in known["commands"]])
        if not importing:
            return None
        facts = read_facts(offer)
        if mark and "error" not in facts.row:
            self.new[place] = {"mark": mark, **vars(facts), "commands": facts.commands()}
        return facts

    def save(self) -> None:
        if self.new and not self.off:
            _write(self.known | self.new)


def _mark(offer: registry.Offer, environment: str) -> str:
    """What changes when the offer, its package's files or the installed distributions do; empty where nobody knows."""
    try:
        spec = importlib.util.find_spec(offer.entry.module.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    files += [Path(spec.origin)] if spec.origin and Path(spec.origin) not in files else []
    stamps = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()]
    return _digest([environment, offer.version, offer.entry.value, stamps])


def _environment() -> str:
    """Of which Python, and what is installed: distributions with their versions, and what stands beside them."""
    names: list[str] = []
    for folder in sys.path:
        # Not each entry of the search path is a folder.
        with contextlib.suppress(OSError):
            there = set(os.listdir(folder or ".")) - {"__pycache__"}
            if any(name.endswith((".dist-info", ".egg-info")) for name in there):
                names += sorted(there)
    return _digest([sys.version, version(registry.DISTRIBUTION), names])


def _file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hf-ft-plugins" / f"{_digest(sys.prefix)[:16]}.json"


def _read() -> dict[str, Any]:
    # A file that is missing, damaged or not ours holds nothing that is known.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        content = json.loads(_file().read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _write(content: dict[str, Any]) -> None:
    # Where there is no folder to write to, each command imports what it tells of.
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content, default=str))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
