"""What one rank finds out for all: results and errors of the first rank, on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import PluginError

T = TypeVar("T")


def is_distributed(args: Any) -> bool:
    """Whether other ranks wait for this one; `args` are the trainer's."""
    return args.world_size > 1 and dist.is_available() and dist.is_initialized()


def from_first_rank(args: Any, work: Callable[[], T]) -> T:
    """`work()`, done by the first rank alone.

    Args:
        args: the trainer's arguments.
        work: what it returns must pickle.

    Raises:
        PluginError: on every rank, where `work` raised one, or an `OSError`: a full disk is no rank's own affair.
    """
    if not is_distributed(args):
        return work()
    found: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            found[0] = work()
        except (PluginError, OSError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result
