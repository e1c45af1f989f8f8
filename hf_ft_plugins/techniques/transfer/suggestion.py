"""When `hf-ft suggest` names `transfer`: a handful of texts a class, a new head on an encoder of BERT's kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...suggest.suggestion import Because, Figure, Suggestion

if TYPE_CHECKING:
    from ...suggest import RunFacts

NAME = "transfer"
# With 32 texts a class it was above stock by more than the noise in one setting of two and by less in the other; with
# 128 by no more than the noise.
ROWS_A_CLASS = 32
GAINS = {
    rows: tuple(
        Figure("transfer_text", f"{data} with {rows} a class: accuracy, transfer", "difference", points)
        for data, points in (("sentiment", gains[0]), ("subjectivity", gains[1]))
    )
    for rows, gains in {8: (2.8, 2.5), 32: (2.8, 1.3), 128: (0.6, 0.6)}.items()
}


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    labels, model = facts.labels, facts.model
    if labels is None or labels.kind != "single_label" or facts.wrong_labels or not _can_read_out(facts):
        return None
    rows = labels.rows_a_class
    if rows is None or rows > ROWS_A_CLASS:
        return None
    few, some, many = (" and ".join(f"{gain:+.1f}" for gain in GAINS[count]) for count in sorted(GAINS))
    return Suggestion(
        spec=NAME,
        does="The head is solved in closed form on a mean over the tokens, where examples that are left out say that "
        "this is better, before all layers learn.",
        because=(
            Because(
                "labels.rows_a_class",
                round(rows, 1),
                f"{sum(labels.counts.values())} labelled texts for {labels.classes} classes, {rows:.0f} a class, on a "
                f"pretrained {model.name} whose head is new. Over stock at its best rate it gained {few} points of "
                f"accuracy with 8 a class and {some} with 32 (film reviews, subjectivity; MiniLM-L6).",
            ),
        ),
        not_when=f"With many examples fine-tuning does as well: {many} points with 128 a class.",
        weight=2,
    )


def _can_read_out(facts: RunFacts) -> bool:
    """Whether the technique can solve the head: what it gained on few texts is that."""
    from ...models.inputs import bare
    from ...suggest.model_facts import CLASSIFIER
    from .read_out import MOST_EXAMPLES, KeepsReadOut, written_weights

    model = facts.model
    fits = model.kind == CLASSIFIER and model.input == "input_ids" and model.pretrained and model.new_head
    whole = model.trained == model.parameters and not (model.adapter or model.quantised or facts.schedule.sharded)
    if not (fits and whole) or (facts.data.examples or MOST_EXAMPLES + 1) > MOST_EXAMPLES:
        return False
    try:
        written_weights(bare(facts.trainer.model))
    except KeepsReadOut:
        return False
    return True
