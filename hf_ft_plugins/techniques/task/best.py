"""The best checkpoint: by which metric, in which direction, and when to stop waiting for a better one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ... import mends
from ...errors import PluginError
from ...host.stash import WithTrainer
from ...metrics import direction, set_names
from ...near import nearest_value
from . import NAME
from .labels import has_no_labels
from .metrics import BEST_METRIC, TaskMetrics

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


def choose_metric(trainer: Trainer, *, metric: str | None = None, greater_is_better: bool | None = None) -> None:
    """Set `metric_for_best_model`, `greater_is_better` and `load_best_model_at_end` on the trainer's arguments.

    The script's own metric stays, but for its direction where its name says another than Trainer's default (any metric
    not called a loss is better when greater). The best model is loaded at the end where the arguments allow it; what
    changes of the script's is a warning. Evaluation sets without labels give no metric, so nothing is chosen by them.

    Args:
        metric: None: the script's `metric_for_best_model`, else the one of `BEST_METRIC` (of a script's own
            `compute_metrics`: the loss).
        greater_is_better: its direction; None: by its name.

    Raises:
        PluginError: neither the arguments nor the metric's name say when it is better.
    """
    args = trainer.args
    if args.eval_strategy == "no" or trainer.eval_dataset is None:
        return
    metric = metric or args.metric_for_best_model or _default_metric(trainer)
    if metric is None:
        return
    greater = greater_is_better
    if greater is None:
        greater = direction(metric, args, set_names(trainer.eval_dataset))
    if greater is None:
        raise PluginError(
            f"{NAME}: the best checkpoint is to be the one of best {metric!r}, and nothing says whether more of it is "
            f"better. Say {NAME}:greater_is_better=true or {NAME}:greater_is_better=false.",
            code="metric-unknown",
        )
    changes = {"metric_for_best_model": metric, "greater_is_better": greater}
    unfit = cannot_load_best(args)
    if unfit is None:
        changes["load_best_model_at_end"] = True
    else:
        logger.warning("%s: the run ends with its last weights, not with its best: %s", NAME, unfit)
    for name, value in changes.items():
        before = getattr(args, name)
        if before != value:
            # None and False are the defaults.
            level = logging.WARNING if before else logging.INFO
            logger.log(level, "%s: %s was %s, is %s", NAME, name, before, value)
            setattr(args, name, value)


def _default_metric(trainer: Trainer) -> str | None:
    metrics = trainer.compute_metrics
    metric = BEST_METRIC[metrics.kind] if isinstance(metrics, TaskMetrics) else "loss"
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    first = next((name for name, dataset in sets.items() if not has_no_labels(dataset, trainer)), None)
    if first is None:
        logger.warning(
            "%s: the evaluation data have no labels, so no checkpoint is the best, and nothing is calibrated.",
            NAME,
        )
        return None
    # Trainer calls a metric of one of several sets by the set's name.
    return f"{first}_{metric}" if first else metric


def cannot_load_best(args: TrainingArguments) -> str | None:
    """Why these arguments do not allow `load_best_model_at_end`, and what to change; None where they do."""
    if args.load_best_model_at_end or args.save_strategy == "best":
        return None
    if args.save_only_model and (getattr(args, "deepspeed", None) or getattr(args, "fsdp", None)):
        return "save_only_model=True, which DeepSpeed and FSDP cannot load. Set it to False."
    if args.save_strategy != args.eval_strategy:
        return (
            f"save_strategy={_value(args.save_strategy)} and eval_strategy={_value(args.eval_strategy)} differ. "
            "Set save_strategy=best."
        )
    if args.eval_strategy == "steps":
        # Shares of the run are floats; whole multiples of them may be off by a rounding.
        times = args.save_steps / args.eval_steps
        if (args.save_steps < 1) != (args.eval_steps < 1) or abs(times - round(times)) > 1e-9 or round(times) < 1:
            return f"save_steps={args.save_steps} is no multiple of eval_steps={args.eval_steps}. Make it one."
    return None


def _value(strategy: Any) -> str:
    return str(getattr(strategy, "value", strategy))


class BestMetricCallback(WithTrainer, TrainerCallback):
    """Checks at the first evaluation that the metric exists, and stops the run when it no longer improves.

    Its state is saved in the host's checkpoints, so that a resumed run stops where the uninterrupted one does, and a
    stopped run stays stopped.

    Args:
        patience: evaluations without improvement before the run stops; None never stops it.
        threshold: an improvement is a change of more than this, in the metric's unit.
    """

    def __init__(self, patience: int | None = 3, threshold: float = 0.0) -> None:
        self.patience, self.threshold = patience, threshold
        self._restored = self._training = False
        self._seen: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.bad, self.stopped = 0, False

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, evaluations since, and whether they stopped the run."""
        return {"best": self.best, "bad": self.bad, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `on_train_begin` goes on from there."""
        self.best, self.bad, self.stopped = state["best"], state["bad"], state["stopped"]
        self._restored = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._restored:
            self._forget()
        self._restored, self._training, self._began_at, self._seen = False, True, state.global_step, set()
        self._evaluated, self._found = 0, False
        if self.stopped:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        key = args.metric_for_best_model
        if not self._training or key is None or not any(name.startswith("eval_") for name in metrics):
            return
        key = key if key.startswith("eval_") else f"eval_{key}"
        self._seen |= set(metrics)
        self._evaluated += 1
        self._found |= key in metrics
        sets = self._trainer.eval_dataset if self._trainer is not None else None
        if not self._found and self._evaluated >= (len(sets) if isinstance(sets, dict) else 1):
            raise PluginError(
                f"{NAME}: the best checkpoint is to be the one of best {key!r}, which is not among what the evaluation "
                f"gave: {', '.join(sorted(self._seen))}. Name one of these: {NAME}:metric=..., or "
                "metric_for_best_model.",
                code="metric-unknown",
                mend=[*nearest_value(NAME, "metric", key, self._seen), mends.remove_option(NAME, "metric")],
            )
        # eval_on_start of a resumed run: the uninterrupted run had no such evaluation.
        if key in metrics and not state.global_step == self._began_at > 0:
            self._judge(float(metrics[key]), args.greater_is_better, state, control)

    def _judge(self, value: float, greater: bool, state: TrainerState, control: TrainerControl) -> None:
        gain = float("inf") if self.best is None else (value - self.best) * (1 if greater else -1)
        # A value that is not a number never improves, not even as the first.
        if value == value and gain > self.threshold:
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.patience is not None and self.bad >= self.patience:
            self.stopped = True
            control.should_training_stop = True
            logger.info(
                "%s: stopped at step %d: no improvement on %s in %d evaluations",
                NAME,
                state.global_step,
                self.best,
                self.bad,
            )
