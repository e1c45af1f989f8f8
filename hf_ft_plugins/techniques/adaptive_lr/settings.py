"""What the adaptive learning rate can be set to, checked when it is set. Nothing here knows torch or the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from ... import mends
from ...errors import OptionError

NAME = "adaptive-lr"
TRAINING_LOSS = "loss"  # as a metric
Controller = Literal["climb", "plateau", "greedy", "rollback"]

CUT_FACTOR: dict[str, float] = {"climb": 0.2, "plateau": 0.3, "rollback": 0.3, "greedy": 0.9}
CUT_PATIENCE: dict[str, int] = {"climb": 1, "plateau": 2, "rollback": 2, "greedy": 0}
MIN_SCALE: dict[str, float] = {"climb": 0.01, "plateau": 0.01, "rollback": 0.01, "greedy": 0.1}
MAX_SCALE: dict[str, float] = {"climb": 4.0, "plateau": 1.0, "rollback": 1.0, "greedy": 2.0}
MAX_CUTS: dict[str, int] = {"climb": 2, "plateau": 3, "rollback": 3, "greedy": 3}
# Shares of the first value: a model has begun to learn when the best is better by more than the one; until then only
# values that are worse by more than the other count. Where `min_delta` is not said.
LEARNS, FAR_WORSE = 0.02, 0.05
RAISE = 1.5  # climb: one step up
# The share of the latest weights in those that a cut goes on from; the rest is of the best.
LATEST: dict[str, float] = {"climb": 0.3}


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """When the rate changes, and by how much (see `controllers.py`).

    Attributes:
        controller: `climb`, `plateau`, `greedy` or `rollback`; None: `for_run` says.
        factor: one cut multiplies the rate by this, in (0, 1); None: 0.3, climb 0.2, greedy 0.9.
        patience: values without improvement before a cut, at least 1; None: 2, climb 1. Greedy: that many are
            forgiven, at least 0; None: 0.
        min_delta: an improvement is a change of more than this, in the metric's unit.
        max_cuts: all but greedy: cuts before the run is stopped; None: 3, climb 2.
        min_scale: the factor on the base schedule is never below this, in (0, 1]; None: 0.01, greedy 0.1.
        max_scale: climb and greedy: the factor is never above this, at least 1; None: 4, greedy 2.
        cooldown: values to let pass after a cut before stalling counts again.
        stop: all but greedy: stop the run when it stalls after the last cut.

    Raises:
        OptionError: a value that is not allowed.
    """

    controller: Controller | None = None
    factor: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    max_cuts: int | None = None
    min_scale: float | None = None
    max_scale: float | None = None
    cooldown: int = 0
    stop: bool = True

    def __post_init__(self) -> None:
        controllers = get_args(Controller)
        known = self.controller is None or self.controller in controllers
        _require("controller", self.controller, known, f"one of {', '.join(controllers)}")
        least = 0 if self.controller == "greedy" else 1
        if self.factor is not None:
            _require_number("factor", self.factor, lambda factor: 0 < factor < 1, "between 0 and 1")
        if self.patience is not None:
            _require_number(
                "patience", self.patience, lambda patience: patience >= least, "at least 1 (greedy: 0)", least
            )
        if self.min_scale is not None:
            _require_number("min_scale", self.min_scale, lambda scale: 0 < scale <= 1, "in (0, 1]")
        _require_number("min_delta", self.min_delta, lambda delta: delta >= 0, "0 or more", 0)
        if self.max_cuts is not None:
            _require_number("max_cuts", self.max_cuts, lambda cuts: cuts >= 0, "0 or more", 0)
        if self.max_scale is not None:
            _require_number("max_scale", self.max_scale, lambda scale: scale >= 1, "1 or more", 1)
        _require_number("cooldown", self.cooldown, lambda values: values >= 0, "0 or more", 0)

    def for_run(self, *, evaluates: bool, goes_back: bool) -> ControllerSettings:
        """These, with a controller that suits the run where none was named: `climb`, or `plateau`.

        Args:
            evaluates: whether the metric comes from evaluations; the training loss is best where all is learned by
                heart.
            goes_back: whether weights of the run can be put back.
        """
        if self.controller is not None:
            return self
        return replace(self, controller="climb" if evaluates and goes_back else "plateau")

    @property
    def kind(self) -> Controller:
        return self.controller or "climb"

    @property
    def goes_back(self) -> bool:
        """Whether a cut puts the best weights back, so that a copy of them is kept."""
        return self.kind in ("climb", "rollback")

    @property
    def latest(self) -> float:
        """The share of the latest weights in those that a cut goes on from; the rest is of the best."""
        return LATEST.get(self.kind, 0.0)

    @property
    def cut_factor(self) -> float:
        return CUT_FACTOR[self.kind] if self.factor is None else self.factor

    @property
    def cut_patience(self) -> int:
        return CUT_PATIENCE[self.kind] if self.patience is None else self.patience

    @property
    def first_patience(self) -> int:
        """The same while nothing is learned; then single values are far worse where batch norm has seen few batches."""
        return 3 if self.kind == "climb" else self.cut_patience

    @property
    def most_cuts(self) -> int:
        return MAX_CUTS[self.kind] if self.max_cuts is None else self.max_cuts

    @property
    def highest_scale(self) -> float:
        return MAX_SCALE[self.kind] if self.max_scale is None else self.max_scale

    @property
    def lowest_scale(self) -> float:
        return MIN_SCALE[self.kind] if self.min_scale is None else self.min_scale


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """Which metric is watched (see `watched_metric.py`).

    Attributes:
        metric: None: `metric_for_best_model`, else `eval_loss`, else the training loss when nothing is evaluated.
        greater_is_better: None: what the arguments say of this metric, else what its name says.
        ema_steps: of the training loss: time constant of its average, in optimizer steps, and the least steps between
            two decisions.

    Raises:
        OptionError: a value that is not allowed.
    """

    metric: str | None = None
    greater_is_better: bool | None = None
    ema_steps: int = 50

    def __post_init__(self) -> None:
        _require_number("ema_steps", self.ema_steps, lambda steps: steps >= 1, "1 or more", 1)


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What happens to gradients that are not finite (see `nonfinite.py`).

    Attributes:
        guard: whether they are dropped.
        max_nonfinite_share: the run ends with an error past this share of dropped steps among the last 100, in (0, 1].

    Raises:
        OptionError: a value that is not allowed.
    """

    guard: bool = True
    max_nonfinite_share: float = 0.2

    def __post_init__(self) -> None:
        _require_number("max_nonfinite_share", self.max_nonfinite_share, lambda share: 0 < share <= 1, "in (0, 1]")


def check_hold_out(share: float | None) -> None:
    """Refuse, by an `OptionError`, a share of the training rows to hold out that leaves one part without rows."""
    if share is not None:
        _require_number("hold_out", share, lambda share: 0 < share < 1, "between 0 and 1")


Settings = TypeVar("Settings", ControllerSettings, WatchSettings, GuardSettings)


def settings_from(kind: type[Settings], options: Mapping[str, Any]) -> Settings:
    """Those of `options` that settings of this kind take, as such."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def _require_number(
    name: str, value: Any, holds: Callable[[Any], bool], allowed: str, use: float | None = None
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    _require(name, value, number and holds(value), allowed, use)


def _require(name: str, value: Any, holds: bool, allowed: str, use: float | None = None) -> None:
    """Refuse a value; `use` is an allowed one that is near, None where there is none but the default."""
    if not holds:
        near = [mends.set_option(NAME, name, use)] if use is not None else []
        raise OptionError(
            f"{NAME}: option {name}={value} is not allowed: it must be {allowed}.",
            mend=[*near, mends.remove_option(NAME, name)],
        )
