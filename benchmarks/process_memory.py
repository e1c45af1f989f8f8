"""Resident memory of a measurement that runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Of glibc's heap, beyond which it asks the system for a block of its own and gives it back.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def resident() -> int:
    """Bytes of this process now."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Let `peak` begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that this process had."""
    return _status("VmHWM")


def in_a_process(module: str, function: str, *arguments: str, environment: dict[str, str]) -> int:
    """What `function(*arguments)` of a module returns, a whole number, in a new process with these variables, too."""
    called = f"{function}({', '.join(map(repr, arguments))})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"from {module} import {function}; print({called})"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return int(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
