"""When `hf-ft suggest` names `multitask`: the script has made a model of several tasks, and trains it without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...suggest.suggestion import Because, Figure, Suggestion
from .tasks import NAME

if TYPE_CHECKING:
    from ...suggest import RunFacts

FASTER = Figure(
    "multitask",
    "sentences a second, learned for all tasks: joint against a model of its own for each task",
    "ratio",
    2.79,
)
BETTER = Figure("multitask", "ner_f1, joint against a model of its own", "difference", 3.1)
WORSE = Figure("multitask", "upos_accuracy, joint against a model of its own", "difference", -0.2)


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from ...suggest.model_facts import SEVERAL

    sets, tasks = facts.data.sets, facts.model.tasks
    if facts.model.kind != SEVERAL or facts.trl or facts.schedule.own_loss == "compute_loss_func":
        return None
    several = Because(
        "data.sets",
        list(sets),
        f"train_dataset is {len(sets)} data sets ({', '.join(sets)}), which stock Trainer cannot draw batches from.",
    )
    heads = Because(
        "model.tasks",
        list(tasks),
        f"The model has {len(tasks)} tasks ({', '.join(tasks)}), and a stock Trainer neither weighs nor scores each, "
        f"nor lets new heads learn faster. Three tasks at once were learned from {FASTER} times the sentences a second "
        f"that a model for each takes; entities gained {BETTER:+} points by it, parts of speech {WORSE:+}.",
    )
    return Suggestion(
        spec=NAME,
        does="Each task's loss is the mean over its own items in the step, heads learn at 8 times the encoder's rate, "
        "and evaluation scores each task, and their mean.",
        because=(several, heads) if sets else (heads,),
        not_when="A task's own model, trained for as long, can be better: tasks share the steps.",
        weight=3 if sets else 2,
    )
