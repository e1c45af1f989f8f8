"""The collator that carries what is known about a preference, beside the preference, to TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import mends
from ...errors import PluginError

NAME = "behavioral"
WEIGHT, FLIP = "behavior_weight", "behavior_eps"
# Whether a token of a whole text (prompt, then completion) is the assistant's; made by `fit_to_length.py`.
MASK = "{}_assistant_mask"
MASKS = tuple(MASK.format(side) for side in ("chosen", "rejected", "completion"))
COLUMNS = (WEIGHT, FLIP, *MASKS)


@dataclass(frozen=True)
class BehavioralPreferenceCollator:
    """Wraps a TRL collator: corrects its masks, and adds `behavior_weight` and `behavior_eps` to its batch.

    Takes the rows of three trainers, which it distinguishes by their columns:

    - DPO: `prompt_ids`, `chosen_ids`, `rejected_ids`. `completion_mask` [2B, L] is 0 where the optional columns
      `chosen_assistant_mask` and `rejected_assistant_mask` are 0 (lists for prompt and completion together): turns of
      the user or of a tool within a completion are not scored. KTO's is `completion_assistant_mask`.
    - KTO: `prompt_ids`, `completion_ids`, `label`. The completions of the KL estimate are the batch's own, each with
      the prompt of the next row, whatever the column `KL_completion_ids` says: TRL 1.16 makes that column before it
      knows the batches. It is kept where reference log-probabilities of it (`ref_KL_logps`) are there.
    - reward: `chosen_ids`, `rejected_ids`.

    Rows of other trainers (SFT, images) go to `inner` as they are. Where rows have the columns, the batch has
    `behavior_weight`, float32 [B], and `behavior_eps` (the probability that the preference is the wrong way round),
    float32 [B]: of a pair one number, although it is two rows of `input_ids`.

    Args:
        inner: TRL's collator for the trainer (`trl.trainer.dpo_trainer.DataCollatorForPreference(...)`, ...).

    Raises:
        PluginError: some rows have a weight and others none, a weight is below 0 or not finite, an eps is not in
            [0, 0.5), or cutting at `inner.max_length` left a pair without a difference.
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [{name: value for name, value in row.items() if name not in COLUMNS} for row in examples]
        rotated = "KL_completion_ids" in rows[0] and "ref_KL_logps" not in rows[0]
        before = [examples[-1], *examples[:-1]]
        if rotated:
            for row, other in zip(rows, before, strict=True):
                row["KL_completion_ids"] = other["completion_ids"]
        batch = dict(self.inner(rows))
        if "completion_ids" in rows[0]:
            _score_assistant(batch["completion_mask"], [(row, row, "completion") for row in examples])
        if rotated:
            others = zip(examples, before, strict=True)
            _score_assistant(batch["KL_completion_mask"], [(row, other, "completion") for row, other in others])
        if "chosen_ids" in rows[0] and "prompt_ids" in rows[0]:
            self._refuse_equal(batch, len(rows))
            texts = [(row, row, side) for side in ("chosen", "rejected") for row in examples]
            _score_assistant(batch["completion_mask"], texts)
        for name, low, high in ((WEIGHT, 0.0, float("inf")), (FLIP, 0.0, 0.5)):
            values = _column(examples, name, low, high)
            if values is not None:
                batch[name] = values
        return batch

    def _refuse_equal(self, batch: Mapping[str, Tensor], pairs: int) -> None:
        chosen, rejected = batch["input_ids"].split(pairs)
        same = (chosen == rejected).all(1) & (batch["attention_mask"][:pairs] == batch["attention_mask"][pairs:]).all(1)
        if same.any():
            raise PluginError(
                f"{NAME}: {int(same.sum())} of a batch's {pairs} pairs have one text on both sides within max_length="
                f"{getattr(self.inner, 'max_length', None)} tokens, and teach nothing. Drop them, raise max_length, or "
                f"let the technique {NAME} fit the data (`with_plugins(DPOTrainer, 'behavioral')`).",
                code="data-rows",
            )


def _score_assistant(
    completion_mask: Tensor, texts: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], str]]
) -> None:
    """Set turns of others to 0, in place. A text is the row of its prompt, the row of its completion, and its side."""
    for scored, (prompt_row, completion_row, side) in zip(completion_mask, texts, strict=True):
        mask = completion_row.get(MASK.format(side))
        if mask:
            start = len(prompt_row["prompt_ids"])
            kept = torch.tensor(mask[len(completion_row["prompt_ids"]) :][: len(scored) - start])
            scored[start : start + len(kept)] *= kept.to(scored)


def _column(examples: Sequence[Mapping[str, Any]], name: str, low: float, high: float) -> Tensor | None:
    values = [example.get(name) for example in examples]
    known = [value for value in values if value is not None]
    if not known:
        return None
    wrong = [value for value in known if not (low <= value < high)]
    if wrong or len(known) != len(values):
        raise PluginError(
            f"{NAME}: column {name} "
            + (f"holds {wrong[0]}, outside [{low:g}, {high:g})." if wrong else "is empty in some rows.")
            + " Give every row a number in that range, or leave the column out.",
            code="data-rows",
            mend=[mends.remove_column(name)],
        )
    return torch.tensor(known, dtype=torch.float32)
