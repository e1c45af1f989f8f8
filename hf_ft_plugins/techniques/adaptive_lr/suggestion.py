"""When `hf-ft suggest` names `adaptive-lr`: a classifier goes often over its data, and nothing heeds its evaluations.

Other models were not measured; a small language model that learns from nothing (`examples/instruct_causal.py`) ended
where it would have without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import PluginError
from ...suggest.suggestion import Because, Figure, Suggestion
from .settings import NAME, WatchSettings

if TYPE_CHECKING:
    from ...suggest import RunFacts

# With fewer a run is over before anything is decided.
EVALUATIONS = 3
# Of the runs that were measured, the one that saw its data least often: 60 steps of 16 over 200 reviews.
PASSES = 4.8
RESULTS = "adaptive_lr"
NLL = "worst-rate NLL, end against the baseline's best"
LINEAR = Figure(RESULTS, f"digits, clean dev: stock linear: {NLL}", "ours", 2.48)
OURS = Figure(RESULTS, f"digits, clean dev: default: {NLL}", "ours", 0.82)
FEWEST_STEPS = Figure(RESULTS, "digits, clean dev: default: steps, mean over rates", "ratio", 0.56)
MOST_STEPS = Figure(RESULTS, "sentiment, 10% wrong labels: default: steps, mean over rates", "ratio", 0.89)
# Where nothing is evaluated: fewer passes than these, or fewer rows, were not measured.
OFTEN, MANY, SHARE = 20, 200, 0.2
UNEVALUATED = f"digits, nothing evaluated: default, hold_out={SHARE}"
ENDS = f"{UNEVALUATED}: worst-rate NLL, end against the baseline's end"
HELD_OUT = Figure(RESULTS, ENDS, "ours", 1.01)
LEARNED_BY_HEART = Figure(RESULTS, ENDS, "baseline", 2.48)
MISSED = Figure(RESULTS, f"{ENDS} at its best rate", "ratio", 1.12)
HELD_OUT_STEPS = Figure(RESULTS, f"{UNEVALUATED}: steps, mean over rates", "ratio", 0.3)


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from ...suggest.model_facts import CLASSIFIER

    run = facts.schedule
    if facts.model.kind != CLASSIFIER or facts.trl or run.early_stopping:
        return None
    passes = run.passes or 0.0
    if not facts.data.evaluation_sets:
        return _with_rows_held_out(facts, passes)
    if run.evaluations < EVALUATIONS or passes < PASSES or _is_refused(facts):
        return None
    kept = " The best checkpoint is kept already, so what it saves is steps." if run.keeps_best else ""
    return Suggestion(
        spec=NAME,
        does="The rate rises while evaluations improve; at the first that does not, the run goes back towards its "
        "best weights with a lower rate, and it ends with them.",
        because=(
            Because(
                "schedule.passes",
                round(passes, 1),
                f"The run goes {passes:.0f} times over its data and is evaluated {run.evaluations} times, and nothing "
                "ends it or lowers its rate when the evaluations stop improving. On 300 digits with wrong labels, at "
                f"the worst of three rates, it left a test loss of {OURS} where a linear schedule left {LINEAR}."
                f"{kept}",
            ),
            Because(
                "schedule.evaluations",
                run.evaluations,
                f"It needed {FEWEST_STEPS:.0%} to {MOST_STEPS:.0%} of the steps of stock's plateau schedule with early "
                "stopping (digits, film reviews).",
            ),
        ),
        not_when="Where the rate is tuned and the run ends before it overfits, there is little to gain. Noisy "
        f"evaluations end a run early: {NAME}:patience=2.",
    )


def _with_rows_held_out(facts: RunFacts, passes: float) -> Suggestion | None:
    rows = facts.data.examples or 0
    if passes < OFTEN or rows < MANY or _is_refused(facts):
        return None
    return Suggestion(
        spec=f"{NAME}:hold_out={SHARE}",
        does=f"A share of {SHARE} of the training rows is kept to evaluate on; the rate rises while that improves, and "
        "the run ends, with its best weights, when it does not.",
        because=(
            Because(
                "schedule.passes",
                round(passes, 1),
                f"The run goes {passes:.0f} times over its {rows} rows and is never evaluated, so nothing shows when "
                "it begins to learn them by heart. On 300 digits with wrong labels, at the worst of three rates, it "
                f"left a test loss of {HELD_OUT} where a linear schedule left {LEARNED_BY_HEART}, in "
                f"{HELD_OUT_STEPS:.0%} of the steps.",
            ),
        ),
        not_when="Where labels are right and the rate is tuned, the rows that are held out are missed: at stock's best "
        f"rate it left {MISSED} times its test loss. Evaluation data of its own are better.",
    )


def _is_refused(facts: RunFacts) -> bool:
    from .unsupported import refuse_unsupported

    try:
        refuse_unsupported(None, WatchSettings(), facts.trainer)
    except PluginError:
        return True
    return False
