"""When `hf-ft suggest` names `behavioral`: rows have weights, prompts are computed twice, or answers are cut."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from ...suggest.suggestion import Because, Suggestion
from .collator import FLIP, NAME, WEIGHT

if TYPE_CHECKING:
    from ...suggest import RunFacts

# Share of all tokens that is computed a second time: below it, laying pairs out costs what it saves.
SHARED = 0.25
# Share of pairs longer than the limit.
CUT = 0.05
LOOKED_AT = 500
WEIGHS = "Each row's gradient is scaled by its weight, and each pair has its own flip probability in the loss."
FITS = "A prompt past the limit loses its oldest turns, and the answers keep their ends."
SHARES = "What both answers begin with is computed once, where that is exact."
ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
REACTIONS = ("kto_tag", "label", "feedback", "thumbs", "reaction", "vote", "rating")


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from ...errors import PluginError
    from .trl_trainers import contract_of

    try:
        contract = contract_of(type(facts.trainer))
    except PluginError:
        return None
    if contract == "sft":
        return _of_a_log(facts)
    found = {WEIGHS: _doubts(facts), FITS: _cut(facts), SHARES: _shared(facts) if contract == "dpo" else None}
    reasons = {does: reason for does, reason in found.items() if reason is not None}
    if not reasons:
        return None
    return Suggestion(
        spec=NAME,
        does=" ".join(reasons),
        because=tuple(reasons.values()),
        not_when="Few pairs teach a small model little, whatever weighs them; short prompts save little.",
        weight=2,
    )


def _doubts(facts: RunFacts) -> Because | None:
    columns = [name for name in (WEIGHT, FLIP) if name in facts.data.columns]
    if not columns:
        return None
    told = []
    for name in columns:
        values = [float(row[name]) for row in _rows(facts) if row.get(name) is not None]
        told.append(f"{name} is {sum(values) / len(values):.2f} on average" if values else name)
    return Because(
        "data.columns",
        columns,
        f"The rows say how much each counts and how often such a sign is wrong ({', '.join(told)}), and TRL's trainer "
        "leaves these columns out.",
    )


def _cut(facts: RunFacts) -> Because | None:
    args = facts.trainer.args
    limit = args.max_length if getattr(args, "truncation_mode", "keep_start") == "keep_start" else None
    lengths = [
        len(row["prompt_ids"]) + max(len(row.get(side) or ()) for side in ANSWERS)
        for row in _rows(facts)
        if "prompt_ids" in row
    ]
    longer = sum(length > limit for length in lengths) if limit else 0
    if not lengths or longer < CUT * len(lengths):
        return None
    return Because(
        "data.cut",
        round(longer / len(lengths), 3),
        f"{longer} of the first {len(lengths)} rows are longer than max_length={limit}, and TRL cuts the ends of their "
        "answers, where pairs differ.",
    )


def _shared(facts: RunFacts) -> Because | None:
    import torch

    tokens = again = 0
    for batch in facts.batches:
        mask, completion = batch.get("attention_mask"), batch.get("completion_mask")
        if not isinstance(mask, torch.Tensor) or not isinstance(completion, torch.Tensor):
            return None
        prompt = (mask != 0) & (completion == 0)
        tokens += int((mask != 0).sum())
        again += int(prompt[: len(prompt) // 2].sum())
    if not tokens or again < SHARED * tokens:
        return None
    share = round(again / tokens, 3)
    return Because(
        "data.shared",
        share,
        f"{share:.0%} of the tokens of the first {len(facts.batches)} batches are prompts that are computed a second "
        "time, once for each answer.",
    )


def _of_a_log(facts: RunFacts) -> Suggestion | None:
    from ...feedback import label_of

    for name in REACTIONS:
        if name not in facts.data.columns:
            continue
        words = [label_of(row.get(name)) for row in _rows(facts)]
        good, bad = words.count(True), words.count(False)
        if good and bad:
            return Suggestion(
                spec=f"{NAME}:log=LOG",
                does="The log becomes good answers to learn from; contradictions and near-duplicates are dropped, "
                "personal data are scrubbed.",
                because=(
                    Because(
                        "data.columns",
                        [name],
                        f"The column {name!r} says of {good} of the first {len(words)} rows that they are good and of "
                        f"{bad} that they are bad, and SFTTrainer learns both alike.",
                    ),
                ),
                not_when="Signs that are as often wrong as right teach nothing: `hf-ft behavioral inspect LOG` tells.",
                first="Put the log's file or folder in the place of LOG; it takes the place of the training data.",
            )
    return None


def _rows(facts: RunFacts) -> list[dict[str, Any]]:
    dataset = facts.trainer.train_dataset
    if hasattr(dataset, "select") and hasattr(dataset, "with_format"):
        return list(dataset.with_format(None).select(range(min(LOOKED_AT, len(dataset)))))
    return [] if facts.data.streamed else list(islice(iter(dataset), LOOKED_AT))
