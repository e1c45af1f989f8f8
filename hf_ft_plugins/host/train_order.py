"""Samplers that draw from the global random state, such as those of `group_by_length`, drawn by seed and epoch instead.

A run that resumes in the middle of an epoch would draw that epoch's order anew, from another state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler


class DrawnByEpoch(Sampler[int]):
    """The order that `sampler`, which has a `generator` of its own, draws in an epoch; a function of seed and epoch."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0
        sampler.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.seed + self.epoch)
        return iter(self.sampler)


def draws_globally(sampler: Any) -> bool:
    """Whether it would draw from the global random state; accelerate seeds torch's plain `RandomSampler` itself."""
    drawing = hasattr(sampler, "generator") and sampler.generator is None
    return drawing and not isinstance(sampler, RandomSampler)
