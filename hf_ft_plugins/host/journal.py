"""What this package has logged in this process, the latest of it: `logging` hands a record on and forgets it.

Only what the logger lets through is kept: warnings always, the rest as `hf-ft run` or the script has set the level.
"""

from __future__ import annotations

import logging
from collections import deque

MOST = 500
LOGGER = "hf_ft_plugins"


class Journal(logging.Handler):
    """Keeps the last `MOST` messages with their level, counted from the first of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: deque[tuple[str, str]] = deque(maxlen=MOST)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append((record.levelname.lower(), record.getMessage()))
        self.count += 1

    def since(self, count: int) -> list[tuple[str, str]]:
        """Level and text of what was logged after the first `count` messages, as far as it is kept."""
        new = min(self.count - count, len(self._messages))
        return list(self._messages)[len(self._messages) - new :]


def journal() -> Journal:
    """The journal of this process, which begins with the first call."""
    logger = logging.getLogger(LOGGER)
    for handler in logger.handlers:
        if isinstance(handler, Journal):
            return handler
    made = Journal()
    logger.addHandler(made)
    return made
