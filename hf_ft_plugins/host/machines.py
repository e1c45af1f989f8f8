"""Checkpoints of a run on several machines that have no common disk.

Trainer writes a checkpoint on the disk of the first rank; another machine's holds the random state of its ranks, and
with `save_on_each_node` all but the model. No one can resume from that. Here each machine's manifest names the save
that it is a part of; on resume the machines agree on the newest checkpoint that is whole on all of them, and each is
sent the files that it lacks. Then Trainer resumes as it does on one machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import CheckpointError
from ..progress import progress
from . import manifest
from .ranks import is_distributed

TOKEN = ".hf_ft_machine-"
CHUNK = 64 * 2**20  # bytes
ABSENT = "it is not there"

Reasons = list[tuple[str, str]]


@dataclass(frozen=True)
class Machines:
    """Which ranks of a run write to which disk.

    Attributes:
        leaders: the lowest rank of each disk, rank 0 first.
        mine: the place of this rank's disk among them.
        rank: of this process.
    """

    leaders: tuple[int, ...]
    mine: int
    rank: int

    @property
    def leads_another(self) -> bool:
        """Whether this is the first rank of a disk that is not rank 0's."""
        return self.mine > 0 and self.leads

    @property
    def leads(self) -> bool:
        return self.leaders[self.mine] == self.rank

    def reports(self, report: Any) -> list[Any]:
        """What the leaders report, one for each disk; every rank has to ask."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, report if self.leads else None)
        return [gathered[leader] for leader in self.leaders]

    def on_all(self, work: Callable[[], None]) -> None:
        """Let each leader do `work`.

        Raises:
            CheckpointError: on every rank, where a leader has raised `OSError` or `CheckpointError`.
        """
        failed = None
        if self.leads:
            try:
                work()
            except (OSError, CheckpointError) as error:
                failed = str(error)
        reports = self.reports(failed)
        for leader, reason in zip(self.leaders, reports, strict=True):
            if reason is not None:
                raise CheckpointError(f"on the machine of rank {leader}: {reason}")


def machines_of(args: Any) -> Machines | None:
    """The disks on which the ranks see `args.output_dir`; None where it is one. Every rank has to ask.

    Raises:
        CheckpointError: on every rank, where one cannot write there.
    """
    if not is_distributed(args) or int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == args.world_size:
        return None
    folder, token, failed = Path(args.output_dir), f"{TOKEN}{args.process_index}-{uuid.uuid4().hex}", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / token).touch()
    except OSError as error:
        failed = f"rank {args.process_index} cannot write to output_dir ({error})"
    told: list[Any] = [None] * args.world_size
    dist.all_gather_object(told, (token, failed))
    try:
        failures = [reason for _, reason in told if reason is not None]
        if failures:
            raise CheckpointError(
                "; ".join(failures) + ". Give the run an output_dir that every machine can write to.",
                code="file-unusable",
            )
        sees = next(rank for rank, (other, _) in enumerate(told) if (folder / other).exists())
        seen: list[Any] = [None] * args.world_size
        dist.all_gather_object(seen, sees)
    finally:
        (folder / token).unlink(missing_ok=True)
    leaders = tuple(sorted(set(seen)))
    return Machines(leaders, leaders.index(sees), args.process_index) if len(leaders) > 1 else None


def new_save(args: Any) -> str:
    """A name for one save, the same on all ranks."""
    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, src=0)
    return name[0]


def agreed_checkpoint(
    machines: Machines, folder: Path, named: Path | None, also: Callable[[Path], str | None]
) -> tuple[str | None, Reasons]:
    """The newest checkpoint that is whole on all machines, by its folder's name, and the newer ones with the reasons.

    Args:
        folder: this rank's `output_dir`.
        named: the one that is asked for; None for the newest.
        also: a further check of a checkpoint that is all there; it returns a reason to skip it, or None.
    """
    found = {}
    for one in [named] if named is not None else _checkpoints(folder) if machines.leads else []:
        found[one.name] = _state_of(one, also)
    reports = machines.reports(found)
    passed_over: Reasons = []
    for name in sorted({name for report in reports for name in report}, key=_number, reverse=True):
        reason = _why_not(machines, reports, name)
        if reason is None:
            return name, passed_over
        passed_over.append((name, reason))
    return None, passed_over


def _state_of(folder: Path, also: Callable[[Path], str | None]) -> tuple[str | None, str | None, bool]:
    """What is wrong with a machine's checkpoint, the save that it is of, and whether it is all of it."""
    damage = manifest.damage(folder, part=True) if folder.is_dir() else ABSENT
    if damage is not None:
        return damage, None, False
    save, part = manifest.save_of(folder)
    return None if part else also(folder), save, not part


def _why_not(machines: Machines, reports: list[dict[str, Any]], name: str) -> str | None:
    saves, anywhere = set(), False
    for leader, report in zip(machines.leaders, reports, strict=True):
        damage, save, whole = report.get(name, (ABSENT, None, False))
        if damage is not None:
            return f"on the machine of rank {leader}: {damage}"
        saves.add(save)
        anywhere = anywhere or whole
    if len(saves) > 1:
        return "the machines' parts of it are of different saves"
    return None if anywhere else "no machine has all of it; resume with the one that held rank 0"


def set_aside_on_all(machines: Machines, folder: Path, names: list[str]) -> None:
    """Rename these checkpoints on every machine that has them."""

    def work() -> None:
        for name in names:
            if (folder / name).is_dir():
                manifest.set_aside(folder / name)

    machines.on_all(work)


def send_missing_files(machines: Machines, folder: Path, device: torch.device) -> None:
    """Give each machine the files of a checkpoint that another one has.

    Also the random state of each rank: a restart may deal out ranks anew.

    Args:
        folder: the checkpoint, undamaged on every machine.
        device: of the tensors that are sent.

    Raises:
        CheckpointError: on every rank, where a machine cannot write its files.
    """
    listed = machines.reports(manifest.read_manifest(folder) or {} if machines.leads else None)
    names = sorted({name for files in listed for name in files})
    received, failed = False, None
    for name in progress(names, f"{folder.name}: sending files that a machine lacks", unit="files"):
        owner = next(place for place, files in enumerate(listed) if name in files)
        lacking = [place for place, files in enumerate(listed) if name not in files]
        if not lacking:
            continue
        writes = machines.leads and machines.mine in lacking and failed is None
        chunks = _sent(folder / name, listed[owner][name]["size"], machines.leaders[owner], machines.rank, device)
        try:
            _write_or_drop(folder / name if writes else None, chunks, listed[owner][name]["sha256"])
            received = received or writes
        except (OSError, CheckpointError) as error:
            failed = error
            for _ in chunks:  # The others are still sending.
                pass

    def finish() -> None:
        if failed is not None:
            raise failed
        if received:
            manifest.write_manifest(folder, save=manifest.save_of(folder)[0])

    machines.on_all(finish)


def held_by_first(machines: Machines, folder: Path) -> frozenset[str]:
    """The names of the checkpoints on rank 0's disk."""
    held: list[list[str]] = machines.reports([one.name for one in _checkpoints(folder)] if machines.leads else [])
    return frozenset(held[0])


def forget_rotated(machines: Machines, folder: Path, known: frozenset[str]) -> frozenset[str]:
    """Delete, on the other machines, the checkpoints that rank 0 has had (`known`) and has deleted.

    Returns:
        The names that it has now.
    """
    kept = held_by_first(machines, folder)

    def work() -> None:
        for one in _checkpoints(folder):
            if one.name in known - kept:
                shutil.rmtree(one)

    machines.on_all(work)
    return kept


def _checkpoints(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else []
    return [one for one in found if manifest.CHECKPOINT_NAME.fullmatch(one.name) and one.is_dir()]


def _number(name: str) -> int:
    match = manifest.CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else 0


def _sent(file: Path, size: int, source: int, rank: int, device: torch.device) -> Iterator[bytes]:
    """The content of a file of rank `source`, in pieces, on every rank."""
    with contextlib.ExitStack() as stack:
        handle = stack.enter_context(file.open("rb")) if rank == source else None
        for start in range(0, size, CHUNK):
            piece = torch.empty(min(CHUNK, size - start), dtype=torch.uint8)
            if handle is not None:
                handle.readinto(memoryview(piece.numpy()))
            piece = piece.to(device)
            dist.broadcast(piece, src=source)
            yield piece.cpu().numpy().tobytes()


def _write_or_drop(file: Path | None, chunks: Iterator[bytes], digest: str | None) -> None:
    if file is None:
        for _ in chunks:
            pass
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f"{file.name}.tmp")
    with scratch.open("wb") as handle:
        for chunk in chunks:
            handle.write(chunk)
    if digest not in (None, manifest.digest_of(scratch)):
        raise CheckpointError(f"{file} arrived changed. Start the run again")
    scratch.replace(file)
