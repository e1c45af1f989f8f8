"""Two gloo processes that train one model, forked from one that has already imported transformers.

Importing it takes longer than the training. A scenario is a function of a module, since it is found by name there.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import socket
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import pytest

from hf_ft_plugins.testing.shards import shard_on_cpus, sharded_as, sharded_by  # noqa: F401

RANKS = 2
PATIENCE = 180  # seconds; a run takes about three, and longer beside others


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked_from"])
    return context


@pytest.fixture
def on_both_ranks(processes, tmp_path):
    """Runs `scenario(rank, folder, *arguments)` on two ranks and returns both results; fails where one never ends."""
    return functools.partial(run_on_both_ranks, processes, tmp_path)


@pytest.fixture
def on_ranks(processes, tmp_path):
    """The same on a number of ranks, which is the first argument: `torchrun --nproc_per_node 1` is one."""
    return lambda number, *rest: run_on_both_ranks(processes, tmp_path, *rest, number=number)


def run_on_both_ranks(processes, folder, scenario, *arguments, number=RANKS):
    port = free_port()
    ranks = [
        processes.Process(target=_be_rank, args=(rank, number, port, folder, scenario, arguments), daemon=True)
        for rank in range(number)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + PATIENCE
    for rank in ranks:
        rank.join(max(0, deadline - time.monotonic()))
    waiting = [place for place, rank in enumerate(ranks) if rank.is_alive()]
    for rank in ranks:
        rank.kill()
    files = [folder / f"rank-{rank}.json" for rank in range(number)]
    results = [json.loads(file.read_text()) if file.exists() else None for file in files]
    assert not waiting, f"rank {waiting} still waits after {PATIENCE} s; results: {results}"
    errors = [result["error"] if result else "it died" for result in results if not result or "error" in result]
    assert not errors, "\n".join(errors)
    return results


def _be_rank(rank, ranks, port, folder, scenario, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        result = scenario(rank, folder, *arguments)
    except Exception:
        result = {"error": traceback.format_exc()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    # Without the interpreter's own end, which can wait for a rank that is gone.
    os._exit(0)


def straight_and_resumed(folder, make):
    """A run that nothing stops, and one that stops in the middle of its second epoch and goes on, both at their ends.

    `make(folder, **changes)` builds the trainer of either.
    """
    from hf_ft_plugins.testing import InterruptAt, Interruption

    straight = make(folder / "straight")
    straight.train()
    cut = make(folder / "cut", callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = make(folder / "cut")
    again.train(resume_from_checkpoint=True)
    return straight, again


def compared_on_a_rank(straight, again, other):
    """What a test of `straight_and_resumed` needs of a rank; `other` is the control, whose weights must differ."""
    from hf_ft_plugins.testing import difference, outcome

    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(other)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
    }


def assert_both_resumed(first, second):
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert not first["control"]


def trained(trainer):
    import hashlib

    import torch

    weights = torch.cat([tensor.flatten().double() for tensor in trainer.model.state_dict().values()])
    return {
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "finite": bool(weights.isfinite().all()),
        "steps": trainer.state.global_step,
        "decisions": decisions(trainer.state.log_history),
        "evaluations": [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "saved": sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")),
    }


def host_class():
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    return with_plugins(Trainer)


def build(folder, *techniques, **changes):
    from hf_ft_plugins.testing import tiny_trainer

    host = changes.pop("trainer_class", host_class())
    return tiny_trainer(folder, *techniques, trainer_class=host, **({"ddp_backend": "gloo"} | changes))


def decisions(log):
    told = [{key: value for key, value in entry.items() if key.startswith("adaptive_lr/")} for entry in log]
    return [entry for entry in told if entry]


def can_resume_on_two_ranks():
    return tuple(map(int, version("transformers").split(".")[:2])) >= (5, 23)


resumes_on_two_ranks = pytest.mark.skipif(
    not can_resume_on_two_ranks(),
    reason="this transformers cannot resume on two ranks without a GPU: it loads the optimizer to cpu:0",
)
