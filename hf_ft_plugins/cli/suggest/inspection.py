"""Inside the process of a script: it runs until its first `train()`, is looked at there, and goes no further.

What would leave a trace is kept away: every `output_dir` is moved into a folder that is removed at the end, since
`Trainer.__init__` makes it, and no repository is made on the hub.
"""

from __future__ import annotations

import functools
import os
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import PluginError
from ...suggest.origins import Loaded, watch_loading
from ..hosting import ARGUMENTS_MODULE, TRAINER_MODULE, AfterImport

if TYPE_CHECKING:
    from ...suggest.report import Report

MODELS_MODULE = "transformers.modeling_utils"


class Stopped(BaseException):
    """The script is stopped before its first training step. No `Exception`, so that the script does not catch it."""


@dataclass
class Inspection:
    """How one script is looked at.

    Attributes:
        folder: everything that the script writes into an output folder goes below it.
        budget: GiB that there are, instead of the device's memory.
        process: the id of the script's own process.
        built: how many trainers it has built.
        report, error: what came of it, one of them at most; the error is raised when the script has ended, as the
            script may catch it.
    """

    folder: str
    budget: float | None = None
    process: int = field(default_factory=os.getpid)
    built: int = 0
    report: Report | None = None
    error: Exception | None = None

    def start(self) -> None:
        """Act on transformers' modules once the script has imported them."""
        loaded = Loaded()
        AfterImport(MODELS_MODULE, lambda module: watch_loading(module, loaded)).watch()
        AfterImport(ARGUMENTS_MODULE, self._watch_arguments).watch()
        AfterImport(TRAINER_MODULE, lambda module: self._watch_trainers(module, loaded)).watch()

    def divert(self, args: Any) -> None:
        """Move `output_dir` below `folder`."""
        # TRL makes its arguments from finished ones, which then come here a second time.
        if args.output_dir and not Path(args.output_dir).is_relative_to(self.folder):
            args.output_dir = str(Path(self.folder, "output", Path(args.output_dir).name))

    def _watch_arguments(self, module: types.ModuleType) -> None:
        arguments = module.TrainingArguments
        prepare = arguments.__post_init__

        def __post_init__(args: Any) -> None:
            prepare(args)
            self.divert(args)

        arguments.__post_init__ = __post_init__

    def _watch_trainers(self, module: types.ModuleType, loaded: Loaded) -> None:
        cls = module.Trainer
        made, saves = cls.__init__, cls.save_model

        @functools.wraps(made)
        def __init__(trainer: Any, *args: Any, **kwargs: Any) -> None:
            self.built += 1
            # The script may have set it since the arguments were made.
            for given in (*args, *kwargs.values()):
                if isinstance(getattr(given, "output_dir", None), str):
                    self.divert(given)
            made(trainer, *args, **kwargs)

        def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.look_at(trainer, loaded)
            raise Stopped

        def save_model(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            # In a `finally`, or after a bare `except`, of a script that has been stopped.
            if self.report is not None or self.error is not None:
                raise Stopped
            return saves(trainer, *args, **kwargs)

        cls.__init__, cls.train, cls.save_model = __init__, train, save_model
        cls.init_hf_repo = lambda trainer, *args, **kwargs: None

    def look_at(self, trainer: Any, loaded: Loaded) -> None:
        """Make the report, of the first trainer that is to train.

        Raises:
            PluginError: this is another process than the script's own.
        """
        from ...host.surface_check import check_surface
        from ...suggest.facts import facts_of
        from ...suggest.report import report_on

        if os.getpid() != self.process:
            raise PluginError(
                "suggest: the script trains in a process that it starts, where it was not looked at. Let it train in "
                "its own: one process, and no launcher within the script.",
                code="script-failed",
            )
        if self.report is not None or self.error is not None:
            return
        try:
            check_surface(["cli", "suggest"])
            self.report = report_on(facts_of(trainer, loaded, self.budget))
        except Exception as error:
            self.error = error
