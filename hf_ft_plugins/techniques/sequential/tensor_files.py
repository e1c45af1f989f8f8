"""Tensors by name in one safetensors file: whole on disk, sharded or not in memory, and refused where it is another's.

A run writes such a file once, when it begins, and reads it when it is resumed. Meanwhile another run may have written
its own to the same place, so the digest is kept in the checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from ... import mends
from ...errors import CheckpointError
from ...host.manifest import rename_flushed
from ...shards import whole_tensor
from .settings import NAME


def write_tensors(tensors: Mapping[str, torch.Tensor], file: Path, *, saves: bool = True) -> str | None:
    """Write the tensors whole, flushed, under another name first: after a crash the old or the new file is complete.

    Every rank has to call it: shards are put together one tensor at a time, and only a rank that saves keeps the whole,
    on the CPU. When it returns, the file is there for all ranks of the same disk.

    Args:
        tensors: of any shapes and dtypes, `DTensor` or not.
        saves: whether this rank writes; Trainer's `args.should_save`.

    Returns:
        The file's SHA-256 digest; None where this rank does not write.
    """
    whole = {}
    for name, tensor in tensors.items():
        full = whole_tensor(tensor.detach())
        if saves:
            whole[name] = full.to("cpu", copy=True).contiguous()
    digest = _write(whole, file) if saves else None
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
    return digest


def read_tensors(file: Path, digest: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a file that `write_tensors` wrote, on the CPU.

    Args:
        digest: what `write_tensors` returned; None takes any file.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or its digest is another.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(
            f"{NAME}: {file}, which the run wrote when it began, is not there, so it cannot be resumed. Copy the "
            "folder from the run's old output_dir, on each machine, or begin the stage anew.",
            mend=[mends.use_checkpoint(None)],
        )
    if digest is not None and _digest(file) != digest:
        raise CheckpointError(
            f"{NAME}: {file} is not the one that the run to resume wrote when it began: another run has begun in this "
            "output_dir since, or the file was changed. Give each run an output_dir of its own, and begin this stage "
            "anew.",
            code="checkpoint-other-run",
            mend=[mends.use_checkpoint(None)],
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{NAME}: {file} cannot be read ({error}). Begin the stage anew.", mend=[mends.use_checkpoint(None)]
        ) from error


def _write(tensors: dict[str, torch.Tensor], file: Path) -> str:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".tmp")
    save_file(tensors, scratch)
    with scratch.open("rb") as handle:
        os.fsync(handle.fileno())
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    rename_flushed(scratch, file)
    return digest


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
