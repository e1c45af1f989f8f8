"""The processes that a script starts through multiprocessing get the techniques, too, whether forked or spawned.

A forked process is a copy and includes the hosts. A spawned one (or one of a fork server) starts afresh;
multiprocessing sends it data before it imports the script, and our object among them acts when it is unpickled.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

from .. import registry
from .hosting import TRAINER_MODULE, AfterImport, Hosting, Watcher

SPAWN_MODULE = "multiprocessing.spawn"


@dataclass(frozen=True)
class Handed:
    """What a spawned process is to do before the script is imported there; pickled as a call of `arrived`."""

    hosting: Hosting
    watch: Watcher | None

    def __reduce__(self) -> tuple[Any, ...]:
        # By name and options: a third party's module may not be there to be imported yet.
        techniques = [{technique.name: technique.changed_options()} for technique in self.hosting.techniques]
        return arrived, (techniques, self.hosting.only, self.hosting.process, self.hosting.tally, self.watch)


def hand_on(hosting: Hosting, watch: Watcher | None) -> None:
    """Let every process that multiprocessing spawns from here on host its Trainers as this one does."""

    def install(module: types.ModuleType) -> None:
        prepared = module.get_preparation_data

        def get_preparation_data(name: str) -> dict[str, Any]:
            return {**prepared(name), "hf_ft_plugins": Handed(hosting, watch)}

        module.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]

    AfterImport(SPAWN_MODULE, install).watch()


def arrived(
    techniques: list[dict[str, Any]], only: str | None, process: int, tally: str, watch: Watcher | None
) -> None:
    """Do in a spawned process what `run` did in the script's own."""

    def install(module: types.ModuleType) -> None:
        resolved = tuple(registry.resolve(technique) for technique in techniques)
        hosting = Hosting(resolved, only, process=process, tally=tally)
        hand_on(hosting, watch)
        hosting.install(module)

    if watch is not None:
        watch.start()
    AfterImport(TRAINER_MODULE, install).watch()
