"""Whether a trainer can be the next stage of its folder: asked when it is built."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from ...errors import PluginError
from ...host.ranks import from_first_rank
from . import model_identity
from .settings import NAME
from .stage_callback import SAMPLE_FILE
from .stage_records import FinishedStage, StageRecords

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


def refuse_unfit(trainer: Trainer, records: StageRecords, stage: str) -> None:
    """
    Raises:
        PluginError: the stage is finished already, or its model is of another kind than that of the stage before.
    """
    earlier = from_first_rank(trainer.args, records.finished)
    if any(one.name == stage for one in earlier):
        raise PluginError(
            f"{NAME}: stage={stage} is finished in folder={records.folder}. Name another stage, or another folder; to "
            f"train it again, remove {records.of(stage)} and its entry, and those of later stages, from the folder."
        )
    if not earlier:
        logger.info("%s: %s is the first stage in %s", NAME, stage, records.folder)
        return
    last, model = earlier[-1], trainer.model
    changed = model_identity.differences(last.model, model_identity.identity_of(model, trainer.processing_class))
    if changed:
        raise PluginError(
            f"{NAME}: stage={stage} cannot follow {last.name}, of which nothing could be replayed or measured here: "
            f"{'; '.join(changed)}. Let every stage have the labels and the tokens of all, and start from "
            f"{records.model_of(last.name)}; or begin with another folder=...."
        )
    if not model_identity.starts_from(model_identity.sample_of(model), _sample(trainer.args, records, last)):
        logger.warning(
            "%s: stage %s does not start from the weights that stage %s has ended with. They are in %s.",
            NAME,
            stage,
            last.name,
            records.model_of(last.name),
        )
    logger.info("%s: stage %s follows %s", NAME, stage, ", ".join(one.name for one in earlier))


def _sample(args: Any, records: StageRecords, stage: FinishedStage) -> dict[str, list[float]]:
    file = records.of(stage.name) / SAMPLE_FILE

    def read() -> dict[str, list[float]]:
        records.refuse_damage([stage])
        sample: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8"))
        return sample

    return from_first_rank(args, read)
