"""Run somebody's training script with techniques, without an edit: as `coverage run` or `accelerate launch` run one.

The script sees what it would see without us: `__main__`, `sys.argv`, `sys.path[0]`, its exit status, its tracebacks,
and an environment into which nothing heavy has been imported yet. When it imports `transformers.trainer` itself,
`Trainer.__new__` is replaced: it makes an instance of a host class (`host/trainer.py`) of whichever Trainer class is
built: the stock one, one of TRL's, or the script's own (`hosting.py`); also in processes that the script starts
(`children.py`).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import PluginError
from .children import hand_on
from .hosting import TRAINER_MODULE, AfterImport, Hosting, Watcher


def run(
    hosting: Hosting, target: str, arguments: Sequence[str], *, as_module: bool = False, watch: Watcher | None = None
) -> int:
    """Run a script (or, with `as_module`, a module as `python -m` does) as `__main__`.

    Args:
        watch: records the run for `hf-ft compare`, or looks at it for `hf-ft suggest`.

    Returns:
        The exit status that the script would have had; 2 when it ended well but built no Trainer to act on.

    Raises:
        PluginError: the script or module does not exist, or a technique refuses the run.
        SystemExit: as the script raised it.
    """
    hand_on(hosting, watch)
    if watch is not None:
        watch.start()
    AfterImport(TRAINER_MODULE, hosting.install).watch()
    try:
        code, main, first_path = _module_code(target) if as_module else _script_code(target)
        sys.argv = [(main.__file__ if as_module else None) or target, *arguments]
        if not sys.flags.safe_path:
            sys.path[0] = first_path
        sys.modules["__main__"] = main
        exec(code, main.__dict__)
    except PluginError:
        raise
    except SystemExit as end:
        # `sys.exit(main())` ends well too: what follows holds for it as for a script that just ends.
        if end.code not in (None, 0):
            raise
    except Exception as error:
        _show_without_our_frames(error)
        return 1
    except BaseException:
        # Raised further, so that Ctrl-C ends the process by its signal, as it ends `python script.py`.
        show = sys.excepthook
        sys.excepthook = lambda kind, error, trace: _show_without_our_frames(error, show)
        raise
    hosting.count_other_processes()
    if not hosting.hosted and hosting.techniques and not {"-h", "--help"} & set(arguments):
        built = f"built {hosting.built} trainers, none of class {hosting.only}" if hosting.built else "built no Trainer"
        raise PluginError(
            f"{target} ended, but {built}, so {', '.join(t.name for t in hosting.techniques)} had nothing to act on. "
            "Name a script that trains with a transformers.Trainer or a subclass of it, in this process or in those of "
            "multiprocessing; of a program that it starts by itself, name the script.",
            code="script-failed",
        )
    return 0


def _show_without_our_frames(error: BaseException, show: Callable[..., Any] | None = None) -> None:
    """Print an exception as `python script.py` prints it: the frames down to the script's first are ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != __file__:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    (show or sys.excepthook)(type(error), error.with_traceback(trace), trace)


def _script_code(target: str) -> tuple[types.CodeType, types.ModuleType, str]:
    file = Path(target)
    if file.is_dir():
        file = file / "__main__.py"
    if not file.is_file():
        raise PluginError(
            f"there is no script {target!r}. Name an existing file, or a module with -m.", code="script-failed"
        )
    main = _new_main(os.path.abspath(file), package=None)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", str(file))
    first_path = os.path.dirname(os.path.realpath(file))
    return compile(file.read_bytes(), main.__file__ or target, "exec", dont_inherit=True), main, first_path


def _module_code(target: str) -> tuple[types.CodeType, types.ModuleType, str]:
    # `python -m` looks for the module from the working directory.
    sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(target)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{target}.__main__")
    except ModuleNotFoundError as error:
        raise PluginError(
            f"there is no module {target!r} ({error}). Name a script, or a module on sys.path.", code="script-failed"
        ) from error
    finally:
        sys.path.pop(0)
    if spec is None or spec.origin is None or not hasattr(spec.loader, "get_code"):
        raise PluginError(
            f"there is no module {target!r} that can be run. Name a script, or a module on sys.path.",
            code="script-failed",
        )
    main = _new_main(spec.origin, package=spec.parent)
    main.__spec__, main.__loader__, main.__cached__ = spec, spec.loader, spec.cached  # type: ignore[attr-defined]
    code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    return code, main, os.getcwd()


def _new_main(file: str, package: str | None) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__file__ = file
    main.__package__ = package
    main.__spec__ = None
    main.__cached__ = None  # type: ignore[attr-defined]
    main.__builtins__ = sys.modules["builtins"]  # type: ignore[attr-defined]
    return main
