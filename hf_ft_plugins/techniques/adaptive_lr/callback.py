"""`AdaptiveLRCallback`: the adaptive learning rate as a callback that works in any Trainer, with or without the host.

    trainer.add_callback(AdaptiveLRCallback(patience=3))

Alone in a stock Trainer it keeps its state in `trainer_state.json` (and, for `rollback`, the best weights beside it),
so that a resumed run goes on as if it had not stopped. Under the host that is the host's work, checkpoints are checked
before they are used, and decisions reach the trackers as log entries of their own; in a stock Trainer they are in
`trainer.state.log_history`, and in the trackers too after `callback.set_trainer(trainer)`.

Every rank holds the same state: rank 0 decides, the others are told.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from ... import lr_scale
from ...errors import PluginError
from ...metrics import direction, evaluation_key, set_names
from . import nonfinite
from .best_weights import add_new_weights, copy_weights, restore_weights
from .controllers import ControllerState, Decision, decide
from .technique import AdaptiveLR

logger = logging.getLogger(__name__)

NAME = AdaptiveLR.name
STATE_KEY = "hf_ft_plugins/adaptive-lr"
WEIGHTS_FILE = "hf_ft_adaptive_lr_best.safetensors"
TRAINING_LOSS = "loss"
# These adapt the rate themselves, from quantities that a factor on it would falsify.
SELF_TUNING_OPTIMIZERS = ("prodigy", "dadapt", "schedulefree")


class NonFiniteGradientsError(PluginError):
    """Too large a share of the steps had gradients that are not finite; the weights are those of the last good step."""


class AdaptiveLRCallback(TrainerCallback):
    """Watches a metric and multiplies the learning rate; takes the options of `AdaptiveLR` by name.

    Raises:
        OptionError: an unknown or unfit option, when it is made.
        PluginError: the run has no such metric (when training begins, or after the first evaluation).
        NonFiniteGradientsError: see the option `max_nonfinite_share`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = AdaptiveLR.from_options(options)
        self._trainer: Any = None
        self._restored = False
        self._training = False
        self._forget()

    def _forget(self) -> None:
        self._controller = ControllerState()
        self._guard = nonfinite.GuardState()
        self._ema = {"sum": 0.0, "weight": 0.0, "step": 0, "decided": 0}
        self._best: dict[str, torch.Tensor] | None = None

    def set_trainer(self, trainer: Any) -> None:
        """Give the callback its trainer, so that decisions are logged through it and reach the trackers."""
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}

    @property
    def _sets(self) -> tuple[str, ...]:
        return set_names(getattr(self._trainer, "eval_dataset", None))

    @property
    def _hosted(self) -> bool:
        return any(part is self for part in getattr(self._trainer, "_ft_parts", {}).values())

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on: JSON values, and tensors under `best_weights`."""
        return {**self._plain_state(), "best_weights": self._best}

    def _plain_state(self) -> dict[str, Any]:
        guard = asdict(self._guard) | {"recent": list(self._guard.recent)}
        return {"controller": asdict(self._controller), "guard": guard, "ema": dict(self._ema)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `on_train_begin` goes on from there."""
        self._controller = ControllerState(**state["controller"])
        self._guard = nonfinite.GuardState(**{**state["guard"], "recent": tuple(state["guard"]["recent"])})
        self._ema = dict(state["ema"])
        self._best = state.get("best_weights")
        self._restored = True

    def _remember(self, state: Any) -> None:
        if not self._hosted:
            state.stateful_callbacks[STATE_KEY] = self._plain_state()

    def _restore_alone(self, args: Any, state: Any) -> None:
        stored = state.stateful_callbacks.get(STATE_KEY)
        if not (stored and state.global_step):
            return
        self.load_state_dict(stored)
        if self.options.controller == "rollback" and self._controller.best is not None:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WEIGHTS_FILE
            if not file.is_file():
                raise PluginError(
                    f"{NAME}: the best weights of the interrupted run are not at {file}, so controller=rollback "
                    "cannot go on. Keep the checkpoint under output_dir, or use with_plugins(Trainer, ...), whose "
                    "checkpoints hold them wherever they are."
                )
            from safetensors.torch import load_file

            self._best = load_file(file)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._best is not None and not self._hosted and args.should_save:
            from safetensors.torch import save_file

            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WEIGHTS_FILE
            if file.parent.is_dir():
                save_file(self._best, file)

    # ---- begin and end ----

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, model: Any, **kwargs: Any) -> None:
        refuse_arguments(self.options, args)
        if not self._restored:
            self._forget()
            if not self._hosted:
                self._restore_alone(args, state)
        self._restored = False
        self._training = True
        self._began_at = state.global_step
        self._seen_keys: set[str] = set()
        self._metric_seen = False
        self._metric = watched_metric(self.options, args)
        self._greater = watched_direction(self.options, args, self._metric, self._sets)
        self._warmup_steps = args.get_warmup_steps(state.max_steps)
        self._steered = not _tunes_itself(optimizer)
        if self._steered:
            lr_scale.set_scale(optimizer, NAME, self._controller.scale)
        else:
            logger.warning(
                "%s: %s adapts the learning rate itself, so the controller is off and only the guard works.",
                NAME,
                type(lr_scale.innermost(optimizer)).__name__,
            )
        if self._controller.stopped:
            control.should_training_stop = True
        self._remember(state)

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if self._best is not None and not args.load_best_model_at_end:
            restore_weights(model, self._best)
            self._record(state, {"adaptive_lr/action": "restore", "adaptive_lr/reason": "end: the best weights"})
        if self._guard.total:
            logger.warning(
                "%s: %d of %d optimizer steps were dropped for gradients that were not finite.",
                NAME,
                self._guard.total,
                state.global_step,
            )
        self._training = False

    # ---- decisions ----

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        metrics: dict[str, float],
        optimizer: Any,
        model: Any,
        **kwargs: Any,
    ) -> None:
        if not self._training or self._metric == TRAINING_LOSS:
            return
        if state.global_step == self._began_at > 0:
            # eval_on_start of a resumed run: the uninterrupted run had no such evaluation.
            return
        if any(key.startswith("eval_") for key in metrics):
            # Others are the script's own, on its training or test set.
            self._seen_keys |= set(metrics)
        key = self._metric if self._metric in metrics else f"eval_{self._metric}"
        self._metric_seen |= key in metrics
        self._decide(metrics.get(key), args, state, control, optimizer, model)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        logs: dict[str, Any],
        optimizer: Any,
        model: Any,
        **kwargs: Any,
    ) -> None:
        if not self._training or TRAINING_LOSS not in logs or "learning_rate" not in logs:
            return
        steps = state.global_step - self._ema["step"]
        lost = sum(step >= self._ema["step"] for step in self._guard.recent)
        corrected = {} if self._hosted else {"learning_rate": self._applied_rate}
        if lost >= steps > 0 and logs["loss"] == 0.0:
            # What Trainer logs when no step since the last log had a finite loss.
            corrected["loss"] = math.nan
        logs.update(corrected)
        state.log_history[-1].update(corrected)
        if self._metric == TRAINING_LOSS and steps > 0 and not math.isnan(logs["loss"]):
            keep = math.exp(-steps / self.options.ema_steps)
            self._ema["sum"] = keep * self._ema["sum"] + (1 - keep) * float(logs["loss"])
            self._ema["weight"] = keep * self._ema["weight"] + (1 - keep)
            if state.global_step - self._ema["decided"] >= self.options.ema_steps:
                self._ema["decided"] = state.global_step
                average = self._ema["sum"] / self._ema["weight"]
                self._decide(average, args, state, control, optimizer, model)
        self._ema["step"] = state.global_step
        self._remember(state)

    def _decide(self, value: float | None, args: Any, state: Any, control: Any, optimizer: Any, model: Any) -> None:
        decided: list[tuple[ControllerState, Decision] | None] = [None]
        if value is not None and self._steered:
            decided[0] = decide(
                self.options,
                self._controller,
                float(value),
                greater=self._greater,
                warming_up=state.global_step < self._warmup_steps,
            )
        if _world_size() > 1:
            # Asked also where the metric is absent: every rank must take part, whatever rank 0 sees.
            dist.broadcast_object_list(decided, src=0)
        if decided[0] is None:
            return
        self._controller, decision = decided[0]
        if self._best is not None:
            add_new_weights(model, self._best)
        if decision.improved and self.options.controller == "rollback":
            self._best = copy_weights(model)
        if decision.action == "rollback" and self._best is not None:
            restore_weights(model, self._best)
        if decision.action == "stop":
            control.should_training_stop = True
        if decision.action != "keep":
            lr_scale.set_scale(optimizer, NAME, self._controller.scale)
            self._record_decision(state, decision.action, f"{self._metric}: {decision.reason}")
        self._remember(state)

    def _record_decision(self, state: Any, action: str, reason: str) -> None:
        self._record(
            state,
            {
                "adaptive_lr/action": action,
                "adaptive_lr/scale": self._controller.scale,
                "adaptive_lr/reason": reason,
            },
        )

    def _record(self, state: Any, entry: dict[str, Any]) -> None:
        if self._trainer is None:
            state.log_history.append({**entry, "epoch": state.epoch, "step": state.global_step})
        else:
            # Trainer's own method: TRL's overrides empty their running averages into whatever is logged next.
            Trainer.log(self._trainer, entry)

    # ---- every step ----

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        if self._seen_keys and not self._metric_seen:
            raise PluginError(
                f"{NAME}: metric={self._metric!r} is not among what the evaluation gave: "
                f"{', '.join(sorted(self._seen_keys))}. Name one of these: {NAME}:metric=..."
            )
        if self.options.guard and getattr(optimizer, "step_was_skipped", False):
            self._count_dropped(state, optimizer, state.global_step - 1, by_scaler=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        if not self.options.guard or getattr(optimizer, "scaler", None) is not None:
            return
        inner = lr_scale.innermost(optimizer)
        norm = self._trainer.last_grad_norm if self._hosted else None
        finite = nonfinite.all_finite(nonfinite.optimized_gradients(inner)) if norm is None else math.isfinite(norm)
        if not finite:
            nonfinite.drop(inner)
            self._count_dropped(state, optimizer, state.global_step, by_scaler=False)

    def _count_dropped(self, state: Any, optimizer: Any, step: int, *, by_scaler: bool) -> None:
        self._guard = nonfinite.dropped(self._guard, step)
        self._record(state, {"adaptive_lr/action": "drop", "adaptive_lr/dropped_steps": self._guard.total})
        searching = by_scaler and step < nonfinite.SCALER_SEARCH
        if not searching and nonfinite.is_hopeless(
            self._guard, step, state.max_steps, self.options.max_nonfinite_share
        ):
            raise NonFiniteGradientsError(
                f"{NAME}: the gradients of {self._guard.total} of {step + 1} optimizer steps were not finite, more "
                f"than max_nonfinite_share={self.options.max_nonfinite_share} of the latest. They were dropped: the "
                "weights are those of the last finite step. Lower learning_rate, set max_grad_norm, prefer bf16 to "
                "fp16, or look for rows whose loss is not a number."
            )
        # The fp16 scaler lowers its own scale; the rate is not what is too large.
        if self._steered and not by_scaler and nonfinite.wants_cut(self._guard, step):
            self._guard = replace(self._guard, last_cut=step)
            scale = max(self._controller.scale * self.options.cut_factor, self.options.lowest_scale)
            self._controller = replace(self._controller, scale=scale)
            lr_scale.set_scale(optimizer, NAME, scale)
            self._record_decision(
                state,
                "cut",
                f"{nonfinite.CUT_AFTER} of {nonfinite.CUT_WINDOW} steps had gradients that are not finite",
            )
        self._remember(state)

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, *, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> None:
        if self._hosted:
            return
        rates = lr_scale.effective_lrs(optimizer)
        self._applied_rate = rates[0]
        # Stock Trainer reads the rate for its log from here, right after this event and before the scheduler steps;
        # of the schedulers that act on metrics it reads the optimizer's base rate, which `on_log` corrects.
        if "_last_lr" in vars(lr_scheduler):
            lr_scheduler._last_lr = rates


def watched_metric(options: AdaptiveLR, args: Any) -> str:
    """The metric to act on: the option, the arguments' `metric_for_best_model`, `eval_loss`, or the training loss."""
    if options.metric is not None:
        return options.metric
    if args.eval_strategy == "no":
        return TRAINING_LOSS
    return evaluation_key(args.metric_for_best_model or "eval_loss")


def watched_direction(options: AdaptiveLR, args: Any, metric: str, sets: Iterable[str] = ()) -> bool:
    """Whether greater is better: the option, the arguments' word on the same metric, or the metric's name.

    Args:
        sets: the names of the evaluation sets where there are several.

    Raises:
        PluginError: none of them says.
    """
    if options.greater_is_better is not None:
        return options.greater_is_better
    found = direction(metric, args, sets)
    if found is None:
        raise PluginError(
            f"{NAME}: the name of metric={metric!r} does not say whether it is better when greater. "
            f"Say it: {NAME}:greater_is_better=true (or false)."
        )
    best = args.metric_for_best_model
    same = best is not None and evaluation_key(best) == evaluation_key(metric)
    if same and args.greater_is_better is not None and args.greater_is_better != found:
        logger.warning(
            "%s: %s counts as better when %s, by its name; the arguments' greater_is_better=%s (Trainer's own default) "
            "says otherwise, so Trainer keeps another checkpoint as the best. Say greater_is_better in the arguments; "
            "the option %s:greater_is_better=... goes before both.",
            NAME,
            metric,
            "greater" if found else "lower",
            args.greater_is_better,
            NAME,
        )
    return found


def refuse_arguments(options: AdaptiveLR, args: Any) -> None:
    """Raise `PluginError` where these `TrainingArguments` leave nothing to watch or nothing to steer."""
    if args.eval_strategy == "no" and options.metric not in (None, TRAINING_LOSS):
        raise PluginError(
            f"{NAME}: metric={options.metric!r} comes from evaluations, and eval_strategy='no'. "
            "Set eval_strategy, or watch the training loss with metric=loss."
        )
    if watched_metric(options, args) == TRAINING_LOSS and args.logging_strategy == "no":
        raise PluginError(
            f"{NAME}: there is nothing to watch: eval_strategy='no' and logging_strategy='no'. Set one of them."
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim:
        raise PluginError(
            f"{NAME}: optim={optim!r} steps inside the backward pass with a rate of its own, which no factor "
            "reaches. Use the variant without layerwise."
        )


def refuse_unsupported(options: AdaptiveLR, trainer: Any) -> None:
    """`refuse_arguments`, and what only the whole trainer shows."""
    refuse_arguments(options, trainer.args)
    watched_direction(options, trainer.args, watched_metric(options, trainer.args), set_names(trainer.eval_dataset))
    if options.controller == "rollback" and trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: controller=rollback does not work with DeepSpeed, whose next step would undo it from its own "
            "copy of the weights. Use controller=plateau."
        )
    callbacks = trainer.callback_handler.callbacks
    if sum(isinstance(callback, AdaptiveLRCallback) for callback in callbacks) > 1:
        raise PluginError(
            f"{NAME}: the script adds an AdaptiveLRCallback itself, so the technique would act twice. Keep one."
        )


def _tunes_itself(optimizer: Any) -> bool:
    name = type(lr_scale.innermost(optimizer)).__name__.lower().replace("_", "")
    return any(word in name for word in SELF_TUNING_OPTIMIZERS)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
