"""Kill training runs at many moments, resume each, and tell how it ended. Driven by `test_killed.py`.

A profiler counts the Python and C calls of a run, so that "the k-th call" is the same moment in every run. Each run is
a fork of this process, which itself never trains.
"""

import hashlib
import os
import signal
import sys

from transformers import Trainer

from benchmarks.forks import in_a_fork
from hf_ft_plugins import AdaptiveLR, with_plugins
from hf_ft_plugins.testing import tiny_trainer

CUTTING = {"patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
SAVE_KILLED = 4  # the fourth save of a run, so that whole checkpoints lie before it


def build(folder, kind):
    base = Trainer if kind == "stock" else with_plugins(Trainer, AdaptiveLR(controller="plateau", **CUTTING))
    return tiny_trainer(folder, trainer_class=base, save_total_limit=2)


class Calls:
    """Counts calls while switched on; kills the process at one of them."""

    def __init__(self, kill_at):
        self.count, self.kill_at = 0, kill_at

    def __call__(self, frame, event, argument):
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_counting(trainer, where, kill_at):
    """Train; count the calls inside save number SAVE_KILLED, or those between the third and the fifth save."""
    calls, saves, save = Calls(kill_at), [0], trainer._save_checkpoint

    def counted_save(*args, **kwargs):
        saves[0] += 1
        inside = where == "inside" and saves[0] == SAVE_KILLED
        sys.setprofile(calls if inside else None)
        save(*args, **kwargs)
        between = where == "between" and SAVE_KILLED - 1 <= saves[0] <= SAVE_KILLED
        sys.setprofile(calls if between else None)

    trainer._save_checkpoint = counted_save
    trainer.train()
    sys.setprofile(None)
    return calls.count


def digest(trainer):
    total = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    for state in trainer.optimizer.state_dict()["state"].values():
        total.update(state["exp_avg_sq"].numpy().tobytes())
    return total.hexdigest()


def kill_and_resume(folder, kind, where, moments):
    """How runs of a "host" or "stock" trainer end, killed at moments "inside" a save or "between" saves."""

    def straight():
        trainer = build(folder / "straight", kind)
        return {"calls": train_counting(trainer, where, kill_at=-1), "digest": digest(trainer)}

    def resume(run):
        trainer = build(run, kind)
        trainer.train(resume_from_checkpoint=True)
        return digest(trainer)

    whole = in_a_fork(straight)["value"]
    ends = []
    for moment in range(moments):
        run = folder / f"run-{moment}"
        at = max(1, whole["calls"] * (moment + 1) // (moments + 1))
        killed = in_a_fork(lambda run=run, at=at: train_counting(build(run, kind), where, at))
        end = in_a_fork(lambda run=run: resume(run))
        ends.append(
            {
                "killed": killed.get("signal") == -signal.SIGKILL,
                "equal": end.get("value") == whole["digest"],
                "error": end.get("error"),
            }
        )
    return ends
