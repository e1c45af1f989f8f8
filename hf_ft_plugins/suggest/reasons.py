"""Reasons that several techniques have for a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .suggestion import Because

if TYPE_CHECKING:
    from .facts import RunFacts


def loss_is_too_large(facts: RunFacts) -> Because | None:
    """Of a model that does not divide its loss by the step's targets, under accumulation."""
    times = facts.schedule.loss_too_large
    if times == 1:
        return None
    return Because(
        "schedule.loss_too_large",
        times,
        f"With gradient_accumulation_steps={times} this model's loss and gradients are {times} times too large: it "
        "does not divide by num_items_in_batch, which Trainer counts on. That was tried on one row.",
    )
