"""TRL's trainers as `behavioral` sees them: which rows they take, which of their settings it cannot serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from ... import mends
from ...errors import PluginError
from .collator import FLIP, MASKS, NAME, WEIGHT
from .prefix_sharing import why_not_shared

logger = logging.getLogger(__name__)

Noise = Literal["auto", "robust", "cdpo", "off"]

CONTRACTS = {"DPOTrainer": "dpo", "KTOTrainer": "kto", "RewardTrainer": "reward", "SFTTrainer": "sft"}
# Losses that are sums of one term for each row, which a weight scales exactly. The `aot` losses sort the batch.
WEIGHED_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down"),
    *("discopop", "sft", "sigmoid_norm", "kto", "apo_zero_unpaired", "nll", "dft"),
)


def contract_of(trainer_class: type) -> str:
    """ "dpo", "kto", "reward" or "sft", by the TRL class that a trainer's class comes from.

    Raises:
        PluginError: it comes from none of these.
    """
    for cls in trainer_class.__mro__:
        if cls.__name__ in CONTRACTS and cls.__module__.startswith("trl.trainer."):
            return CONTRACTS[cls.__name__]
    raise PluginError(
        f"{NAME}: {trainer_class.__name__} is none of TRL's {', '.join(CONTRACTS)}, which learn from preferences. "
        f"Use one of them, or leave out {NAME}.",
        code="trainer-unsuited",
        mend=[mends.remove_technique(NAME)],
    )


def settings_of(args: TrainingArguments, options: Mapping[str, Any]) -> dict[str, Any]:
    """What reference log-probabilities depend on besides the data and the model; `options` are the technique's."""
    names = ("max_length", "truncation_mode", "ld_alpha", "pad_to_multiple_of", "disable_dropout", "bf16", "fp16")
    return {"technique": dict(options)} | {name: getattr(args, name, None) for name in names}


def columns_of(dataset: Any) -> list[str]:
    """A data set's columns; of a stream that does not know them, those of its first row."""
    columns = getattr(dataset, "column_names", None)
    return list(next(iter(dataset), {})) if columns is None else list(columns)


def innermost_models(trainer: Trainer) -> list[Any]:
    """The policy and, where there is one, the reference, without DDP and PEFT around them."""
    models = [trainer.model] + [model for model in [getattr(trainer, "ref_model", None)] if model is not None]
    unwrapped = [trainer.accelerator.unwrap_model(model) for model in models]
    return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in unwrapped]


def losses_of(trainer: Trainer) -> list[str]:
    """The names of a trainer's losses; none for reward models."""
    if hasattr(trainer, "loss_types"):
        return list(trainer.loss_types)
    loss = getattr(trainer, "loss_type", None) or getattr(trainer.args, "loss_type", None)
    return [loss] if isinstance(loss, str) else list(loss or ())


def refuse_unfit(trainer: Trainer, *, weights: bool, noise: Noise) -> None:
    """Refuse what cannot be exact, and let DPO's sigmoid loss become the robust one, where the data call for it.

    Args:
        trainer: one of TRL's, built.
        weights: whether the gradients of rows are scaled by the data's column of weights, if there is one.
        noise: the form of the loss with flip probabilities; "auto" leaves other losses alone, "off" all.

    Raises:
        PluginError: naming the setting.
    """
    contract = contract_of(type(trainer))
    columns = columns_of(trainer.train_dataset)
    weighed = weights and WEIGHT in columns
    losses = losses_of(trainer)
    unserved = [loss for loss in losses if loss not in WEIGHED_LOSSES]
    if weighed and unserved:
        raise PluginError(
            f"{NAME}: rows have weights, and loss_type={'+'.join(unserved)} compares rows of a batch with each other: "
            f"no row has a loss of its own. Take one of {', '.join(WEIGHED_LOSSES[:13])}, or set weights=false.",
            code="training-arguments",
            mend=[mends.set_argument("loss_type", WEIGHED_LOSSES[0]), mends.set_option(NAME, "weights", False)],
        )
    if weighed and contract == "sft" and (trainer.args.packing or getattr(trainer, "padding_free", False)):
        raise PluginError(
            f"{NAME}: rows have weights, and packing=True or padding_free=True joins rows. Set both to False, or set "
            "weights=false.",
            code="training-arguments",
            mend=[
                mends.all_of(mends.set_argument("packing", False), mends.set_argument("padding_free", False)),
                mends.set_option(NAME, "weights", False),
            ],
        )
    if contract == "kto" and isinstance(trainer.train_dataset, IterableDataset):
        logger.warning(
            "%s: the data are a stream, whose order stays: where good and bad answers stand apart in it, batches hold "
            "one label only. Shuffle it, or pass a Dataset.",
            NAME,
        )
    if contract == "dpo":
        _choose_noise(trainer, noise, FLIP in columns)
    if getattr(trainer, "precompute_ref_logps", False) and any(
        any(trainer.train_dataset[column]) for column in MASKS if column in columns
    ):
        raise PluginError(
            f"{NAME}: some completions hold turns of the user, which are not to be scored, and "
            "precompute_ref_log_probs=True has scored them. Set it to False, or give completions of one turn.",
            code="training-arguments",
            mend=[mends.set_argument("precompute_ref_log_probs", False)],
        )


def _choose_noise(trainer: Trainer, noise: Noise, has_flips: bool) -> None:
    if not has_flips or noise == "off":
        return
    if set(trainer.loss_types) <= {"sigmoid", "robust"}:
        trainer.loss_types = ["robust"] * len(trainer.loss_types)
        return
    if noise != "auto":
        raise PluginError(
            f"{NAME}: noise={noise} gives each pair a flip probability in the robust form of the sigmoid "
            f"loss, and loss_type is {'+'.join(trainer.loss_types)}. Set loss_type to sigmoid or robust, or noise=off.",
            code="training-arguments",
            mend=[mends.set_option(NAME, "noise", "off"), mends.set_argument("loss_type", "sigmoid")],
        )
    logger.warning(
        "%s: loss_type=%s has no flip probabilities; the column %s is not used.",
        *(NAME, "+".join(trainer.loss_types), FLIP),
    )


def shares_prefixes(trainer: Trainer, wanted: Literal["auto", "on", "off"]) -> bool:
    """Whether the common beginning of a pair's completions is computed once: where it is exact, unless "off".

    Raises:
        PluginError: it would not be exact, and is `wanted` "on".
    """
    if wanted == "off":
        return False
    if contract_of(type(trainer)) != "dpo":
        reason: str | None = f"{type(trainer).__name__} does not train on pairs of texts by their log-probabilities"
    else:
        reason = why_not_shared(trainer)
    if reason is None:
        return True
    if wanted == "on":
        raise PluginError(
            f"{NAME}: share_prefixes=on would not be exact: {reason}. Set share_prefixes=off.",
            code="option-combination",
            mend=[mends.set_option(NAME, "share_prefixes", "off")],
        )
    logger.info("%s: prefixes are not shared: %s.", NAME, reason)
    return False
