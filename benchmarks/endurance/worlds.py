"""Where a tiny run trains: one process, two gloo ranks (DDP), or two that hold pieces of the model (FSDP2 on CPUs).

Each rank is a fork of this process, which itself never trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hf_ft_plugins.testing.shards import shard_on_cpus, sharded_as

PATIENCE = 240.0  # seconds
# For the other rank to notice that one is gone.
GRACE = 5.0


@dataclass(frozen=True)
class World:
    """How many ranks, and whether each holds only a piece of the model."""

    name: str
    ranks: int = 1
    in_pieces: bool = False

    def arguments(self, model: Any) -> dict[str, Any]:
        """What `tiny_trainer` is to be given beside what is tried."""
        if self.in_pieces:
            return {"ddp_backend": "gloo", **sharded_as(model)}
        return {"ddp_backend": "gloo"} if self.ranks > 1 else {}


ONE, DDP, FSDP2 = World("one rank"), World("two ranks", 2), World("two ranks, FSDP2", 2, in_pieces=True)
WORLDS = (ONE, DDP, FSDP2)


def on_ranks(world: World, work: Callable[[int], Any], patience: float = PATIENCE) -> list[dict[str, Any]]:
    """`work(rank)` on each rank of a world, which returns what JSON can hold.

    Returns:
        For each rank its `value`, `error` or `signal`; a rank that outlives a killed one by more than five seconds, or
        lasts longer than `patience` seconds, is killed (`waited`).
    """
    port = _free_port()
    ranks = [_forked(world, rank, port, work) for rank in range(world.ranks)]
    found: list[dict[str, Any]] = [{} for _ in ranks]
    texts = [b"" for _ in ranks]
    left, deadline = set(range(len(ranks))), time.monotonic() + patience
    while left:
        ready, _, _ = select.select([ranks[rank][1] for rank in left], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            for rank in left:
                os.kill(ranks[rank][0], signal.SIGKILL)
                found[rank]["waited"] = True
            deadline = time.monotonic() + patience
            continue
        for rank in list(left):
            if ranks[rank][1] not in ready:
                continue
            piece = os.read(ranks[rank][1], 1 << 16)
            texts[rank] += piece
            if piece:
                continue
            left.discard(rank)
            os.close(ranks[rank][1])
            code = os.waitstatus_to_exitcode(os.waitpid(ranks[rank][0], 0)[1])
            found[rank] |= json.loads(texts[rank]) if texts[rank] else {"signal": -code}
            if "value" not in found[rank]:
                deadline = min(deadline, time.monotonic() + GRACE)
    return found


def _forked(world: World, rank: int, port: int, work: Callable[[int], Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    torch.set_num_threads(1)
    if world.ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(world.ranks), "LOCAL_WORLD_SIZE": str(world.ranks)}
    if world.in_pieces:
        shard_on_cpus()
    try:
        result = {"value": work(rank)}
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(BrokenPipeError):
        os.write(writing, json.dumps(result).encode())
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
