"""What happens to the Trainers that a script builds: each becomes a host (`host/trainer.py`) with the techniques.

It imports nothing heavy itself: it acts when the script imports `transformers.trainer`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import types
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..technique import Technique

TRAINER_MODULE = "transformers.trainer"
ARGUMENTS_MODULE = "transformers.training_args"


class Watcher(Protocol):
    """Acts in the script's process before the script is run, and, pickled, in those that multiprocessing spawns."""

    def start(self) -> None: ...


def _new_tally() -> str:
    return str(Path(tempfile.gettempdir()) / f"hf-ft-{uuid.uuid4().hex}")


@dataclass
class Hosting:
    """What happens to the Trainers that the script builds, and how many there were.

    Attributes:
        process: the id of the script's own process; what others build is written down for it.
        tally: the file where they write it: a line for each Trainer, "1" where it became a host and "0" where not.
    """

    techniques: tuple[Technique, ...]
    only: str | None = None
    built: int = 0
    hosted: int = 0
    process: int = field(default_factory=os.getpid)
    tally: str = field(default_factory=_new_tally)

    def install(self, trainer_module: types.ModuleType) -> None:
        """Make `Trainer(...)`, and every subclass of it, build a host of its class."""
        from ..host.trainer import with_plugins

        trainer_class = trainer_module.Trainer
        hosts: dict[type, type] = {}

        def new(cls: type, *args: Any, **kwargs: Any) -> Any:
            if cls in hosts.values():
                return object.__new__(cls)
            takes = self._takes(cls)
            self._count(takes)
            if not takes:
                return object.__new__(cls)
            if cls not in hosts:
                hosts[cls] = with_plugins(cls, *self.techniques)
            return object.__new__(hosts[cls])

        trainer_class.__new__ = new

    def count_other_processes(self) -> None:
        """Add what the processes that the script started have built."""
        tally = Path(self.tally)
        lines = tally.read_text(encoding="utf-8").split() if tally.is_file() else []
        self.built += len(lines)
        self.hosted += lines.count("1")
        tally.unlink(missing_ok=True)

    def _count(self, hosted: bool) -> None:
        if os.getpid() == self.process:
            self.built += 1
            self.hosted += hosted
            return
        with open(self.tally, "a", encoding="utf-8") as file:
            file.write(f"{int(hosted)}\n")

    def _takes(self, cls: type) -> bool:
        return bool(self.techniques) and (self.only is None or self.only in [base.__name__ for base in cls.__mro__])


@dataclass
class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `action(module)` once, right after the module `name` has been imported by whoever wants it."""

    name: str
    action: Callable[[types.ModuleType], None]

    def watch(self) -> None:
        if self.name in sys.modules:
            self.action(sys.modules[self.name])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            self.action(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
