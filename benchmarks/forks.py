"""Work in a forked process, which may be killed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any


def in_a_fork(work: Callable[[], Any]) -> dict[str, Any]:
    """The result of `work()`, which JSON can hold, in a child process as `value`; or its `error`, or its `signal`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            result = {"value": work()}
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        with contextlib.suppress(BrokenPipeError):
            os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"signal": os.waitstatus_to_exitcode(status)}
