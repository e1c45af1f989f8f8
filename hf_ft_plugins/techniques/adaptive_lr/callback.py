"""`AdaptiveLRCallback`: the adaptive learning rate as a callback that works in any Trainer, with or without the host.

    trainer.add_callback(AdaptiveLRCallback(patience=3))

Alone in a stock Trainer it keeps its state in `trainer_state.json` (and, for `rollback`, the best weights beside it),
so that a resumed run goes on as if it had not stopped. Under the host that is the host's work, and checkpoints are
checked before they are used. Decisions stand in the next thing that is logged (see `log_notes.py`); under the host the
script's own `log()` sees them, too.

Every rank holds the same state: rank 0 decides, the others are told.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ... import lr_scale
from ...errors import PluginError
from ...host.log_notes import StockLog, add_note, tell_at_the_end
from ...host.stash import parts_of
from ...metrics import set_names
from . import nonfinite
from .best_weights import add_new_weights, copy_weights, read_weights, restore_weights, write_weights
from .controllers import ControllerState, Decision, decide
from .technique import AdaptiveLR
from .watching import (
    TRAINING_LOSS,
    is_named,
    refuse_absent_metric,
    refuse_arguments,
    refuse_unnamed_of_several,
    tunes_itself,
    value_of,
    watched_direction,
    watched_metric,
)

logger = logging.getLogger(__name__)

NAME = AdaptiveLR.name
STATE_KEY = "hf_ft_plugins/adaptive-lr"


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
        self.log_notes: dict[str, Any] = {}
        self._trainer: Any = None
        self._restored = False
        self._training = False
        self._stock_log = StockLog()
        self._forget()

    def _forget(self) -> None:
        self.log_notes.clear()
        # Keys that evaluations gave, whether the watched one was among them, and whether another is watched since.
        self._seen_keys: set[str] = set()
        self._metric_seen = False
        self._fell_back = False
        self._controller = ControllerState()
        self._guard = nonfinite.GuardState()
        self._ema = {"sum": 0.0, "weight": 0.0, "step": 0, "decided": 0}
        self._best: dict[str, torch.Tensor] | None = None

    def set_trainer(self, trainer: Any) -> None:
        """Give the callback its trainer, whose evaluation sets it then knows by name."""
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None, "_stock_log": StockLog()}

    @property
    def _sets(self) -> tuple[str, ...]:
        return set_names(getattr(self._trainer, "eval_dataset", None))

    @property
    def _hosted(self) -> bool:
        return any(part is self for part in parts_of(self._trainer).values())

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on: JSON values, and tensors under `best_weights`."""
        return {**self._plain_state(), "best_weights": self._best}

    def _plain_state(self) -> dict[str, Any]:
        guard = asdict(self._guard) | {"recent": list(self._guard.recent)}
        watch = {"keys": sorted(self._seen_keys), "seen": self._metric_seen, "fell_back": self._fell_back}
        return {
            "controller": asdict(self._controller),
            "guard": guard,
            "ema": dict(self._ema),
            "watch": watch,
            "log_notes": dict(self.log_notes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the next `on_train_begin` goes on from there."""
        self._controller = ControllerState(**state["controller"])
        self._guard = nonfinite.GuardState(**{**state["guard"], "recent": tuple(state["guard"]["recent"])})
        self._ema = dict(state["ema"])
        self._best = state.get("best_weights")
        watch = state.get("watch", {})
        self._seen_keys = set(watch.get("keys", ()))
        self._metric_seen = watch.get("seen", False)
        self._fell_back = watch.get("fell_back", False)
        self.log_notes.clear()
        self.log_notes.update(state.get("log_notes", {}))
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
            self._best = read_weights(args, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._best is not None and not self._hosted and args.should_save:
            write_weights(self._best, args, state.global_step)

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
        self._evaluated_at = -1
        self._metric = TRAINING_LOSS if self._fell_back else watched_metric(self.options, args)
        self._greater = watched_direction(self.options, args, self._metric, self._sets)
        self._warmup_steps = args.get_warmup_steps(state.max_steps)
        self._steered = not tunes_itself(type(lr_scale.innermost(optimizer)))
        if self._steered:
            self._refuse_lomo_alone(optimizer)
            lr_scale.refuse_unfit(optimizer, NAME)
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

    def _refuse_lomo_alone(self, optimizer: Any) -> None:
        kind = type(lr_scale.innermost(optimizer)).__name__
        if kind in lr_scale.UNFIT_BY_GROUP and not self._hosted:
            raise PluginError(
                f"{NAME}: {kind} takes its rate from the Trainer, which tells it the scaled one under the host alone. "
                "Use with_plugins(Trainer, ...) instead of the callback."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self._stock_log.untell()
        if self._best is not None and not args.load_best_model_at_end:
            restore_weights(model, self._best)
            self._record(state, "restore", reason="end: the best weights")
        tell_at_the_end(self._trainer, state, self.log_notes)
        if self._steered and self._metric != TRAINING_LOSS and not self._seen_keys:
            logger.warning("%s: no evaluation gave %s, so the rate followed its schedule.", NAME, self._metric)
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
        self._stock_log.untell()
        if not self._training or self._metric == TRAINING_LOSS:
            return
        if getattr(self._trainer, "evaluates_others", False):
            return
        if state.global_step == self._began_at > 0:
            # eval_on_start of a resumed run: the uninterrupted run had no such evaluation.
            return
        if any(key.startswith("eval_") for key in metrics):
            # Others are the script's own, on its training or test set.
            self._seen_keys |= set(metrics)
        value = value_of(self._metric, metrics)
        # Of several sets one gives the metric; a second value at one step is the script's own evaluation of other data.
        again = self._evaluated_at == state.global_step
        if self._decide(None if again else value, args, state, control, optimizer, model):
            self._metric_seen, self._evaluated_at = True, state.global_step
        self._remember(state)

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
        if not self._hosted:
            self._stock_log.tell(self.log_notes, logs, state)
            self._remember(state)
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

    def _decide(self, value: float | None, args: Any, state: Any, control: Any, optimizer: Any, model: Any) -> bool:
        """Act on a value of the metric, where there is one; whether there was."""
        decided: list[Any] = [value is not None, None]
        if value is not None and self._steered:
            decided[1] = decide(
                self.options,
                self._controller,
                float(value),
                greater=self._greater,
                warming_up=state.global_step < self._warmup_steps,
            )
        if _world_size() > 1:
            # Asked also where the metric is absent: every rank must take part, whatever rank 0 sees.
            dist.broadcast_object_list(decided, src=0)
        if decided[1] is None:
            return decided[0]
        decision: Decision
        self._controller, decision = decided[1]
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
            self._record(
                state, decision.action, scale=self._controller.scale, reason=f"{self._metric}: {decision.reason}"
            )
        self._remember(state)
        return True

    def _record(self, state: Any, action: str, **said: Any) -> None:
        logger.info("%s: step %d: %s", NAME, state.global_step, {"action": action, **said})
        note = {"action": action, **said, "step": state.global_step}
        add_note(self.log_notes, {f"adaptive_lr/{key}": value for key, value in note.items()})

    # ---- every step ----

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        if self._seen_keys and not self._metric_seen and self._metric != TRAINING_LOSS:
            self._watch_what_there_is(args, state)
        if self.options.guard and getattr(optimizer, "step_was_skipped", False):
            self._count_dropped(state, optimizer, state.global_step - 1, by_scaler=True)

    def _watch_what_there_is(self, args: Any, state: Any) -> None:
        if is_named(self.options, args):
            refuse_absent_metric(self._metric, self._seen_keys)
        logger.warning(
            "%s: nobody named a metric, and the evaluation gives no %s; from here on %s. It gives %s: name one with "
            "%s:metric=...",
            NAME,
            self._metric,
            "nothing is watched" if args.logging_strategy == "no" else "the training loss is watched",
            ", ".join(sorted(self._seen_keys)),
            NAME,
        )
        self._metric, self._greater, self._fell_back = TRAINING_LOSS, False, True
        self._ema["decided"] = state.global_step
        self._remember(state)

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
        self._record(state, "drop", dropped_steps=self._guard.total, reason="gradients that are not finite")
        searching = by_scaler and step < nonfinite.SCALER_SEARCH
        if not searching and nonfinite.is_hopeless(
            self._guard, step, state.max_steps, self.options.max_nonfinite_share
        ):
            tell_at_the_end(self._trainer, state, self.log_notes)
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
            share = f"{nonfinite.CUT_AFTER} of {nonfinite.CUT_WINDOW} steps"
            self._record(state, "cut", scale=scale, reason=f"{share} had gradients that are not finite")
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


def refuse_unsupported(options: AdaptiveLR, trainer: Any) -> None:
    """`refuse_arguments`, and what only the whole trainer shows."""
    refuse_arguments(options, trainer.args)
    refuse_unnamed_of_several(options, trainer)
    watched_direction(options, trainer.args, watched_metric(options, trainer.args), set_names(trainer.eval_dataset))
    recipe = getattr(trainer, "optimizer_cls_and_kwargs", None) or (None,)
    if not (tunes_itself(type(lr_scale.innermost(trainer.optimizer))) or tunes_itself(recipe[0])):
        lr_scale.refuse_when_built(trainer, NAME)
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


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
