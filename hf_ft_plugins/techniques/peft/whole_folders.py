"""Folders that are there whole or not at all, and reading them back."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

# Weight files of an earlier export, which would be mistaken for parts of the new one.
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; what is in it takes the place of what is in `folder` when all went well.

    If what runs inside raises, `folder` is as it was. Other files that it contains stay.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
        # mkdtemp gives access to the owner alone.
        scratch.chmod(0o777 & ~_umask())
        if folder.exists():
            _replace_files(scratch, folder)
        else:
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace_files(scratch: Path, folder: Path) -> None:
    new = {path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()}
    for pattern in WEIGHTS:
        for old in folder.glob(pattern):
            if old.relative_to(folder) not in new:
                old.unlink()
    for path in sorted(new):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / path, folder / path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' advice on weights that are new: what is read here is compared, tensor by tensor."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
