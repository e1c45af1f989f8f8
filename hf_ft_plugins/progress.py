"""Bars for what takes long beside the training steps: what is being done, and how long it will take.

    for batch in progress(batches, "sequential: Fisher information", unit="batches"):
        ...

For a second nothing is shown. Then, in a terminal or a notebook, there is a bar of tqdm's. Elsewhere, as in a log file,
and where bars are switched off (by `disable_tqdm`, HF_HUB_DISABLE_PROGRESS_BARS, or the functions of transformers,
datasets or huggingface_hub for it), the log gets a line if it will be long, and one at the end.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds: what takes less shows nothing; what is expected to take more is announced in a log.
SHOWN_AFTER, ANNOUNCED_FROM = 1.0, 10.0
# Whether the arguments of the run switch bars off.
_switched_off: ContextVar[bool] = ContextVar("hf_ft_plugins_bars_switched_off", default=False)


def progress(
    iterable: Iterable[T], what: str, *, total: int | Callable[[], int | None] | None = None, unit: str = "rows"
) -> Iterator[T]:
    """The items of `iterable`, each when it is asked for; meanwhile it is shown how many there have been.

    A loop that ends by an exception or is left early closes the bar. Other ranks than the first show nothing.

    Args:
        what: is done, its technique before it: "text2text: counting tokens".
        total: how many items there are, or a function that tells, which is called only if they take longer than a
            second; None: the iterable's length, where it has one.
        unit: what the items are called.
    """
    began, count = time.monotonic(), 0
    items = iter(iterable)
    for item in items:
        yield item
        count += 1
        if time.monotonic() - began >= SHOWN_AFTER:
            break
    else:
        return
    if not _is_first_rank():
        # Not `yield from`, here and below: that would close an iterator which the caller may go on with.
        for item in items:
            yield item
        return
    if callable(total):
        total = total()
    elif total is None and (left := operator.length_hint(iterable, -1)) >= 0:
        total = left + count if items is iterable else left
    work = _Work(what, unit, total, began)
    yield from work.with_bar(items, count) if _shows_bars() else work.with_lines(items, count)


@contextlib.contextmanager
def bars_as_asked(args: Any) -> Iterator[None]:
    """Within it bars are shown unless these `TrainingArguments` (None: nobody's) say `disable_tqdm`."""
    token = _switched_off.set(bool(getattr(args, "disable_tqdm", False)))
    try:
        yield
    finally:
        _switched_off.reset(token)


@dataclass(frozen=True)
class _Work:
    """What takes longer than a second.

    Attributes:
        total: items, if it is known how many; began: by `time.monotonic`.
    """

    what: str
    unit: str
    total: int | None
    began: float

    def with_bar(self, items: Iterator[T], count: int) -> Iterator[T]:
        settings: dict[str, Any] = {"desc": self.what, "total": self.total, "unit": f" {self.unit}", "initial": count}
        # Below another bar it goes away when it ends; else it stays.
        bar = _bar_class()(items, **settings, leave=None)
        # TQDM_DISABLE, too, disables it.
        if not bar.disable:
            # The work began before the bar was there.
            bar.initial, bar.start_t = 0, bar.start_t - self._elapsed()
            bar.refresh()
        for item in items if bar.disable else bar:  # noqa: UP028
            yield item

    def with_lines(self, items: Iterator[T], count: int) -> Iterator[T]:
        if self.total is None:
            logger.info("%s: %s %s in %s; it goes on", self.what, f"{count:,}", self.unit, _seconds(self._elapsed()))
        elif (left := self._elapsed() / count * (self.total - count)) >= ANNOUNCED_FROM:
            of_all = f"{count:,} of {self.total:,}"
            logger.info("%s: %s %s; about %s to go", self.what, of_all, self.unit, _seconds(left))
        try:
            for item in items:
                yield item
                count += 1
        finally:
            logger.info("%s: %s %s in %s", self.what, f"{count:,}", self.unit, _seconds(self._elapsed()))

    def _elapsed(self) -> float:
        return time.monotonic() - self.began


def _bar_class() -> Any:
    # transformers' takes a second to import, which who converts a log need not have. Its switch is this one's, too.
    from huggingface_hub.utils import tqdm

    return tqdm


def _seconds(number: float) -> str:
    """As hours, minutes and seconds: 0:01:05."""
    return str(timedelta(seconds=round(number)))


def _is_first_rank() -> bool:
    # Without an import of torch, which what is shown here need not know.
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def _shows_bars() -> bool:
    from huggingface_hub.utils import are_progress_bars_disabled, is_notebook

    # A script may have a module of its own by this name.
    of_datasets = getattr(sys.modules.get("datasets"), "are_progress_bars_disabled", None)
    if _switched_off.get() or are_progress_bars_disabled() or (of_datasets is not None and of_datasets()):
        return False
    return is_notebook() or (sys.stderr is not None and sys.stderr.isatty())
