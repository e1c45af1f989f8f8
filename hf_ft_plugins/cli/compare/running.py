"""Run the script in processes of their own, into one folder that holds nothing of another comparison."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.progress import Progress

from ... import mends
from ...errors import PluginError
from ..refusals import object_at_the_end
from .outcomes import Outcome, trainings_of

MARKER = ".hf-ft-compare"
WRITTEN = re.compile(
    r"compare\.json|compare\.png|report\.html|recipe\.yaml|with(?:out)?(?:-seed\d+)?(?:\.\d+)?\.(?:json|log)(?:\.tmp)?"
)
LAST_LINES = 15
# Seconds that a run has to end by itself (a checkpoint at SIGTERM) before it is killed.
GRACE = 10.0
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class Runs:
    """The runs of one comparison.

    Attributes:
        folder: where records and output go; made and emptied by `comparison_folder`.
        command: what follows `hf-ft run`: options, the script and its arguments.
        identity: of this comparison, by which a run knows the checkpoints of another.
    """

    folder: Path
    command: Sequence[str]
    progress: Progress
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    def run(self, which: str, seed: int, chosen: Sequence[str]) -> Outcome:
        """Run the script once.

        Args:
            which: "without" or "with".
            seed: added to the script's own seed; 0 leaves that as it is.
            chosen: options that name the techniques.

        Raises:
            PluginError: it failed or trained nothing; the text ends with the last lines that it printed.
        """
        name = which if seed == 0 else f"{which}-seed{seed}"
        record, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        # A script may change its working directory before the record is written.
        options = ["--record", str(record.resolve()), "--output-subfolder", name]
        options += ["--comparison", self.identity, "--seed-shift", str(seed)]
        bar = self.progress.add_task(f"{which} the techniques" + (f", seed + {seed}" if seed else ""), total=None)
        start = time.monotonic()
        # Sets of texts are gone through in the order of their hashes.
        environment = {"PYTHONHASHSEED": "0", **os.environ}
        with log.open("w", encoding="utf-8") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "hf_ft_plugins", "run", "--json", *chosen, *options, *self.command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                # A group of its own, so that what the script starts ends with it.
                start_new_session=True,
            )
            with _ended_with_us(process), self._shown(record, bar):
                # wait4 also gives what the process used; Popen.wait does not.
                _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        content = merged_record(record)
        if process.returncode != 0 or not content.get("trainings"):
            what = f"ended with status {process.returncode}" if process.returncode else "trained nothing"
            refusal = object_at_the_end(log)
            if refusal is not None:
                raise PluginError(
                    f"{refusal['error']} (compare: the run {which} the techniques {what}; its output: {log})",
                    code=refusal["code"],
                    mend=refusal["mend"],
                )
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            raise PluginError(
                f"compare: the run {which} the techniques {what}. Its last lines ({log}):\n"
                f"{''.join(lines[-LAST_LINES:])}",
                code="script-failed",
            )
        self.progress.update(bar, total=content["step"], completed=content["step"])
        return Outcome(
            trainings=trainings_of(content),
            wall=wall,
            cpu=used.ru_utime + used.ru_stime,
            peak=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            gpu_peak=content["gpu_bytes"],
        )

    @contextlib.contextmanager
    def _shown(self, record: Path, bar: Any) -> Iterator[None]:
        ended = threading.Event()

        def show() -> None:
            while not ended.wait(0.2):
                content = read_record(record)
                if content:
                    self.progress.update(bar, total=content["max_steps"], completed=content["step"])

        watcher = threading.Thread(target=show, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@contextlib.contextmanager
def comparison_folder(folder: Path) -> Iterator[Path]:
    """The folder of one comparison: made, or emptied of an earlier one, and no other's while this one runs.

    Raises:
        PluginError: it holds files of something else, another comparison runs in it, or it cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise PluginError(
                f"compare: {folder} holds files that no comparison wrote, and a comparison would write among them. "
                "Name a new folder with --output, or empty this one.",
                code="file-unusable",
                mend=[mends.add_flag("--output", f"{folder}-2")],
            )
        folder.mkdir(parents=True, exist_ok=True)
        marker = (folder / MARKER).open("a+", encoding="utf-8")
    except OSError as error:
        raise PluginError(
            f"compare: {folder} cannot be written ({error}). Name a folder that you may write with --output.",
            code="file-unusable",
        ) from error
    with marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PluginError(
                f"compare: another comparison runs in {folder}. Wait for it, or name another --output.",
                code="file-unusable",
                mend=[mends.add_flag("--output", f"{folder}-2")],
            ) from error
        # The results of an earlier comparison must not be mistaken for this one's.
        for file in folder.iterdir():
            if WRITTEN.fullmatch(file.name):
                file.unlink()
        yield folder


def read_record(record: Path) -> dict[str, Any]:
    """What a run has written of itself so far; nothing where it has written nothing."""
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def merged_record(record: Path) -> dict[str, Any]:
    """The record of a run together with those of the processes that it started."""
    others = [read_record(file) for file in sorted(record.parent.glob(f"{record.stem}.*{record.suffix}"))]
    found = [content for content in (read_record(record), *others) if content.get("trainings")]
    return {
        "trainings": [training for content in found for training in content["trainings"]],
        "step": sum(content["step"] for content in found),
        "gpu_bytes": max((content["gpu_bytes"] for content in found), default=0),
    }


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process, and all that it started, on a signal to end or an exception in the block."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {}
    for number in ENDING_SIGNALS if in_main_thread else ():
        # nohup has the second one ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, end)
    try:
        yield
    except BaseException:
        _end_group(process)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
