"""`LabelReader`: interprets a column of labels, given what the model's configuration says about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import mends
from ..errors import PluginError
from .class_names import are_placeholders, match, names_in, placeholder
from .inputs import bare
from .label_columns import columns_of, label_values
from .label_kinds import IGNORED, PROBLEM_TYPES, Kind, Labels, classifies_tokens


@dataclass(frozen=True)
class ConfiguredLabels:
    """What the model's config says of the labels; empty without a model."""

    model: str = ""
    kind: Kind | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any) -> ConfiguredLabels:
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "num_labels"):
            return cls()
        names, kind = names_in(config), PROBLEM_TYPES.get(config.problem_type or "")
        if classifies_tokens(model):
            kind = "token"
        elif kind is None and len(names) == 1:
            kind = "regression"  # As transformers takes it.
        return cls(type(bare(model)).__name__, kind, names)

    @property
    def named(self) -> bool:
        return bool(self.names) and not are_placeholders(self.names)


class LabelReader:
    """Interprets one column, given what the configuration says."""

    def __init__(self, dataset: Any, column: str, technique: str, configured: ConfiguredLabels) -> None:
        self.dataset, self.column, self.technique, self.configured = dataset, column, technique, configured
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
        if self.configured.kind == "token" or (self.listed and self.names and not self.configured.model):
            return self._tokens()
        if self.listed:
            return self._lists()
        kind = self.configured.kind or self._kind_of_numbers()
        if kind == "regression":
            return Labels(self.column, kind, self._outputs(1))
        if kind == "multi_label":
            raise self._error(
                f"problem_type=multi_label_classification, and the column {self.column!r} holds one number a row. Make "
                "it a list of 0.0 or 1.0 for each class, or leave problem_type out",
                mends.set_model_argument("problem_type", None),
            )
        return self._classes(self.values)

    # ---- one label a row ----

    def _kind_of_numbers(self) -> Kind:
        """A guess, if the configuration has no problem type."""
        if not self._fractional():
            return "single_label"
        outputs, numbers = len(self.configured.names), np.asarray(self.values)
        whole = len(numbers) > 0 and bool((numbers == np.round(numbers)).all())
        # These are the numbers of as many classes as the config names or counts; its default of two says nothing.
        if whole and (self.configured.named or outputs > 2) and numbers.min() >= 0 and numbers.max() == outputs - 1:
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
                f"problem_type={self.configured.kind}_classification, and row {broken[0]} has the label "
                f"{numbers[broken[0]]:g} in column {self.column!r}, which is no class. Use num_labels=1, "
                "problem_type='regression' for numbers",
                mends.all_of(
                    mends.set_model_argument("num_labels", 1), mends.set_model_argument("problem_type", "regression")
                ),
            )
        classes = numbers.astype(np.int64)
        names = self._class_names() if self.names else self._unnamed(classes[classes != IGNORED])
        self._refuse_outside(classes, names)
        return Labels(self.column, "single_label", names, classes)

    def _class_names(self) -> tuple[str, ...]:
        """The features' names; with those outputs of the model that no label of the data stands for behind them."""
        configured, outputs = self.configured.names, len(self.configured.names)
        if outputs < len(self.names):
            return self.names
        if are_placeholders(self.names):
            return configured if self.configured.named else self.names + configured[len(self.names) :]
        if not self.configured.named:
            return self.names + configured[len(self.names) :]
        places = match(self.names, configured)
        if outputs > len(self.names) and None in places:
            return self.names
        return (
            self.names
            + tuple(name for place, name in enumerate(configured) if place not in places)[: outputs - len(places)]
        )

    def _unnamed(self, found: np.ndarray) -> tuple[str, ...]:
        seen, outputs = np.unique(found), len(self.configured.names)
        if not len(seen) or (seen.min() >= 0 and seen.max() < outputs):
            return self.configured.names
        if np.array_equal(seen, np.arange(len(seen))):
            return tuple(map(placeholder, seen))
        shown = ", ".join(map(str, seen[:6]))
        model = f" and the model has {outputs} outputs" if outputs else ""
        keep = f"Load the model with num_labels={seen.max() + 1} to keep the numbers, " if seen.min() >= 0 else ""
        raise self._error(
            f"the labels in column {self.column!r} are {shown}, ...{model}; they must be 0 to classes - 1. {keep}"
            f"{'or number' if keep else 'Number'} them anew: dataset.class_encode_column({self.column!r}); or, where "
            "they are ratings, regress on them: num_labels=1, problem_type='regression'",
            *([mends.set_model_argument("num_labels", int(seen.max()) + 1)] if keep else []),
            mends.encode_column(self.column),
        )

    def _refuse_outside(self, values: np.ndarray, names: tuple[str, ...]) -> None:
        wrong = np.flatnonzero((values != IGNORED) & ((values < 0) | (values >= len(names))))
        if len(wrong):
            raise self._error(
                f"row {wrong[0]} has the label {values[wrong[0]]}, and there are {len(names)} classes "
                f"({', '.join(names[:6])}). Drop such rows, or give the column the right ClassLabel",
                mends.drop_rows("train", wrong),
            )

    # ---- a list a row ----

    def _lists(self) -> Labels | None:
        widths = {len(row) for row in self.values} or ({self.length} if self.length > 0 else set())
        if not widths:
            # A stream of lists of any length; transformers' loss takes fractional ones for several labels.
            kind = self.configured.kind or (
                "multi_label" if self._fractional() and len(self.configured.names) > 1 else None
            )
            fits = kind in ("regression", "multi_label") and not self.names
            return Labels(self.column, kind, self.configured.names) if kind and fits else None
        flat = np.asarray([value for row in self.values for value in row], dtype=np.float64)
        width, shares = max(widths), bool(((flat == 0) | (flat == 1)).all())
        multi_hot = shares and width == len(self.configured.names) > len(self.names) == 2
        if len(widths) > 1 or (self.names and not multi_hot):
            raise self._no_list_of_classes(width)
        kind = self.configured.kind or self._kind_of_lists(width, flat, shares)
        if kind == "single_label":
            if width > 1:
                raise self._error(
                    f"problem_type=single_label_classification, and the column {self.column!r} holds {width} numbers a "
                    "row. Use problem_type='multi_label_classification', or make it the number of one class",
                    mends.set_model_argument("problem_type", "multi_label_classification"),
                )
            return self._classes([row[0] for row in self.values])
        outside = np.flatnonzero(~((flat >= 0) & (flat <= 1)))
        if kind == "multi_label" and len(outside):
            row = outside[0] // width
            raise self._error(
                f"problem_type=multi_label_classification, and row {row} holds {self.values[row]} in column "
                f"{self.column!r}; each must be 0.0 to 1.0. For numbers use problem_type='regression'",
                mends.set_model_argument("problem_type", "regression"),
            )
        return Labels(self.column, kind, self._outputs(width))

    def _kind_of_lists(self, width: int, flat: np.ndarray, shares: bool) -> Kind:
        """A guess, where nothing says it."""
        if width == 1 and not self._fractional():
            return "single_label"
        if shares or (self._fractional() and ((flat >= 0) & (flat <= 1)).all()):
            return "multi_label"
        if not np.isfinite(flat).all():
            return "regression"  # Refused later, by its row.
        if width == 1:
            return "regression"
        raise self._error(
            f"the column {self.column!r} holds {width} numbers a row, such as {self.values[0]}, and nothing says what "
            "they are. Where they are numbers to predict, load the model with problem_type='regression', "
            f"num_labels={width}; where they are classes, make them a list of 0.0 or 1.0 for each class",
            mends.all_of(
                mends.set_model_argument("problem_type", "regression"), mends.set_model_argument("num_labels", width)
            ),
        )

    def _no_list_of_classes(self, width: int) -> PluginError:
        classes = len(self.names) or max(len(self.configured.names), width)
        model = (
            f"the model, a {self.configured.model}, is not for token classification"
            if self.configured.model
            else "no token is"
        )
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
                f"the model, a {self.configured.model}, labels each token, and the column {self.column!r} holds "
                f"{'other than whole numbers' if self.listed else 'one value a row'}. Give it a list of class numbers, "
                f"one a token, {IGNORED} where there is none"
            )
        # A ClassLabel says the names; tokenizing usually leaves plain numbers, and the model's config then says them.
        names = self._class_names() if self.names else self.configured.names
        if self.configured.kind == "token":
            found = np.asarray([value for row in self.values for value in row], dtype=np.int64)
            wrong = found[(found != IGNORED) & ((found < 0) | (found >= len(names)))]
            if len(wrong):
                raise self._error(
                    f"the column {self.column!r} holds the label {wrong[0]}, and there are {len(names)} classes "
                    f"({', '.join(names[:6])}). Load the model with num_labels={int(found.max()) + 1}, or mark what is "
                    f"to be ignored with {IGNORED}",
                    mends.set_model_argument("num_labels", int(found.max()) + 1),
                )
        return Labels(self.column, "token", names)

    # ---- of all ----

    def _outputs(self, width: int) -> tuple[str, ...]:
        """Names of outputs that the data do not name: the config's, where it has as many."""
        if len(self.configured.names) == width:
            return self.configured.names
        return (self.column,) if width == 1 else tuple(map(placeholder, range(width)))

    def _fractional(self) -> bool:
        if self.feature is not None:
            return str(getattr(self.feature, "dtype", "")).startswith("float")
        first = self.values[0] if self.values else None
        return isinstance(first[0] if isinstance(first, list) and first else first, float)

    def _refuse_no_number(self) -> None:
        if None in self.values:
            raise self._error(
                f"row {self.values.index(None)} has no {self.column!r}. Drop such rows, or label them",
                mends.drop_rows("train", (row for row, value in enumerate(self.values) if value is None)),
            )
        first = next((value for row in self.values for value in (row if isinstance(row, list) else [row])), None)
        if isinstance(first, str):
            raise self._error(
                f"the column {self.column!r} holds texts, such as {first!r}. Number them: "
                f"dataset.class_encode_column({self.column!r})",
                mends.encode_column(self.column),
            )

    def _error(self, what: str, *mend: mends.Step) -> PluginError:
        return PluginError(f"{self.technique}: {what}.", code="labels-unsuited", mend=mend)
