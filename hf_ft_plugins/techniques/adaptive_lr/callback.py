"""`AdaptiveLRCallback`: the adaptive learning rate as a callback that works in any Trainer, with or without the host.

    trainer.add_callback(AdaptiveLRCallback(patience=3))

Alone in a stock Trainer it keeps its state in `trainer_state.json`, and the best weights beside it where the controller
goes back to them, so that a resumed run goes on as if it had not stopped. Under the host that is the host's work, and
checkpoints are checked before they are used. Decisions stand in the next thing that is logged (see `log_notes.py`);
under the host the script's own `log()` sees them, too.

Every rank has the same state: rank 0 decides for all.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ... import lr_scale
from ...host.log_notes import StockLog, add_note, tell_at_the_end
from ...metrics import set_names
from . import nonfinite
from .best_weights import add_new_weights, copy_weights, read_weights, restore_weights
from .controllers import Decision, decide, has_learned
from .held_out import held_out_rows
from .kept_state import KeepsState
from .settings import LEARNS, NAME, TRAINING_LOSS, Controller, ControllerSettings, GuardSettings, WatchSettings
from .unsupported import puts_nothing_back, refuse_arguments, refuse_lomo, steps_within_backward, tunes_itself
from .watched_metric import FEW, values_ahead

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class AdaptiveLRCallback(KeepsState):
    """Watches a metric and multiplies the learning rate.

    Args:
        controller, factor, patience, min_delta, max_cuts, min_scale, max_scale, cooldown, stop: when the rate changes,
            and by how much; see `ControllerSettings`.
        metric, greater_is_better, ema_steps: what is watched; see `WatchSettings`.
        guard, max_nonfinite_share: what happens to gradients that are not finite; see `GuardSettings`.

    Raises:
        OptionError: a value that is not allowed, when it is made.
        PluginError: the run has no such metric (when training begins, or after the first evaluation).
        NonFiniteGradientsError: see `max_nonfinite_share`.
    """

    def __init__(
        self,
        *,
        controller: Controller | None = None,
        metric: str | None = None,
        greater_is_better: bool | None = None,
        factor: float | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        max_cuts: int | None = None,
        min_scale: float | None = None,
        max_scale: float | None = None,
        cooldown: int = 0,
        stop: bool = True,
        ema_steps: int = 50,
        guard: bool = True,
        max_nonfinite_share: float = 0.2,
    ) -> None:
        self.controller_settings = ControllerSettings(
            controller=controller,
            factor=factor,
            patience=patience,
            min_delta=min_delta,
            max_cuts=max_cuts,
            min_scale=min_scale,
            max_scale=max_scale,
            cooldown=cooldown,
            stop=stop,
        )
        self.watch_settings = WatchSettings(metric=metric, greater_is_better=greater_is_better, ema_steps=ema_steps)
        self.guard_settings = GuardSettings(guard=guard, max_nonfinite_share=max_nonfinite_share)
        self.log_notes: dict[str, Any] = {}
        self._restored = False
        self._training = False
        self._stock_log = StockLog()
        self._forget()

    # ---- begin and end ----

    def _settle(self, model: Module) -> None:
        reason = puts_nothing_back(model)
        evaluates = self._watch.metric != TRAINING_LOSS
        self._settings = self.controller_settings.for_run(evaluates=evaluates, goes_back=reason is None)
        if self._settings.kind == self.controller_settings.kind:
            return
        if evaluates:
            logger.info("%s: controller=plateau: %s.", NAME, reason)
        else:
            can_hold_out = self._hosted and self.watch_settings.metric is None and not self._watch.fell_back
            logger.warning(
                "%s: controller=plateau: the training loss is watched, which is best where rows are learned by heart, "
                "so it will hardly help. Evaluate while training%s.",
                *(NAME, ", or keep some training rows for that: hold_out=0.2" if can_hold_out else ""),
            )

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        model: Module,
        **kwargs: Any,
    ) -> None:
        held_out = held_out_rows(self._trainer)
        refuse_arguments(self.watch_settings, args, held_out)
        # Asked in each step.
        self._asked_by_host = self._hosted
        if not self._restored:
            self._forget()
            if not self._hosted:
                self._restore_alone(state)
        self._restored = False
        self._training = True
        sets = set_names(getattr(self._trainer, "eval_dataset", None))
        self._watch.begin(args, state.global_step, sets, held_out)
        self._settle(model)
        if self._settings.goes_back and self._controller.best is not None and self._best is None:
            self._best = read_weights(args, state.global_step)
        self._warmup_steps = args.get_warmup_steps(state.max_steps)
        steps = state.max_steps, self._warmup_steps
        ahead = values_ahead(self.watch_settings, args, self._watch.metric, *steps, held_out)
        if ahead < FEW:
            logger.warning(
                "%s: %d values of %s are ahead after the warm-up, too few for it to help: evaluate more often "
                "(eval_steps), or leave it out.",
                *(NAME, ahead, self._watch.metric),
            )
        self._guards = self.guard_settings.guard and not steps_within_backward()
        if self._guards != self.guard_settings.guard:
            logger.warning("%s: the guard does not act: DeepSpeed steps before a callback sees the gradients.", NAME)
        self._steered = not tunes_itself(type(lr_scale.innermost(optimizer)))
        if self._steered:
            if not self._hosted:
                refuse_lomo(optimizer)
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

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Module,
        **kwargs: Any,
    ) -> None:
        self._stock_log.untell()
        # Where no checkpoint is the best there is none that Trainer could load.
        loads_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self._best is not None and not loads_best:
            restore_weights(model, self._best)
            self._record(state, "restore", reason="end: the best weights")
        tell_at_the_end(self._trainer, state, self.log_notes)
        if self._steered and self._watch.metric != TRAINING_LOSS and not self._watch.seen_keys:
            logger.warning("%s: no evaluation gave %s, so the rate followed its schedule.", NAME, self._watch.metric)
        waits = self._steered and self._settings.kind != "greedy" and not self._controller.cuts
        if waits and not has_learned(self._settings, self._controller, greater=self._watch.greater):
            logger.warning(
                "%s: %s never was %.0f %% better than its first value, so nothing was decided. Evaluate from earlier "
                "on, or say what an improvement is: min_delta=...",
                *(NAME, self._watch.metric, 100 * LEARNS),
            )
        if self._guard.total:
            logger.warning(
                "%s: %d of %d optimizer steps were dropped for gradients that were not finite.",
                NAME,
                self._guard.total,
                state.global_step,
            )
        self._training = False

    def facts(self) -> dict[str, Any]:
        """What it did, for the run's report."""
        held_out = held_out_rows(self._trainer)
        return {
            **({"training rows held out": held_out} if held_out else {}),
            "controller": self._settings.kind,
            "watched": self._watch.metric,
            "best value": self._controller.best,
            "factor on the schedule at the end": self._controller.scale,
            "cuts": self._controller.cuts,
            "stopped the run": self._controller.stopped,
            "steps dropped for gradients that were not finite": self._guard.total,
        }

    # ---- decisions ----

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        optimizer: Optimizer,
        model: Module,
        **kwargs: Any,
    ) -> None:
        self._stock_log.untell()
        if not self._training or self._watch.metric == TRAINING_LOSS:
            return
        if getattr(self._trainer, "evaluates_others", False):
            return
        if self._watch.is_repeated(state.global_step):
            return
        value = self._watch.value_in(metrics, state.global_step)
        if self._decide(value, args, state, control, optimizer, model):
            self._watch.decided(state.global_step)
        self._remember(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, Any],
        optimizer: Optimizer,
        model: Module,
        **kwargs: Any,
    ) -> None:
        if not self._hosted:
            self._stock_log.tell(self.log_notes, logs, state)
            self._remember(state)
        if not self._training or TRAINING_LOSS not in logs or "learning_rate" not in logs:
            return
        steps = state.global_step - self._average.step
        lost = sum(step >= self._average.step for step in self._guard.recent)
        corrected = {} if self._hosted else {"learning_rate": self._applied_rate}
        if lost >= steps > 0 and logs["loss"] == 0.0:
            # What Trainer logs when no step since the last log had a finite loss.
            corrected["loss"] = math.nan
        logs.update(corrected)
        state.log_history[-1].update(corrected)
        if self._watch.metric == TRAINING_LOSS and steps > 0 and not math.isnan(logs["loss"]):
            ema_steps = self.watch_settings.ema_steps
            self._average.add(float(logs["loss"]), state.global_step, ema_steps)
            if state.global_step - self._average.decided >= ema_steps:
                self._average.decided = state.global_step
                self._decide(self._average.value, args, state, control, optimizer, model)
        self._average.step = state.global_step
        self._remember(state)

    def _decide(
        self,
        value: float | None,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer,
        model: Module,
    ) -> bool:
        """Act on a value of the metric, where there is one; whether there was."""
        decided: list[Any] = [value is not None, None]
        if value is not None and self._steered:
            decided[1] = decide(
                self._settings,
                self._controller,
                float(value),
                greater=self._watch.greater,
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
        if decision.improved and self._settings.goes_back:
            self._best = copy_weights(model)
        latest = 0.0
        if decision.action == "rollback" and self._best is not None:
            latest = restore_weights(model, self._best, decision.latest)
        if decision.action == "stop":
            control.should_training_stop = True
        if decision.action != "keep":
            lr_scale.set_scale(optimizer, NAME, self._controller.scale)
            mixed = {"share_of_latest_weights": latest} if latest else {}
            reason = f"{self._watch.metric}: {decision.reason}"
            self._record(state, decision.action, scale=self._controller.scale, **mixed, reason=reason)
        self._remember(state)
        return True

    def _record(self, state: TrainerState, action: str, **details: Any) -> None:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in details.items() if name != "reason")
        said = f"{action} ({numbers})" if numbers else action
        logger.info("%s: step %d: %s: %s", NAME, state.global_step, said, details["reason"])
        note = {"action": action, **details, "step": state.global_step}
        add_note(self.log_notes, {f"adaptive_lr/{key}": value for key, value in note.items()})

    # ---- every step ----

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        model: Module,
        **kwargs: Any,
    ) -> None:
        if self._watch.is_missing:
            self._watch.fall_back(args)
            self._settle(model)
            self._average.decided = state.global_step
            self._remember(state)
        if self.guard_settings.guard and getattr(optimizer, "step_was_skipped", False):
            self._count_dropped(args, state, optimizer, state.global_step - 1, by_scaler=True)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        if not self._guards or getattr(optimizer, "scaler", None) is not None:
            return
        inner = lr_scale.innermost(optimizer)
        norm = getattr(self._trainer, "last_grad_norm", None)
        finite = nonfinite.all_finite(nonfinite.optimized_gradients(inner)) if norm is None else math.isfinite(norm)
        if not finite:
            nonfinite.drop(inner)
            self._count_dropped(args, state, optimizer, state.global_step, by_scaler=False)

    def _count_dropped(
        self, args: TrainingArguments, state: TrainerState, optimizer: Optimizer, step: int, *, by_scaler: bool
    ) -> None:
        self._guard = nonfinite.dropped(self._guard, step)
        self._record(state, "drop", dropped_steps=self._guard.total, reason="gradients that are not finite")
        searching = by_scaler and step < nonfinite.SCALER_SEARCH
        max_share = self.guard_settings.max_nonfinite_share
        if not searching and nonfinite.is_hopeless(self._guard, step, state.max_steps, max_share):
            tell_at_the_end(self._trainer, state, self.log_notes)
            raise nonfinite.too_many_dropped(self._guard, step, max_share, args)
        # The fp16 scaler lowers its own scale; the rate is not what is too large.
        if self._steered and not by_scaler and nonfinite.wants_cut(self._guard, step):
            self._guard = replace(self._guard, last_cut=step)
            scale = max(self._controller.scale * self._settings.cut_factor, self._settings.lowest_scale)
            self._controller = replace(self._controller, scale=scale)
            lr_scale.set_scale(optimizer, NAME, scale)
            self._record(state, "cut", scale=scale, reason=nonfinite.CUT_REASON)
        self._remember(state)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        **kwargs: Any,
    ) -> None:
        if self._asked_by_host:
            return
        rates = lr_scale.effective_lrs(optimizer)
        self._applied_rate = rates[0]
        # Stock Trainer reads the rate for its log from here, right after this event and before the scheduler steps;
        # of the schedulers that act on metrics it reads the optimizer's base rate, which `on_log` corrects.
        if "_last_lr" in vars(lr_scheduler):
            lr_scheduler._last_lr = rates


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
