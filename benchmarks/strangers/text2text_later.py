"""text2text: data given after the trainer was built.

Reference: each text's own generation, or the score of the same data given at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from benchmarks.strangers.situation import Situation
from benchmarks.strangers.text2text import BART, TOKENIZER, hold, model_of, trainer_of

TEXTS = ["ab", "cdefg", "h", "ij", "klm"]
SPEC = "text2text:examples=0,metrics=false"


class Once(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream of torch's, which may be read once."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows


FORMS: dict[str, Callable[[Dataset], Any]] = {
    "texts": lambda data: data,
    "texts without references": lambda data: data.remove_columns("target"),
    "a list": lambda data: data.to_list(),
    "a stream": lambda data: data.to_iterable_dataset(),
    "a stream of torch's": lambda data: Once(data.to_list()),
    "a transform": lambda data: data.with_transform(dict),
}


def texts() -> Dataset:
    return Dataset.from_dict({"source": TEXTS, "target": [text[::-1] for text in TEXTS]})


def bart() -> Any:
    return model_of("BartForConditionalGeneration", "BartConfig", {**BART, "init_std": 0.5})


def check_predicted(make: Callable[[Dataset], Any], **changes: Any) -> None:
    changes |= {"predict_with_generate": True, "generation_max_length": 6, "per_device_eval_batch_size": 2}
    trainer = trainer_of(bart(), texts(), SPEC, **changes)
    found = trainer.predict(make(texts())).predictions
    hold(len(found), len(TEXTS), "predictions")
    for row, text in zip(found, TEXTS, strict=True):
        alone = trainer.model.generate(**TOKENIZER(text, return_tensors="pt"), max_length=6)[0]
        hold(np.asarray(row)[: len(alone)], alone, f"prediction of {text!r}")


def scored_as_at_the_start() -> None:
    trainer = trainer_of(bart(), texts(), SPEC, eval_dataset=texts())
    expected = trainer.evaluate()["eval_loss"]
    hold(trainer.evaluate(texts())["eval_loss"], expected, "eval_loss")
    hold(trainer.evaluate({"one": texts()})["eval_one_loss"], expected, "eval_one_loss")


def read_by_the_scripts_collator() -> None:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        sources, targets = ([row[name] for row in rows] for name in ("source", "target"))
        batch = TOKENIZER(sources, text_target=targets, padding=True, return_tensors="pt")
        batch["labels"][batch["labels"] == 0] = -100
        return dict(batch)

    trainer = trainer_of(bart(), texts(), SPEC, collate, eval_dataset=texts(), remove_unused_columns=False)
    with torch.no_grad():
        expected = float(trainer.model.eval()(**collate(texts().to_list())).loss)
    hold(trainer.evaluate()["eval_loss"], expected, "eval_loss")


def situations() -> list[Situation]:
    grouped = partial(check_predicted, FORMS["texts"], train_sampling_strategy="group_by_length")
    return [
        *(Situation("data given later", name, partial(check_predicted, make)) for name, make in FORMS.items()),
        Situation("data given later", "texts, grouped by length", grouped),
        Situation("data given later", "scored as at the start", scored_as_at_the_start),
        Situation("collators", "reads the texts itself", read_by_the_scripts_collator),
    ]
