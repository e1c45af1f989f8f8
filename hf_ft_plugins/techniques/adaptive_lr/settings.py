"""What the adaptive learning rate can be set to, checked when it is set. Nothing here knows torch or the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from ...errors import OptionError

NAME = "adaptive-lr"
Controller = Literal["plateau", "greedy", "rollback"]

CUT_FACTOR: dict[str, float] = {"plateau": 0.3, "rollback": 0.3, "greedy": 0.9}
CUT_PATIENCE: dict[str, int] = {"plateau": 2, "rollback": 2, "greedy": 0}
MIN_SCALE: dict[str, float] = {"plateau": 0.01, "rollback": 0.01, "greedy": 0.1}


@dataclass(frozen=True, kw_only=True)
class ControllerSettings:
    """When the rate changes, and by how much (see `controllers.py`).

    Attributes:
        controller: `plateau`, `greedy` or `rollback`.
        factor: one cut multiplies the rate by this, in (0, 1); None: 0.3, greedy 0.9.
        patience: values without improvement before a cut, at least 1; None: 2. Greedy: that many are forgiven, at
            least 0; None: 0.
        min_delta: an improvement is a change of more than this, in the metric's unit.
        max_cuts: plateau and rollback: cuts before the run is stopped.
        min_scale: the factor on the base schedule is never below this, in (0, 1]; None: 0.01, greedy 0.1.
        max_scale: greedy: the factor is never above this, at least 1.
        cooldown: values to let pass after a cut before stalling counts again.
        stop: plateau and rollback: stop the run when it stalls after the last cut.

    Raises:
        OptionError: a value that is not allowed.
    """

    controller: Controller = "plateau"
    factor: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    max_cuts: int = 3
    min_scale: float | None = None
    max_scale: float = 2.0
    cooldown: int = 0
    stop: bool = True

    def __post_init__(self) -> None:
        controllers = get_args(Controller)
        _require("controller", self.controller, self.controller in controllers, f"one of {', '.join(controllers)}")
        least = 0 if self.controller == "greedy" else 1
        if self.factor is not None:
            _require_number("factor", self.factor, lambda factor: 0 < factor < 1, "between 0 and 1")
        if self.patience is not None:
            _require_number("patience", self.patience, lambda patience: patience >= least, "at least 1 (greedy: 0)")
        if self.min_scale is not None:
            _require_number("min_scale", self.min_scale, lambda scale: 0 < scale <= 1, "in (0, 1]")
        _require_number("min_delta", self.min_delta, lambda delta: delta >= 0, "0 or more")
        _require_number("max_cuts", self.max_cuts, lambda cuts: cuts >= 0, "0 or more")
        _require_number("max_scale", self.max_scale, lambda scale: scale >= 1, "1 or more")
        _require_number("cooldown", self.cooldown, lambda values: values >= 0, "0 or more")

    @property
    def cut_factor(self) -> float:
        return CUT_FACTOR[self.controller] if self.factor is None else self.factor

    @property
    def cut_patience(self) -> int:
        return CUT_PATIENCE[self.controller] if self.patience is None else self.patience

    @property
    def lowest_scale(self) -> float:
        return MIN_SCALE[self.controller] if self.min_scale is None else self.min_scale


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
        _require_number("ema_steps", self.ema_steps, lambda steps: steps >= 1, "1 or more")


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


Settings = TypeVar("Settings", ControllerSettings, WatchSettings, GuardSettings)


def settings_from(kind: type[Settings], options: Mapping[str, Any]) -> Settings:
    """Those of `options` that settings of this kind take, as such."""
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def _require_number(name: str, value: Any, holds: Callable[[Any], bool], allowed: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    _require(name, value, number and holds(value), allowed)


def _require(name: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise OptionError(f"{NAME}: option {name}={value} is not allowed: it must be {allowed}.")
