"""The decisions: plain functions from (settings, state, value of the metric) to (new state, decision).

- `plateau`: cut the rate when the metric has stopped improving; after the last cut, stop. As torch's
  ReduceLROnPlateau and Keras' callback of that name, but as a factor on any base schedule, with few large cuts and an
  end.
- `greedy`: raise the rate while the metric improves, lower it while it does not (GreedyLR, arXiv:2512.14527, section
  3). Deviations: a factor on any base schedule, bounded on both sides relative to it, where the paper's scheduler owns
  the rate and bounds it absolutely.
- `rollback`: plateau, and each cut first returns to the best weights seen.
- `climb`: rollback, and the rate rises with every improvement until the first cut. A rate that was chosen too low
  finds its height, one that was chosen too high loses one evaluation a cut, and few evaluations are spent. It goes back
  to a mean of the best weights and the latest, unless these are no better than the first: of noisy evaluations the best
  is one by chance, and a mean of weights along a path is as if the rate had been lower (Izmailov et al., "Averaging
  Weights Leads to Wider Optima", arXiv:1803.05407, section 3; there of many cycles, here of two points).

All but `greedy` wait until the best value is better than the first by a share of it (`LEARNS`): a model that has not
begun to learn (a network with batch norm at its first evaluations, one that stays at chance for a while) does not
overfit. Until then only values that are far worse than the first (`FAR_WORSE`) are stalls.

Nothing here knows torch or the Trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from .settings import FAR_WORSE, LEARNS, RAISE, ControllerSettings

Action = Literal["keep", "cut", "raise", "rollback", "stop"]


@dataclass(frozen=True)
class ControllerState:
    """Everything a decision depends on besides the settings and the new value.

    Attributes:
        scale: the factor on the base schedule, 1.0 at the start.
        best: the best value so far; None before the first.
        first: the first value that is a number; None before it.
        bad: values since then that were no better.
        cuts: cuts so far.
        cooldown: values still to let pass after a cut before `bad` counts again.
        stopped: whether the run was stopped.
    """

    scale: float = 1.0
    best: float | None = None
    first: float | None = None
    bad: int = 0
    cuts: int = 0
    cooldown: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do now, why, and whether the weights that gave the value are the best so far.

    Attributes:
        latest: of a rollback: the share of the latest weights in those that the run goes on with.
    """

    action: Action
    reason: str
    improved: bool = False
    latest: float = 0.0


def is_better(value: float, best: float | None, *, greater: bool, min_delta: float) -> bool:
    """Whether `value` improves on `best` by more than `min_delta`; a NaN never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if greater else value < best - min_delta


def decide(
    settings: ControllerSettings, state: ControllerState, value: float, *, greater: bool, warming_up: bool
) -> tuple[ControllerState, Decision]:
    """The next state and the decision for one new value of the metric.

    While the base schedule warms up, the best value is kept and nothing else happens.
    """
    improved = is_better(value, state.best, greater=greater, min_delta=settings.min_delta)
    if improved:
        state = replace(state, best=value)
    if state.first is None and not math.isnan(value):
        state = replace(state, first=value)
    if state.stopped or warming_up:
        return replace(state, bad=0), Decision("keep", "warming up" if warming_up else "stopped", improved)
    if settings.kind == "greedy":
        return _greedy(settings, state, value, improved)
    state, decision = _plateau(settings, state, value, improved, greater)
    if decision.action == "rollback" and is_better(value, state.first, greater=greater, min_delta=settings.min_delta):
        decision = replace(decision, latest=settings.latest)
    return state, decision


def _plateau(
    settings: ControllerSettings, state: ControllerState, value: float, improved: bool, greater: bool
) -> tuple[ControllerState, Decision]:
    learns = has_learned(settings, state, greater=greater)
    if improved and learns:
        return _climbed(settings, replace(state, bad=0), f"{_described(value)} is the best so far")
    # What nothing has come of yet is no stall, and no reason to go faster.
    if improved or (not learns and _from_the_first(settings, state, value, greater) <= FAR_WORSE):
        return replace(state, bad=0), Decision("keep", f"{_described(value)}: nothing is learned yet", improved)
    if state.cooldown > 0:
        return replace(state, bad=0, cooldown=state.cooldown - 1), Decision("keep", "cooling down")
    bad = state.bad + 1
    if bad < (settings.cut_patience if learns else max(settings.cut_patience, settings.first_patience)):
        return replace(state, bad=bad), Decision("keep", f"{value:.6g} is no better, {bad} in a row")
    reason = f"{_described(value)} is no better than {_described(state.best)}, {bad} in a row"
    if state.cuts < settings.most_cuts and state.scale > settings.lowest_scale:
        cut = replace(
            state,
            scale=max(state.scale * settings.cut_factor, settings.lowest_scale),
            bad=0,
            cuts=state.cuts + 1,
            cooldown=settings.cooldown,
        )
        return cut, Decision("rollback" if settings.goes_back else "cut", reason)
    if settings.stop:
        return replace(state, bad=0, stopped=True), Decision("stop", f"{reason}, after {state.cuts} cuts")
    return replace(state, bad=0), Decision("keep", f"{reason}, and the last cut has been made")


def has_learned(settings: ControllerSettings, state: ControllerState, *, greater: bool) -> bool:
    """Whether the best value shows that the model has begun to learn; until then little is decided."""
    return state.best is None or _from_the_first(settings, state, state.best, greater) > LEARNS


def _from_the_first(settings: ControllerSettings, state: ControllerState, value: float, greater: bool) -> float:
    """How far a value is from the first one, as a share of it; infinite where `min_delta` tells what a change is.

    Of an accuracy and its like it is the share of the mistakes, where these are fewer.
    """
    if settings.min_delta > 0 or state.first is None:
        return math.inf
    is_share = greater and 0 <= state.first <= 1
    unit = min(state.first, 1 - state.first) if is_share else abs(state.first)
    if unit == 0:
        return 0.0 if value == state.first else math.inf
    return abs(value - state.first) / unit


def _climbed(settings: ControllerSettings, state: ControllerState, reason: str) -> tuple[ControllerState, Decision]:
    scale = min(state.scale * RAISE, settings.highest_scale)
    climbs = settings.kind == "climb" and not state.cuts and scale > state.scale
    if climbs:
        state = replace(state, scale=scale)
    return state, Decision("raise" if climbs else "keep", reason, improved=True)


def _greedy(
    settings: ControllerSettings, state: ControllerState, value: float, improved: bool
) -> tuple[ControllerState, Decision]:
    bad = 0 if improved else state.bad + 1
    if improved:
        scale = min(state.scale / settings.cut_factor, settings.highest_scale)
        action: Action = "raise"
        reason = f"{value:.6g} is the best so far"
    elif bad > settings.cut_patience:
        scale = max(state.scale * settings.cut_factor, settings.lowest_scale)
        action = "cut"
        reason = f"{_described(value)} is no better than {_described(state.best)}"
    else:
        scale, action, reason = state.scale, "keep", f"{_described(value)} is no better, {bad} in a row"
    if scale == state.scale:
        action = "keep"
    return replace(state, scale=scale, bad=bad, cuts=state.cuts + (action == "cut")), Decision(action, reason, improved)


def _described(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"
