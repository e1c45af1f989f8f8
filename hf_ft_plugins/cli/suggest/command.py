"""`hf-ft suggest`, from the script to what is printed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from ...errors import PluginError
from ..hosting import Hosting
from ..run import run as run_script
from .inspection import Inspection, Stopped


def suggest(
    script: str,
    arguments: Sequence[str],
    *,
    as_module: bool = False,
    budget: float | None = None,
    as_json: bool = False,
    console: Console,
) -> int:
    """Run a script until its first `train()`, and print what would help it.

    Args:
        budget: GiB that there are, instead of the device's memory.

    Returns:
        The exit status: the script's own where it ends with one.

    Raises:
        PluginError: it trains nothing, or its data or a technique's suggestion are at fault.
    """
    if budget is not None and not budget > 0:
        raise PluginError(
            f"suggest: --budget {budget} is no amount of memory. Use GiB, more than 0.", code="command-line"
        )
    with tempfile.TemporaryDirectory(prefix="hf-ft-suggest-") as folder:
        inspection = Inspection(str(Path(folder).resolve()), budget)
        hook = sys.excepthook
        with _printed_to_stderr() if as_json else contextlib.nullcontext():
            try:
                status = run_script(Hosting(()), script, arguments, as_module=as_module, watch=inspection)
            except Stopped:
                status = 0
            finally:
                # Set by `run_script` to show what ends the process, and here nothing does.
                sys.excepthook = hook
    if inspection.error is not None:
        raise inspection.error
    if status or inspection.report is None:
        if not status and not {"-h", "--help"} & set(arguments):
            raise PluginError(_trained_nothing(script, inspection.built), code="script-failed")
        return status
    if os.environ.get("RANK", "0") == "0":
        # It imports torch, which the script may want to do by itself.
        from .showing import as_dict, show

        command = [*(["-m"] if as_module else []), script, *arguments]
        if as_json:
            print(json.dumps(as_dict(inspection.report, command), indent=1, default=str))
        else:
            show(inspection.report, command, console)
    return 0


@contextlib.contextmanager
def _printed_to_stderr() -> Iterator[None]:
    """What the script prints, its own processes included, goes to stderr: stdout is for the JSON alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _trained_nothing(script: str, built: int) -> str:
    did = f"built {built} trainer{'s' if built > 1 else ''} and called train() on none" if built else "built no Trainer"
    return (
        f"suggest: {script} ended, but it {did}, so there is nothing to look at. Give it the arguments with which it "
        "trains, as --do_train; or name a script that trains with a transformers.Trainer in its own process."
    )
