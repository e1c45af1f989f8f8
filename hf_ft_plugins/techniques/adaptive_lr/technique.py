"""Adaptive learning rate: the rate follows the metric, to avoid overfitting and hand-tuned schedules.

A controller (see `controllers.py`) watches one metric and multiplies the base schedule, whatever it is, by a factor;
it begins after the schedule's warm-up. `plateau`, the default, cuts the rate when the metric stops improving and ends
the run after the last cut, so that too high a base rate is mended and a run that has begun to overfit is not paid for.

A guard drops gradients that are not finite before they reach the weights (see `nonfinite.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from ...technique import Technique, option

CUT_FACTOR = {"plateau": 0.3, "rollback": 0.3, "greedy": 0.9}
CUT_PATIENCE = {"plateau": 2, "rollback": 2, "greedy": 0}
MIN_SCALE = {"plateau": 0.01, "rollback": 0.01, "greedy": 0.1}


@dataclass(frozen=True, kw_only=True)
class AdaptiveLR(Technique):
    """The technique `adaptive-lr`: supplies an `AdaptiveLRCallback`, which can also be used alone."""

    name: ClassVar[str] = "adaptive-lr"
    summary: ClassVar[str] = "change the learning rate while training, by what the metric does; stop when it is done"

    controller: Literal["plateau", "greedy", "rollback"] = option(
        "plateau",
        help="plateau: cut when the metric stalls, then stop; greedy: raise while it improves, lower while not; "
        "rollback: as plateau, from the best weights",
    )
    metric: str | None = option(
        None,
        help="what to watch; default metric_for_best_model, else eval_loss, else the training loss when nothing is "
        "evaluated ('loss' asks for that); of several evaluation sets, eval_SET_METRIC",
    )
    greater_is_better: bool | None = option(
        None, help="direction; default the script's own word in the arguments, else that of the metric's name"
    )
    factor: float | None = option(None, help="one cut multiplies the rate by this; default 0.3, greedy 0.9")
    patience: int | None = option(
        None,
        help="values without improvement before a cut (default 2); greedy: that many are forgiven (default 0)",
    )
    min_delta: float = option(0.0, help="an improvement is a change of more than this, in the metric's unit")
    max_cuts: int = option(3, help="plateau and rollback: cuts before the run is stopped")
    min_scale: float | None = option(None, help="the factor is never below this; default 0.01, greedy 0.1")
    max_scale: float = option(2.0, help="greedy: the factor is never above this")
    cooldown: int = option(0, help="values to let pass after a cut before stalling counts again")
    stop: bool = option(True, help="plateau and rollback: stop the run when it stalls after the last cut")
    ema_steps: int = option(
        50,
        help="training loss as metric: time constant of its average, in optimizer steps, and the least steps "
        "between two decisions",
    )
    guard: bool = option(True, help="drop gradients that are not finite, count them, and cut or end the run if many")
    max_nonfinite_share: float = option(
        0.2, help="guard: the run ends with an error past this share of dropped steps among the last 100"
    )

    def check(self) -> None:
        self.require(self.factor is None or 0 < self.factor < 1, "factor", "it must lie between 0 and 1.")
        self.require(
            self.patience is None or self.patience >= (0 if self.controller == "greedy" else 1),
            "patience",
            "it must be at least 1 (greedy: 0).",
        )
        self.require(self.min_delta >= 0, "min_delta", "it must be 0 or more.")
        self.require(self.max_cuts >= 0, "max_cuts", "it must be 0 or more.")
        self.require(self.min_scale is None or 0 < self.min_scale <= 1, "min_scale", "it must lie in (0, 1].")
        self.require(self.max_scale >= 1, "max_scale", "it must be 1 or more.")
        self.require(self.cooldown >= 0, "cooldown", "it must be 0 or more.")
        self.require(self.ema_steps >= 1, "ema_steps", "it must be 1 or more.")
        self.require(0 < self.max_nonfinite_share <= 1, "max_nonfinite_share", "it must lie in (0, 1].")

    def keeps_objective(self) -> bool:
        return True

    def idle_options(self) -> dict[str, str]:
        greedy = self.controller == "greedy"
        reason = "controller=greedy neither counts cuts nor stops" if greedy else "only controller=greedy raises it"
        names = ("max_cuts", "cooldown", "stop") if greedy else ("max_scale",)
        idle = {name: reason for name in names if name in self.changed_options()}
        if not self.guard and "max_nonfinite_share" in self.changed_options():
            idle["max_nonfinite_share"] = "guard is off"
        return idle

    @property
    def cut_factor(self) -> float:
        return CUT_FACTOR[self.controller] if self.factor is None else self.factor

    @property
    def cut_patience(self) -> int:
        return CUT_PATIENCE[self.controller] if self.patience is None else self.patience

    @property
    def lowest_scale(self) -> float:
        return MIN_SCALE[self.controller] if self.min_scale is None else self.min_scale

    def ft_callbacks(self) -> list[Any]:
        from .callback import AdaptiveLRCallback

        return [AdaptiveLRCallback(**self.options())]

    def ft_trainer(self, trainer: Any) -> None:
        from .callback import refuse_unsupported

        refuse_unsupported(self, trainer)

    @classmethod
    def example(cls) -> Self:
        # With a patience of one and an improvement that no value can be, every second evaluation cuts.
        return cls(patience=1, min_delta=1e9, max_cuts=2, stop=False)

    def acted(self, trainer: Any) -> bool:
        """The rate was changed, the optimizer still holds the factor, and the log shows the rate as applied."""
        from ... import lr_scale

        events = [entry for entry in trainer.state.log_history if "adaptive_lr/scale" in entry]
        held = {group.get(lr_scale.KEY, {}).get(self.name) for group in trainer.optimizer.param_groups}
        return bool(events) and held == {events[-1]["adaptive_lr/scale"]} != {1.0}
