"""Random numbers that are a function of a key, whatever was drawn before: the same on every rank and after a resume."""

from __future__ import annotations

import hashlib

import torch


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A new generator on `device`, whose numbers depend on `key` alone (and on the kind of device)."""
    text = "/".join(map(str, key)).encode()
    # 63 bits, which every device takes.
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    return torch.Generator(device).manual_seed(seed)
