"""Rows of earlier stages beside those of this one: where they come from, and how often they are drawn."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...errors import PluginError
from ...host.ranks import from_first_rank
from ...host.stash import stash_of
from ...technique import data_seed
from .joined_data import joined
from .kept_rows import keep_rows, load_rows
from .replay_sampler import ReplaySampler
from .settings import NAME
from .stage_data import STAGE_DATA
from .stage_records import StageRecords

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

REPLAY = "replay"


def with_earlier_rows(
    train: Any, records: StageRecords, replay: float, args: TrainingArguments
) -> tuple[Any, dict[str, int]]:
    """The training data with the rows that finished stages have kept behind them, and how many there are of each.

    Raises:
        PluginError: rows of this stage could not be kept, no stage has kept any, or theirs are of another form.
    """
    # When the stage ends it would be too late to find out.
    keep_rows(train, 1, data_seed(args))
    stages = from_first_rank(args, records.finished)
    from_first_rank(args, lambda: records.refuse_damage(stages))
    folders = {stage.name: records.of(stage.name) / REPLAY for stage in stages}
    pools = {name: load_rows(folder) for name, folder in folders.items() if folder.is_dir()}
    without = ", ".join(name for name in folders if name not in pools)
    if stages and not pools:
        raise PluginError(
            f"{NAME}: replay={replay}, and no row was kept of {without}, which ran with replay=0. Run it with replay, "
            "or say replay=0 here, and protect by l2sp, lwf, wise or token_weights."
        )
    if without:
        logger.warning("%s: no rows were kept of %s, so they are not replayed", NAME, without)
    if not pools:
        return None, {}
    data, sizes = joined(train, pools)
    rows = ", ".join(f"{size} rows of {name}" for name, size in sizes.items())
    logger.info("%s: %.3g of the training examples are drawn from %s", NAME, replay, rows)
    return data, sizes


def sampler_for(trainer: Trainer, dataset: Any, share: float) -> ReplaySampler | None:
    """The order of the joined data; None where nothing has been joined.

    Raises:
        PluginError: another technique has changed the number of rows since.
    """
    data = stash_of(trainer).get(STAGE_DATA)
    if data is None or not data.replayed:
        return None
    new, pools = len(data.train), list(data.replayed.values())
    if len(dataset) != new + sum(pools):
        raise PluginError(
            f"{NAME}: replay={share} put {sum(pools)} rows of earlier stages behind {new}, and another technique has "
            f"made {len(dataset)} of them. Name {NAME} after it."
        )
    return ReplaySampler(new, pools, share, data_seed(trainer.args))
