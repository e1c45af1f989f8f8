"""Rows of earlier stages beside those of this one: where they come from, and how often they are drawn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from ... import mends
from ...errors import PluginError
from ...host.ranks import from_first_rank
from ...host.stash import stash_of
from ...technique import data_seed
from .joined_data import alike, joined
from .kept_rows import keep_rows, load_rows
from .replay_sampler import ReplaySampler
from .settings import NAME
from .stage_data import STAGE_DATA
from .stage_records import StageRecords

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

REPLAY = "replay"
# Of all examples, however many stages there are.
MOST = 0.5


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
    pools = pools_of(records, [stage.name for stage in stages])
    without = ", ".join(stage.name for stage in stages if stage.name not in pools)
    if stages and not pools:
        raise PluginError(
            f"{NAME}: replay={replay}, and no row was kept of {without}, which ran with replay=0. Run it with replay, "
            "or say replay=0 here, and protect by l2sp, lwf, wise or token_weights.",
            code="stages",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    if without:
        logger.warning("%s: no rows were kept of %s, so they are not replayed", NAME, without)
    if not pools:
        return None, {}
    data, counts = joined(train, pools)
    sizes = dict(zip(pools, counts[1:], strict=True))
    rows = ", ".join(f"{size} rows of {name}" for name, size in sizes.items())
    logger.info("%s: %.3g of the training examples are drawn from %s", NAME, whole_share(replay, len(pools)), rows)
    return data, sizes


def pools_of(records: StageRecords, stages: list[str]) -> dict[str, Any]:
    """The rows that these stages have kept, by stage; without those that kept none."""
    folders = {stage: records.of(stage) / REPLAY for stage in stages}
    return {stage: load_rows(folder) for stage, folder in folders.items() if folder.is_dir()}


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
            f"made {len(dataset)} of them. Name {NAME} after it.",
            code="technique-conflict",
            mend=[mends.set_option(NAME, "replay", 0)],
        )
    return ReplaySampler(new, pools, whole_share(share, len(pools)), data_seed(trainer.args))


def whole_share(replay: float, stages: int) -> float:
    """The share of all examples that are replayed, where `replay` of them are of each of so many stages."""
    return min(replay * stages, max(replay, MOST))


def batches_of(trainer: Any, pools: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """Collated batches of up to `most` rows of each pool, on the trainer's device, the same on every rank."""
    data = stash_of(trainer).get(STAGE_DATA)
    own = trainer.train_dataset if data is None else data.train
    for stage, rows in pools.items():
        some = alike(rows.select(range(min(most, len(rows)))), own, stage)
        if hasattr(trainer, "feature_batches"):
            # They were kept as `sequential` gets them, which may be before other techniques have prepared them.
            yield from trainer.feature_batches(trainer._supplied_later(some, "eval"))
        else:
            loader = DataLoader(some, batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator)
            yield from prepare_data_loader(loader, device=trainer.args.device, num_processes=1, put_on_device=True)
