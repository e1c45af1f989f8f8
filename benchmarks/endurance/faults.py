"""Faults in the middle of a run: what it says, and whether the last good checkpoint still resumes bit-equal."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.endurance.runs import build, digest
from benchmarks.endurance.worlds import ONE, on_ranks
from hf_ft_plugins.host.manifest import newest_whole_checkpoint
from hf_ft_plugins.testing import tiny_dataset

NAMES = ("adaptive-lr", "task")
FAULT_AT = 7
NOBODY = 65534


@dataclass(frozen=True)
class Fault:
    """One fault, and what came of it.

    Attributes:
        said: how the run ended, in its own words; empty where it went on.
        told: whether those name what is to be done or who raised.
        equal: whether a run that is resumed then ends bit-equal to one without the fault.
    """

    name: str
    said: str
    told: bool
    equal: bool

    @property
    def survived(self) -> bool:
        return self.told and self.equal


class RaisesAt(TrainerCallback):
    """What a plug-in of somebody else may do."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == FAULT_AT:
            raise RuntimeError("out of order")


class RaisingRows(torch.utils.data.Dataset):
    """The kit's rows, one of which cannot be read."""

    def __init__(self, row: int) -> None:
        self.rows, self.row = tiny_dataset(), row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if index == self.row:
            raise OSError(f"row {index} cannot be read")
        return self.rows[index]


def _full_disk(run: Path) -> None:
    trainer = build(run, NAMES, ONE)
    save = trainer._save_checkpoint

    def saved(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step > FAULT_AT:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        save(*args, **kwargs)

    trainer._save_checkpoint = saved
    trainer.train()


def _read_only(run: Path) -> None:
    trainer = build(run, NAMES, ONE)
    save = trainer._save_checkpoint

    def saved(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step > FAULT_AT:
            run.chmod(0o555)
            os.seteuid(NOBODY)
        save(*args, **kwargs)

    trainer._save_checkpoint = saved
    try:
        trainer.train()
    finally:
        os.seteuid(0)
        run.chmod(0o755)


def _evaluation_raises(run: Path) -> None:
    trainer = build(run, NAMES, ONE)
    evaluate = trainer.evaluate

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step > FAULT_AT:
            raise ValueError("no such metric")
        return evaluate(*args, **kwargs)

    trainer.evaluate = evaluated
    trainer.train()


def _callback_raises(run: Path) -> None:
    build(run, NAMES, ONE, callbacks=[RaisesAt()]).train()


def _row_raises(run: Path) -> None:
    # A run of its own: its rows are not those of the others.
    build(run, ["adaptive-lr"], ONE, train_dataset=RaisingRows(5), dataloader_num_workers=1).train()


def _loss_not_finite(run: Path) -> None:
    trainer = build(run, ["adaptive-lr"], ONE)
    compute = trainer.compute_loss

    def computed(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        return loss * torch.nan if trainer.state.global_step >= FAULT_AT and trainer.model.training else loss

    trainer.compute_loss = computed
    trainer.train()


def _out_of_memory(run: Path) -> None:
    trainer = build(run, ["adaptive-lr"], ONE, auto_find_batch_size=True, per_device_train_batch_size=4)
    step = trainer.training_step

    def stepped(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["labels"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = stepped
    trainer.train()
    if trainer.state.global_step != trainer.state.max_steps:
        raise RuntimeError(f"it ended after step {trainer.state.global_step} of {trainer.state.max_steps}")


# What raises in a run, and words that it must say.
RAISING: dict[str, tuple[Callable[[Path], None], str]] = {
    "a full disk while saving": (_full_disk, "File too large"),
    "an output_dir that became read-only": (_read_only, "Permission denied"),
    "an evaluation that raises": (_evaluation_raises, "no such metric"),
    "a callback of the script that raises": (_callback_raises, "out of order"),
    "a row that raises in a loader's worker": (_row_raises, "row 5 cannot be read"),
    "a loss that is not finite": (_loss_not_finite, "finite"),
    "out of memory with auto_find_batch_size": (_out_of_memory, ""),
}


def _newest(run: Path) -> Path:
    found, _ = newest_whole_checkpoint(run)
    assert found is not None
    return found


def _truncated(run: Path) -> None:
    file = _newest(run) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _flipped(run: Path) -> None:
    file = _newest(run) / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _emptied(run: Path) -> None:
    (_newest(run) / "trainer_state.json").write_text("")


def _mixed(run: Path) -> None:
    checkpoints = sorted(run.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    shutil.copy(checkpoints[-2] / "optimizer.pt", checkpoints[-1] / "optimizer.pt")


def _of_another_version(run: Path) -> None:
    file = _newest(run) / "hf_ft_plugins.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))


def _without_manifest(run: Path) -> None:
    (_newest(run) / "hf_ft_manifest.json").unlink()


# What is done to the newest checkpoint of a run that was cut off.
HARM: dict[str, Callable[[Path], None]] = {
    "truncated weights": _truncated,
    "one bit of the optimizer's state": _flipped,
    "an empty trainer_state.json": _emptied,
    "an optimizer's state of another checkpoint": _mixed,
    "a state of another version": _of_another_version,
    "no manifest": _without_manifest,
}


def faults() -> Iterator[Fault]:
    """Each fault in a run of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        expected = {names: _end(root / "+".join(names), names) for names in (NAMES, ("adaptive-lr",))}
        for name, (cause, words) in RAISING.items():
            run = root / name.replace(" ", "-")
            said = on_ranks(ONE, lambda rank, cause=cause, run=run: cause(run))[0].get("error", "")
            names = ("adaptive-lr",) if cause in (_row_raises, _loss_not_finite, _out_of_memory) else NAMES
            # What went on, or never came to a checkpoint, has none to go back to.
            over = cause in (_row_raises, _out_of_memory)
            end = {} if over else _end(run, names, resume=True)
            # Steps that were dropped before are not taken again.
            equal = over or ("value" in end if cause is _loss_not_finite else end == expected[names])
            yield Fault(name, said, words in said if words else not said, equal)
        for name, harm in HARM.items():
            run = root / name.replace(" ", "-")
            cut = on_ranks(ONE, lambda rank, run=run: build(run, NAMES, ONE, callbacks=[RaisesAt()]).train())
            harm(run)
            yield Fault(name, cut[0].get("error", ""), True, _end(run, NAMES, resume=True) == expected[NAMES])


def _end(run: Path, names: tuple[str, ...], *, resume: bool = False) -> Any:
    def work(rank: int) -> str:
        trainer = build(run, names, ONE)
        trainer.train(resume_from_checkpoint=resume or None)
        return digest(trainer)

    return on_ranks(ONE, work)[0]
