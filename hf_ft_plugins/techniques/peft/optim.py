"""Two things that peft leaves to the training loop: LoRA+'s second learning rate, and AdaLoRA's shift of ranks.

loraplus(optimizer, model, ratio=16)
trainer.add_callback(AdaLoraCallback())
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

from ... import lr_scale, mends
from ...errors import PluginError
from .layers import NAME

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

FACTOR, RATE = f"{NAME}/loraplus", f"{NAME}/rate"
LIKE_LORA, TIMES_FULL, LOWEST = ("lora", "dora"), 10.0, 1e-4
# peft names LoRA's second matrix of a layer and of an embedding so.
SECOND = ("lora_B", "lora_embedding_B")
# Shares of the steps before AdaLoRA takes ranks away, and after it has: its paper's runs have about these.
WARMUP, SETTLED = 0.1, 0.3


def fit_rate(optimizer: Any, method: str, factor: float | None = None) -> float:
    """Let everything learn at `factor` times the schedule's rate, where one for full tuning is too low for an adapter.

    The best rate of LoRA is some ten times that of full tuning, over models and ranks (Schulman et al. 2025, "LoRA
    Without Regret").

    Args:
        optimizer: any torch optimizer that has not stepped yet.
        method: the adapter's.
        factor: None: `TIMES_FULL` for the methods of `LIKE_LORA` where the highest rate of the groups is below
            `LOWEST`, said in a warning, else 1.

    Returns:
        The factor.
    """
    inner = lr_scale.innermost(optimizer)
    rate = max((float(group.get("lr", 0.0)) for group in getattr(inner, "param_groups", [])), default=0.0)
    too_low = factor is None and method in LIKE_LORA and 0 < rate < LOWEST
    factor = (TIMES_FULL if too_low else 1.0) if factor is None else factor
    if factor == 1.0:
        return factor
    said = f"learning_rate={rate:g} is one for full tuning"
    try:
        lr_scale.set_scale(inner, RATE, factor)
    except PluginError as error:
        if not too_low:
            raise
        logger.warning("%s: %s, and it stays: %s Set it to %g or more.", NAME, said, error, LOWEST)
        return 1.0
    if too_low:
        logger.warning(
            "%s: %s: method=%s learns at %g. To choose it yourself, set learning_rate to %g or more, or rate_factor=1.",
            *(NAME, said, method, factor * rate, LOWEST),
        )
    return factor


def loraplus(optimizer: Any, model: Any, ratio: float) -> None:
    """Let LoRA's B matrices learn at `ratio` times the rate of all else (Hayou et al. 2024, arXiv:2402.12354, 16).

    The schedule is multiplied. Unlike peft's `create_loraplus_optimizer`, biases, norms and heads keep the plain rate,
    as in the paper, and any optimizer will do.

    Args:
        optimizer: any torch optimizer that has not stepped yet; groups that hold both kinds are split, in place.
        model: with LoRA adapters.

    Raises:
        PluginError: there is no B matrix that learns.
    """
    second = [
        parameter for name, parameter in model.named_parameters() if any(part in SECOND for part in name.split("."))
    ]
    faster = lr_scale.split_groups(optimizer, second)
    if not faster:
        raise PluginError(
            f"{NAME}: loraplus_ratio={ratio} is for LoRA's B matrices, and none of them learns.",
            code="model-unsuited",
            mend=[mends.remove_option(NAME, "loraplus_ratio")],
        )
    lr_scale.set_scale(optimizer, FACTOR, ratio, faster)


class AdaLoraCallback(TrainerCallback):
    """Moves AdaLoRA's budget of ranks to the layers that matter, after each optimizer step, while gradients live.

    AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) needs the run's number of steps and a call in each of them; Trainer
    gives it neither, so that its ranks stay as they began. Ranks that are taken away stay zero until the run's end,
    and only then are left out of what is saved: a checkpoint has every tensor at its full size, and the optimizer's
    state fits it. The scores and the ranks so far are kept in the checkpoint.

    Args:
        warmup, settled: shares of the steps in which the ranks are those of the beginning, and of the end; None: what
            the adapter's configuration says.
    """

    def __init__(self, warmup: float | None = WARMUP, settled: float | None = SETTLED) -> None:
        self.warmup = warmup
        self.settled = settled
        self.ranks: dict[str, list[bool]] = {}
        self._scores: dict[str, dict[str, Any]] | None = None
        self._allocator: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_allocator": None, "_scores": None}

    def state_dict(self) -> dict[str, Any]:
        scores = self._scores_of(self._allocator) if self._allocator is not None else self._scores
        return {"ranks": self.ranks, "scores": scores or {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ranks = {name: list(kept) for name, kept in state["ranks"].items()}
        self._scores = state["scores"]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        config, self._allocator = _adalora(model)
        config.total_step, config.rank_pattern = state.max_steps, None
        if self.warmup is not None:
            config.tinit = int(self.warmup * state.max_steps)
        if self.settled is not None:
            config.tfinal = int(self.settled * state.max_steps)
        if config.tinit >= config.total_step - config.tfinal - 1:
            raise PluginError(
                f"{NAME}: method=adalora has no step of {state.max_steps} left to move ranks in: the first "
                f"{config.tinit} and the last {config.tfinal} keep them. Train for longer, or use method=lora.",
                code="option-combination",
                mend=[mends.set_option(NAME, "method", "lora")],
            )
        self._allocator.reset_ipt()
        if state.global_step == 0:
            self.ranks = {}
        elif self._scores:
            devices = {name: parameter.device for name, parameter in model.base_model.model.named_parameters()}
            for kind, scores in self._scores.items():
                setattr(self._allocator, kind, {name: score.to(devices[name]) for name, score in scores.items()})
        self._scores = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        inner, step = model.base_model.model, state.global_step + 1
        config, allocator = _adalora(model)
        last = config.total_step - config.tfinal
        if step > last:
            allocator.mask_using_rank_pattern(inner, self.ranks)
            return
        if step < last:
            _refuse_without_gradient(inner)
        _, ranks = allocator.update_and_allocate(inner, step, force_mask=step == last)
        self.ranks = ranks or self.ranks
        if step == last:
            allocator.reset_ipt()
            logger.info("%s: AdaLoRA's ranks: %s", NAME, self.by_layer())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self.ranks:
            # From here on peft leaves the others out of what it saves.
            _adalora(model)[0].rank_pattern = dict(self.ranks)

    def by_layer(self) -> dict[str, int]:
        """How many ranks each layer has."""
        return {name.partition(".lora_E")[0]: sum(kept) for name, kept in self.ranks.items()}

    @staticmethod
    def _scores_of(allocator: Any) -> dict[str, dict[str, Any]]:
        return {kind: dict(getattr(allocator, kind)) for kind in ("exp_avg_ipt", "exp_avg_unc", "ipt")}


def _adalora(model: Any) -> tuple[Any, Any]:
    tuner: Any = getattr(model, "base_model", None)
    if not hasattr(tuner, "rankallocator"):
        raise PluginError(
            f"{NAME}: AdaLoraCallback needs a model with an AdaLoRA adapter, not a {type(model).__name__}.",
            code="part-misused",
        )
    return model.peft_config[tuner.trainable_adapter_name], tuner.rankallocator


def _refuse_without_gradient(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.requires_grad and parameter.grad is None:
            raise PluginError(
                f"{NAME}: method=adalora scores ranks by their gradients, and {name} has none. Techniques that freeze "
                "layers for a while do not go with it; use method=lora.",
                code="technique-conflict",
                mend=[mends.set_option(NAME, "method", "lora")],
            )
