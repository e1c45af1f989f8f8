"""Adaptive learning rate: the rate follows the metric, to avoid overfitting and hand-tuned schedules.

A controller (see `controllers.py`) watches one metric and multiplies the base schedule, whatever it is, by a factor;
it begins after the schedule's warm-up. `climb`, the default, raises the rate while the metric improves; when it does
not, it goes back towards the best weights with a lower rate, and after the last cut it ends the run with them.

A guard drops gradients that are not finite before they reach the weights (see `nonfinite.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Technique, data_seed, option
from .settings import (
    NAME,
    TRAINING_LOSS,
    ControllerSettings,
    GuardSettings,
    WatchSettings,
    check_hold_out,
    settings_from,
)

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from ...host.stash import Stash
    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion


@dataclass(frozen=True, kw_only=True)
class AdaptiveLR(Technique):
    """The technique `adaptive-lr`: supplies an `AdaptiveLRCallback`, which can also be used alone."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "change the learning rate while training, by what the metric does; stop when it is done"

    controller: Literal["climb", "plateau", "greedy", "rollback"] | None = option(
        None,
        help="climb: raise while the metric improves, then cut from near the best weights; plateau: cut when it "
        "stalls, then stop; rollback: as plateau, from the best weights; greedy: raise while it improves, lower while "
        "not; none: climb, or plateau where nothing is evaluated and under FSDP and DeepSpeed",
    )
    metric: str | None = option(
        None,
        help="what to watch; default metric_for_best_model, else eval_loss, else the training loss when nothing is "
        "evaluated ('loss' asks for that); of several evaluation sets their mean, or eval_SET_METRIC",
    )
    greater_is_better: bool | None = option(
        None, help="direction; default what the script's arguments say, else what the metric's name says"
    )
    factor: float | None = option(None, help="one cut multiplies the rate by this; default 0.3, climb 0.2, greedy 0.9")
    patience: int | None = option(
        None,
        help="values without improvement before a cut (default 2, climb 1); greedy: that many are forgiven (default 0)",
    )
    min_delta: float = option(0.0, help="an improvement is a change of more than this, in the metric's unit")
    max_cuts: int | None = option(None, help="all but greedy: cuts before the run is stopped; default 3, climb 2")
    min_scale: float | None = option(None, help="the factor is never below this; default 0.01, greedy 0.1")
    max_scale: float | None = option(None, help="climb and greedy: the factor is never above this; default 4, greedy 2")
    cooldown: int = option(0, help="values to let pass after a cut before stalling counts again")
    stop: bool = option(True, help="all but greedy: stop the run when it stalls after the last cut")
    ema_steps: int = option(
        50,
        help="training loss as metric: time constant of its average, in optimizer steps, and the least steps "
        "between two decisions",
    )
    hold_out: float | None = option(
        None,
        help="share of the training rows to keep for evaluation, where the script has no evaluation data and "
        "eval_strategy='no': drawn at random, evaluated some 30 times; none: all are trained on",
    )
    guard: bool = option(True, help="drop gradients that are not finite, count them, and cut or end the run if many")
    max_nonfinite_share: float = option(
        0.2, help="guard: the run ends with an error past this share of dropped steps among the last 100"
    )

    def check(self) -> None:
        options = self.options()
        settings_from(ControllerSettings, options)
        settings_from(WatchSettings, options)
        settings_from(GuardSettings, options)
        check_hold_out(self.hold_out)

    def answers(self, hook: str) -> bool:
        return super().answers(hook) and (hook != "ft_held_out" or self._holds_out)

    @property
    def _holds_out(self) -> bool:
        return self.hold_out is not None and self.metric != TRAINING_LOSS

    def keeps_objective(self) -> bool:
        return True

    def idle_options(self) -> dict[str, str]:
        greedy = self.controller == "greedy"
        raises = self.controller in (None, "climb")
        reason = "controller=greedy neither counts cuts nor stops" if greedy else "the controller does not raise it"
        names = ("max_cuts", "cooldown", "stop") if greedy else () if raises else ("max_scale",)
        idle = {name: reason for name in names if name in self.changed_options()}
        if not self.guard and "max_nonfinite_share" in self.changed_options():
            idle["max_nonfinite_share"] = "guard is off"
        if self.hold_out is not None and self.metric == TRAINING_LOSS:
            idle["hold_out"] = "the training loss is watched"
        return idle

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    def ft_held_out(self, dataset: Any, args: Any, stash: Stash) -> tuple[Any, Any] | None:
        from .held_out import HELD_OUT, count_rows, in_two

        # With evaluations the script has said what is evaluated, by an evaluator of its own.
        if self.hold_out is None or args.eval_strategy != "no":
            return None
        kept, held = in_two(dataset, self.hold_out, data_seed(args))
        stash[HELD_OUT] = count_rows(held)
        return kept, held

    def ft_callbacks(self) -> list[TrainerCallback]:
        from .callback import AdaptiveLRCallback
        from .held_out import HeldOutEvaluations

        options = self.options()
        share = options.pop("hold_out")
        return [AdaptiveLRCallback(**options), *([HeldOutEvaluations(share)] if self._holds_out else [])]

    def ft_report(self, trainer: Trainer) -> list[Section]:
        from ...host.stash import parts_of
        from ...report_sections import Facts
        from .callback import AdaptiveLRCallback

        part = parts_of(trainer)[f"{self.name}/{AdaptiveLRCallback.__name__}"]
        return [Facts("Learning rate", part.facts())]

    def ft_trainer(self, trainer: Trainer) -> None:
        from .callback import AdaptiveLRCallback
        from .held_out import settle
        from .unsupported import refuse_a_second, refuse_unsupported

        if self._holds_out:
            settle(trainer)
        refuse_unsupported(self.controller, settings_from(WatchSettings, self.options()), trainer)
        refuse_a_second(trainer, AdaptiveLRCallback)
