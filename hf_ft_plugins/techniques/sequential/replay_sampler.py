"""`ReplaySampler`: the new rows of an epoch, all of them, with kept rows of earlier stages drawn among them.

    sampler = ReplaySampler(len(new), [len(general), len(medical)], share=0.05, seed=0)
    DataLoader(ConcatDataset([new, general, medical]), sampler=sampler)

Experience replay as in Chaudhry et al. 2019 ("On tiny episodic memories in continual learning"). Deviations: the share
of old rows is of all draws of an epoch, to one row, instead of as many old rows as new in every batch; and kept rows
are dealt out, not drawn with replacement. The draws of all epochs are one endless stream in which the stages take
turns, and a stage's n-th draw is place n % size of its (n // size)-th shuffle, so that none comes twice before all have
come. Any part is computed from (seed, epoch) alone, without a list of positions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ... import mends
from ...errors import PluginError
from ...host.own_order import own_order
from ...keyed_permutation import KeyedPermutation, key_of, permuted
from .settings import NAME

logger = logging.getLogger(__name__)

# Positions that are computed at once.
CHUNK = 8192


class ReplaySampler(Sampler[int]):
    """Positions in the new rows and the stages' kept rows, laid end to end: each new row once an epoch, and kept rows.

    Args:
        new: rows of the present stage.
        pools: kept rows of each earlier stage, in the order in which they follow the new rows.
        share: of all draws, which are kept rows, divided evenly between the stages; at least one of each stage an
            epoch.
        seed: of all shuffles.

    Attributes:
        epoch: as set.
        replayed: draws of kept rows in an epoch.

    Raises:
        PluginError: no new row, no stage, a stage without rows, or a share that is not between 0 and 1.
    """

    def __init__(self, new: int, pools: Sequence[int], share: float, seed: int = 0) -> None:
        if not 0 < share < 1:
            raise PluginError(
                f"{NAME}: replay={share} is the share of kept rows among all that are drawn: more than 0 and less than "
                "1, such as 0.05. With replay=0 no ReplaySampler is needed.",
                code="option-value",
                mend=[mends.set_option(NAME, "replay", 0.05)],
            )
        if new < 1 or not pools or min(pools) < 1:
            raise PluginError(
                f"{NAME}: replay={share} draws from {new} new rows and {list(pools)} kept ones of the stages before, "
                "and each must have a row. Leave out a stage that kept none, or set replay=0.",
                code="data-missing",
                mend=[mends.set_option(NAME, "replay", 0)],
            )
        self.new, self.seed, self.epoch = int(new), seed, 0
        self.replayed = max(round(new * share / (1 - share)), len(pools))
        self._sizes = np.array(pools, dtype=np.int64)
        self._offsets = self.new + np.cumsum(self._sizes) - self._sizes

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.new + self.replayed

    def __iter__(self) -> Iterator[int]:
        return self._positions(self.epoch)

    def _positions(self, epoch: int) -> Iterator[int]:
        shuffle = KeyedPermutation(len(self), (self.seed, epoch))
        for start in range(0, len(self), CHUNK):
            places = shuffle(np.arange(start, min(start + CHUNK, len(self))))
            old = places >= self.new
            places[old] = self._kept(places[old] - self.new + epoch * self.replayed)
            yield from places.tolist()

    def _kept(self, draws: np.ndarray) -> np.ndarray:
        """Positions of some draws of the endless stream of kept rows; int64 [n] from int64 [n]."""
        stages = draws % len(self._sizes)
        numbers = draws // len(self._sizes)
        sizes = self._sizes[stages]
        rounds = numbers // sizes
        within = permuted(numbers - rounds * sizes, sizes, key_of(self.seed, stages, rounds))
        return self._offsets[stages] + within


def refuse_own_order(trainer: Any, replay: float) -> None:
    """Refuse a trainer that never asks for a sampler; warn where it would have ordered the rows otherwise.

    Args:
        trainer: a host.
        replay: the option's value.

    Raises:
        PluginError: its class, or one that it is made of, makes its own data loader or its own order: TRL's GRPO,
            RLOO and distillation, sentence-transformers', or a class of the script's.
    """
    if found := own_order(type(trainer)):
        raise PluginError(
            f"{NAME}: replay={replay} draws kept rows among the new ones, and {found[0].__name__} has an order of its "
            f"own ({', '.join(found[1])}). Set replay=0; l2sp and ewc need no kept rows.",
            code="trainer-unsuited",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    strategy = getattr(trainer.args, "train_sampling_strategy", "random")
    if strategy != "random":
        logger.warning(
            "%s: train_sampling_strategy=%r would order the new rows; with replay=%s they are shuffled together with "
            "the kept ones instead. Set replay=0 to have that order.",
            NAME,
            strategy,
            replay,
        )
