"""When `hf-ft suggest` names `text2text`: pairs whose batches are mostly padding, or alike in length, or stepped by a
loss that is too large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...suggest.reasons import loss_is_too_large
from ...suggest.suggestion import Because, Figure, Suggestion
from .architecture import NAME

if TYPE_CHECKING:
    from ...suggest import RunFacts

# Of the pairs that were measured, those that padded least in random batches: Tatoeba's, 53 % of the slots.
PADDING = 0.5
# Share of the rows that begin with a prompt; the others may be cut or empty.
PROMPTS = 0.9
LEAST = Figure("text2text", "real target tokens per CPU s, T5 on Tatoeba: ours against random", "ratio", 1.75)
MOST = Figure("text2text", "real target tokens per CPU s, T5 on translation: ours against random", "ratio", 2.79)
SOONER = Figure("text2text_quality", "Tatoeba: CPU s to stock's dev loss, ours, longer", "ratio", 0.59)
SETS = ("instruct_causal", "Tatoeba")
GROUPED = tuple(
    Figure("text2text_quality", f"{data}: dev loss, stock, group_by_length", "ratio", ratio)
    for data, ratio in zip(SETS, (1.26, 1.02), strict=True)
)
OURS = tuple(
    Figure("text2text_quality", f"{data}: dev loss, ours", "ratio", ratio)
    for data, ratio in zip(SETS, (1.03, 1.00), strict=True)
)


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    if not _are_pairs(facts):
        return None
    reasons = [one for one in (_padding(facts), _grouped(facts), loss_is_too_large(facts)) if one is not None]
    if not reasons:
        return None
    return Suggestion(
        spec=NAME,
        does="A batch holds as many real target tokens as now, of pairs of unlike length, and goes through the model "
        "in parts, each as wide as its own pairs; the loss is the mean over the step's real target tokens.",
        because=tuple(reasons),
        not_when="A very small model gains less time, since each call counts. Measured on a CPU; on a GPU parts that "
        "save little are not cut off.",
        weight=2,
    )


def _are_pairs(facts: RunFacts) -> bool:
    from ...suggest.model_facts import CAUSAL, SEQ2SEQ

    model, run = facts.model, facts.schedule
    if facts.trl or run.own_loss or run.sharded or model.input != "input_ids" or facts.data.lengths is None:
        return False
    if model.kind == SEQ2SEQ:
        return facts.data.target_width > 0
    return model.kind == CAUSAL and facts.data.prompts >= PROMPTS


def _padding(facts: RunFacts) -> Because | None:
    data = facts.data
    if data.padding is None or data.padding < PADDING or data.lengths is None:
        return None
    shortest, mean, longest = data.lengths
    return Because(
        "data.padding",
        data.padding,
        f"{data.padding:.0%} of the slots of the first {data.batches} batches are padding: rows of {shortest} to "
        f"{longest} tokens, {mean:.0f} on average. On pairs with as much or more, a T5 was trained on {LEAST} to "
        f"{MOST} times the real target tokens in a CPU second, and came to stock's loss in {SOONER:.0%} of the time "
        "(Tatoeba).",
    )


def _grouped(facts: RunFacts) -> Because | None:
    if facts.schedule.sampling != "group_by_length":
        return None
    figures = "; ".join(
        f"{data}: {stock} times that of random batches, here {ours}"
        for data, stock, ours in zip(SETS, GROUPED, OURS, strict=True)
    )
    return Because(
        "schedule.sampling",
        facts.schedule.sampling,
        f"group_by_length makes batches of pairs alike in length, which taught less in equal steps (dev loss of "
        f"{figures}), at about the speed of this technique.",
    )
