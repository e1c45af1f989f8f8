"""Whether a trainer can be the next stage of its folder: asked when it is built."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from ... import mends
from ...errors import PluginError
from ...host.ranks import from_first_rank
from ...host.stash import stash_of
from ...shards import holds_pieces
from . import model_identity
from .replay_sampler import refuse_own_order
from .settings import NAME
from .stage_callback import SAMPLE_FILE
from .stage_data import STAGE_DATA
from .stage_records import FinishedStage, StageRecords
from .unfit_losses import refuse_remembering, refuse_weighing

if TYPE_CHECKING:
    from transformers import Trainer

    from .technique import Sequential

logger = logging.getLogger(__name__)


def refuse_unfit(trainer: Trainer, records: StageRecords, stage: str) -> None:
    """
    Raises:
        PluginError: the stage is finished already, its model could not be kept, or is of another kind than that of the
            stage before.
    """
    if hasattr(trainer.model, "peft_config"):
        _refuse_adapter(trainer, stage)
    earlier = from_first_rank(trainer.args, records.finished)
    records.refuse_finished(stage, earlier)
    if not earlier:
        logger.info("%s: %s is the first stage in %s", NAME, stage, records.folder)
        return
    last, model = earlier[-1], trainer.model
    changed = model_identity.differences(last.model, model_identity.identity_of(model, trainer.processing_class))
    if changed:
        raise PluginError(
            f"{NAME}: stage={stage} cannot follow {last.name}, of which nothing could be replayed or measured here: "
            f"{'; '.join(changed)}. Let every stage have the labels and the tokens of all, and start from "
            f"{records.model_of(last.name)}; or begin with another folder=....",
            code="stages",
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


def _refuse_adapter(trainer: Trainer, stage: str) -> None:
    reason = None
    if holds_pieces(trainer):
        reason = "an adapter is not merged into a model in pieces (FSDP, DeepSpeed). Let every rank hold the whole"
    elif not hasattr(trainer.model, "merge_and_unload"):
        kind = ", ".join(str(one.peft_type.value) for one in trainer.model.peft_config.values())
        reason = f"a {kind} adapter cannot be merged into its model. Use one that can, such as LoRA"
    if reason is not None:
        raise PluginError(
            f"{NAME}: stage={stage} could not be kept as a whole model, since {reason}, or leave out folder=....",
            code="stages",
            mend=[mends.remove_option(NAME, "folder")],
        )


def refuse_options(trainer: Trainer, technique: Sequential) -> None:
    """Raise `PluginError` where an option cannot act on this trainer as it should."""
    if technique.penalties:
        from .penalty_refusals import refuse_unsupported

        refuse_unsupported(trainer)
    if technique.token_weights != "none":
        refuse_weighing(trainer, technique.token_weights)
    if technique.lwf:
        refuse_remembering(trainer, technique.lwf)
    if technique.wise is not None and trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: wise={technique.wise} averages weights, and DeepSpeed keeps its own. Leave it out.",
            code="distributed-unsupported",
            mend=[mends.remove_option(NAME, "wise")],
        )
    data = stash_of(trainer).get(STAGE_DATA)
    if data is not None and data.replayed:
        refuse_own_order(trainer, technique.replay)
        if getattr(trainer.args, "precompute_ref_log_probs", False):
            raise PluginError(
                f"{NAME}: replay={technique.replay} and precompute_ref_log_probs=True: the rows of earlier stages have "
                "the log-probabilities of those stages' reference. Set precompute_ref_log_probs=False, or replay=0.",
                code="training-arguments",
                mend=[mends.set_argument("precompute_ref_log_probs", False), mends.set_option(NAME, "replay", 0)],
            )


def _sample(args: Any, records: StageRecords, stage: FinishedStage) -> dict[str, list[float]]:
    file = records.of(stage.name) / SAMPLE_FILE

    def read() -> dict[str, list[float]]:
        records.refuse_damage([stage])
        sample: dict[str, list[float]] = json.loads(file.read_text(encoding="utf-8"))
        return sample

    return from_first_rank(args, read)
