"""What a model's labels can be: classes of rows or of tokens, several at once, numbers, or none that its head knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .inputs import bare

Kind = Literal["single_label", "multi_label", "regression", "token"]
IGNORED = -100
PROBLEM_TYPES: dict[str, Kind] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
# Of transformers' classes, those whose labels are classes or numbers that the head's outputs stand for.
CLASSIFIERS = ("Sequence", "Text", "Image", "Audio", "Video")
# The rest, and what their labels are instead.
OTHER_LABELS = {
    "MultipleChoice": "its one output scores a choice, and the labels are positions among the choices",
    "NextSentence": "its labels say whether a text follows, and its two outputs are given",
    "QuestionAnswering": "its labels are places in the text, or its answers a vocabulary of their own",
    "Segmentation": "its labels are pictures",
    "ObjectDetection": "its labels are boxes",
    "AudioFrame": "its labels are of frames of sound",
    "XVector": "its labels are speakers, which its loss has weights for, and no output",
    "CTC": "its labels are characters of its vocabulary",
    "LM": "its labels are tokens of its vocabulary",
    "Generation": "its labels are tokens of its vocabulary",
    "PreTraining": "its labels are made by pretraining",
}


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        column: where they stand.
        kind: one class a row, several, numbers, or one class a token.
        names: of the model's outputs that they ask for, in the order of the labels' numbers; of a regression, one name
            a target.
        values: of `single_label`, the class of each row, int64 [rows], -100 where it is ignored; else, and where the
            data is streamed, None.
    """

    column: str
    kind: Kind
    names: tuple[str, ...]
    values: np.ndarray | None = None

    @property
    def problem_type(self) -> str:
        """What transformers calls it in `config.problem_type`."""
        return next((name for name, kind in PROBLEM_TYPES.items() if kind == self.kind), "single_label_classification")

    def counts(self) -> np.ndarray:
        """Rows of each class, int64 [classes]; single_label only."""
        assert self.values is not None
        return np.bincount(self.values[self.values != IGNORED], minlength=len(self.names))


def classifies_tokens(model: Any) -> bool:
    """Whether each token has a label."""
    return any(cls.__name__.endswith("ForTokenClassification") for cls in type(bare(model)).__mro__)


def other_labels(model: Any) -> str | None:
    """Why the model's labels say nothing of its head's outputs; None where they do, or the head is the script's own."""
    classes = type(bare(model)).__mro__
    library = next((cls for cls in classes if cls.__module__.startswith("transformers.")), None)
    if library is None:
        return None
    name = library.__name__
    if "Token" in name or any(f"{what}Classification" in name for what in CLASSIFIERS):
        return None
    if library is not classes[0] and not any(part in name for part in ("For", "LM", "Heads")):
        return None  # A head of the script's own on transformers' base model.
    return next((why for part, why in OTHER_LABELS.items() if part in name), "its labels are no classes of its head")
