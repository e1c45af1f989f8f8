"""What the labels of a training run are: what the model's config says, then the data set's features, then a guess.

    labels = labels_of(train_dataset, "transfer", model)

What the script says in the config (`problem_type`, one output or another number than the default two, names of classes)
holds; features say what it leaves open; values are only looked at for what neither says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import PluginError
from .class_names import are_placeholders, match, names_in, placeholder
from .inputs import bare
from .label_columns import FirstBatches, collated_labels, columns_of, label_column, label_values

logger = logging.getLogger(__name__)

Kind = Literal["single_label", "multi_label", "regression", "token"]
IGNORED = -100
PROBLEM_TYPES: dict[str, Kind] = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
# Of transformers' classes, those whose labels are classes or numbers that the head's outputs stand for.
CLASSIFIERS = ("Sequence", "Text", "Image", "Audio", "Video")
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


@dataclass(frozen=True)
class _Said:
    """What the config says, of which nothing is guessed; empty without a model."""

    model: str = ""
    kind: Kind | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def by(cls, model: Any) -> _Said:
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "num_labels"):
            return cls()
        names, kind = names_in(config), PROBLEM_TYPES.get(config.problem_type or "")
        if classifies_tokens(model):
            kind = "token"
        elif kind is None and len(names) == 1:
            kind = "regression"  # As transformers has it.
        return cls(type(bare(model)).__name__, kind, names)

    @property
    def named(self) -> bool:
        return bool(self.names) and not are_placeholders(self.names)


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


def labels_of(
    dataset: Any,
    technique: str,
    model: Any = None,
    *,
    label_names: Sequence[str] = (),
    first_batches: FirstBatches | None = None,
) -> Labels | None:
    """The labels of a `datasets.Dataset`; None where it has no features or no column of labels.

    Without a config that says otherwise, a `ClassLabel` or a column of whole numbers is one class a row; a list of
    `ClassLabel` is one class a token; a list of shares of 0 to 1 of equal length is several classes a row; a fractional
    number is a regression.

    Args:
        model: whose config is asked first.
        label_names: what the script calls labels.
        first_batches: of the training data as they are collated, by their number of rows: a collator may take another
            column, or make the labels itself, of which nothing is known then.

    Raises:
        PluginError: the labels cannot be what the config says, or nothing says what they are; rows without a label,
            texts, classes out of range.
    """
    given = None
    if first_batches is not None and hasattr(dataset, "__len__") and len(dataset):
        try:
            given = collated_labels(first_batches, label_names)
        except Exception as error:
            # Training would fail the same way, if it is this loader that it reads.
            logger.warning("%s: the first rows cannot be collated (%s); labels are read as stored.", technique, error)
    column = label_column(dataset, label_names, given)
    if column is None:
        return None
    return _Reader(dataset, column, technique, _Said.by(model)).read()


class _Reader:
    """One column, read in the light of what the config says."""

    def __init__(self, dataset: Any, column: str, technique: str, said: _Said) -> None:
        self.dataset, self.column, self.technique, self.said = dataset, column, technique, said
        self.streamed = not hasattr(dataset, "__len__")
        self.values = [] if self.streamed else label_values(dataset, column)
        feature = columns_of(dataset).get(column)
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        self.listed = inner is not None or (feature is None and bool(self.values) and isinstance(self.values[0], list))
        self.feature, self.length = inner if inner is not None else feature, getattr(feature, "length", -1)
        self.names = tuple(getattr(self.feature, "names", None) or ())

    def read(self) -> Labels | None:
        if not self.streamed:
            self._refuse_no_number()
        if self.said.kind == "token" or (self.listed and self.names and not self.said.model):
            return self._tokens()
        if self.listed:
            return self._lists()
        kind = self.said.kind or self._kind_of_numbers()
        if kind == "regression":
            return Labels(self.column, kind, self._outputs(1))
        if kind == "multi_label":
            raise self._error(
                f"problem_type=multi_label_classification, and the column {self.column!r} holds one number a row. Make "
                "it a list of 0.0 or 1.0 for each class, or leave problem_type out"
            )
        return self._classes(self.values)

    # ---- one label a row ----

    def _kind_of_numbers(self) -> Kind:
        """A guess, where the config says no problem type."""
        if not self._fractional():
            return "single_label"
        outputs, numbers = len(self.said.names), np.asarray(self.values)
        whole = len(numbers) > 0 and bool((numbers == np.round(numbers)).all())
        # The config tells of so many classes, and these are their numbers; the default two tell nothing.
        if whole and (self.said.named or outputs > 2) and numbers.min() >= 0 and numbers.max() == outputs - 1:
            return "single_label"
        return "regression"

    def _classes(self, values: list[Any]) -> Labels | None:
        if self.streamed:
            # Only what the features and the config say.
            return Labels(self.column, "single_label", self._class_names()) if self.names else None
        numbers = np.asarray(values, dtype=np.float64)
        broken = np.flatnonzero(numbers != np.round(numbers))
        if len(broken):
            raise self._error(
                f"problem_type={self.said.kind}_classification, and row {broken[0]} has the label "
                f"{numbers[broken[0]]:g} in column {self.column!r}, which is no class. Use num_labels=1, "
                "problem_type='regression' for numbers"
            )
        classes = numbers.astype(np.int64)
        names = self._class_names() if self.names else self._unnamed(classes[classes != IGNORED])
        self._refuse_outside(classes, names)
        return Labels(self.column, "single_label", names, classes)

    def _class_names(self) -> tuple[str, ...]:
        """The features' names; with those outputs of the model that no label of the data stands for behind them."""
        said, outputs = self.said.names, len(self.said.names)
        if outputs < len(self.names):
            return self.names
        if are_placeholders(self.names):
            return said if self.said.named else self.names + said[len(self.names) :]
        if not self.said.named:
            return self.names + said[len(self.names) :]
        places = match(self.names, said)
        if outputs > len(self.names) and None in places:
            return self.names
        return (
            self.names + tuple(name for place, name in enumerate(said) if place not in places)[: outputs - len(places)]
        )

    def _unnamed(self, found: np.ndarray) -> tuple[str, ...]:
        seen, outputs = np.unique(found), len(self.said.names)
        if not len(seen) or (seen.min() >= 0 and seen.max() < outputs):
            return self.said.names
        if np.array_equal(seen, np.arange(len(seen))):
            return tuple(map(placeholder, seen))
        shown = ", ".join(map(str, seen[:6]))
        said = f" and the model has {outputs} outputs" if outputs else ""
        keep = f"Load the model with num_labels={seen.max() + 1} to keep the numbers, " if seen.min() >= 0 else ""
        raise self._error(
            f"the labels in column {self.column!r} are {shown}, ...{said}; they must be 0 to classes - 1. {keep}"
            f"{'or number' if keep else 'Number'} them anew: dataset.class_encode_column({self.column!r}); or, where "
            "they are ratings, regress on them: num_labels=1, problem_type='regression'"
        )

    def _refuse_outside(self, values: np.ndarray, names: tuple[str, ...]) -> None:
        wrong = np.flatnonzero((values != IGNORED) & ((values < 0) | (values >= len(names))))
        if len(wrong):
            raise self._error(
                f"row {wrong[0]} has the label {values[wrong[0]]}, and there are {len(names)} classes "
                f"({', '.join(names[:6])}). Drop such rows, or give the column the right ClassLabel"
            )

    # ---- a list a row ----

    def _lists(self) -> Labels | None:
        widths = {len(row) for row in self.values} or ({self.length} if self.length > 0 else set())
        if not widths:
            # A stream of lists of any length; transformers' loss takes fractional ones for several labels.
            kind = self.said.kind or ("multi_label" if self._fractional() and len(self.said.names) > 1 else None)
            fits = kind in ("regression", "multi_label") and not self.names
            return Labels(self.column, kind, self.said.names) if kind and fits else None
        flat = np.asarray([value for row in self.values for value in row], dtype=np.float64)
        width, shares = max(widths), bool(((flat == 0) | (flat == 1)).all())
        multi_hot = shares and width == len(self.said.names) > len(self.names) == 2
        if len(widths) > 1 or (self.names and not multi_hot):
            raise self._no_list_of_classes(width)
        kind = self.said.kind or self._kind_of_lists(width, flat, shares)
        if kind == "single_label":
            if width > 1:
                raise self._error(
                    f"problem_type=single_label_classification, and the column {self.column!r} holds {width} numbers a "
                    "row. Use problem_type='multi_label_classification', or make it the number of one class"
                )
            return self._classes([row[0] for row in self.values])
        outside = np.flatnonzero(~((flat >= 0) & (flat <= 1)))
        if kind == "multi_label" and len(outside):
            row = outside[0] // width
            raise self._error(
                f"problem_type=multi_label_classification, and row {row} holds {self.values[row]} in column "
                f"{self.column!r}; each must be 0.0 to 1.0. For numbers use problem_type='regression'"
            )
        return Labels(self.column, kind, self._outputs(width))

    def _kind_of_lists(self, width: int, flat: np.ndarray, shares: bool) -> Kind:
        """A guess, where nothing says it."""
        if width == 1 and not self._fractional():
            return "single_label"
        if shares or (self._fractional() and ((flat >= 0) & (flat <= 1)).all()):
            return "multi_label"
        if not np.isfinite(flat).all():
            return "regression"  # To be told of by row.
        if width == 1:
            return "regression"
        raise self._error(
            f"the column {self.column!r} holds {width} numbers a row, such as {self.values[0]}, and nothing says what "
            "they are. Where they are numbers to predict, load the model with problem_type='regression', "
            f"num_labels={width}; where they are classes, make them a list of 0.0 or 1.0 for each class"
        )

    def _no_list_of_classes(self, width: int) -> PluginError:
        classes = len(self.names) or max(len(self.said.names), width)
        model = f"the model, a {self.said.model}, is not for token classification" if self.said.model else "no token is"
        return self._error(
            f"the column {self.column!r} holds a list of class numbers in each row, or lists of different lengths, and "
            f"{model}. Where a row has several classes, make the column a list of {classes} numbers, 0.0 or 1.0"
        )

    # ---- one label a token ----

    def _tokens(self) -> Labels | None:
        whole = str(getattr(self.feature, "dtype", "int64")).startswith(("int", "uint", "bool"))
        if not self.listed or not whole:
            if not self.listed and not hasattr(self.feature, "dtype"):
                return None  # An array, a tensor: left to the model.
            raise self._error(
                f"the model, a {self.said.model}, labels each token, and the column {self.column!r} holds "
                f"{'other than whole numbers' if self.listed else 'one value a row'}. Give it a list of class numbers, "
                f"one a token, {IGNORED} where there is none"
            )
        # A ClassLabel says the names; tokenizing usually leaves plain numbers, and the model's config then says them.
        names = self._class_names() if self.names else self.said.names
        if self.said.kind == "token":
            found = np.asarray([value for row in self.values for value in row], dtype=np.int64)
            wrong = found[(found != IGNORED) & ((found < 0) | (found >= len(names)))]
            if len(wrong):
                raise self._error(
                    f"the column {self.column!r} holds the label {wrong[0]}, and there are {len(names)} classes "
                    f"({', '.join(names[:6])}). Load the model with num_labels={int(found.max()) + 1}, or mark what is "
                    f"to be ignored with {IGNORED}"
                )
        return Labels(self.column, "token", names)

    # ---- of all ----

    def _outputs(self, width: int) -> tuple[str, ...]:
        """Names of outputs that the data do not name: the config's, where it has as many."""
        if len(self.said.names) == width:
            return self.said.names
        return (self.column,) if width == 1 else tuple(map(placeholder, range(width)))

    def _fractional(self) -> bool:
        if self.feature is not None:
            return str(getattr(self.feature, "dtype", "")).startswith("float")
        first = self.values[0] if self.values else None
        return isinstance(first[0] if isinstance(first, list) and first else first, float)

    def _refuse_no_number(self) -> None:
        if None in self.values:
            raise self._error(f"row {self.values.index(None)} has no {self.column!r}. Drop such rows, or label them")
        first = next((value for row in self.values for value in (row if isinstance(row, list) else [row])), None)
        if isinstance(first, str):
            raise self._error(
                f"the column {self.column!r} holds texts, such as {first!r}. Number them: "
                f"dataset.class_encode_column({self.column!r})"
            )

    def _error(self, said: str) -> PluginError:
        return PluginError(f"{self.technique}: {said}.")
