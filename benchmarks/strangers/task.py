"""Task: labels in every form and what the config says of them, names of classes, metrics' directions, test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, IterableDataset, List, Value
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    DistilBertForSequenceClassification,
    RobertaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import with_plugins

ROWS, LENGTH, WORDS = 24, 6, 20
SPEC = "task:calibrate=false,worst_examples=0,early_stopping_patience=none"
IDS = torch.randint(3, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def model_of(cls: Any = BertForSequenceClassification, *, said: dict[str, Any] | None = None, **config: Any) -> Any:
    """A tiny model without dropout; `said`: what the script sets in its config after it is loaded."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **config}
    model = cls(BertConfig(vocab_size=WORDS, max_position_embeddings=8, **sizes, **config))
    for name, value in (said or {}).items():
        setattr(model.config, name, value)
    return model


def rows_of(labels: Sequence[Any] | None = None, feature: Any = None, column: str = "labels") -> Dataset:
    columns = {"input_ids": IDS.tolist(), "attention_mask": torch.ones_like(IDS).tolist()}
    data = Dataset.from_dict(columns if labels is None else {**columns, column: list(labels)})
    return data if feature is None else data.cast_column(column, feature)


def trainer_of(spec: str | None, model: Any, data: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": ROWS}
    settings |= {"per_device_eval_batch_size": ROWS, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    own = {name: changes.pop(name) for name in ("eval_dataset", "compute_metrics", "data_collator") if name in changes}
    args = TrainingArguments("run", use_cpu=True, logging_steps=1, **(settings | changes))
    cls = Trainer if spec is None else with_plugins(Trainer, spec)
    return cls(model=model, args=args, train_dataset=data, **own)


def first_loss(trainer: Any) -> float:
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def close(what: str, ours: float, reference: float) -> None:
    if not abs(ours - reference) <= 1e-4 * max(1.0, abs(reference)):
        raise Wrong(f"{what}: {ours:.6g}, the reference {reference:.6g}")


# ---- the form of the labels, and what the config says ----

EVERY = list(range(ROWS))
TARGETS = [[row * 1.5, row - 30.0, row * 10.0] for row in EVERY]
SEVERAL = [[row % 2, row // 2 % 2, row // 4 % 2] for row in EVERY]
REGRESSION, MULTI, SINGLE = "regression", "multi_label_classification", "single_label_classification"


def form(config: dict[str, Any], labels: Sequence[Any], feature: Any, kind: str, outputs: int) -> None:
    """The first loss of each technique on the untrained model is the one by hand."""
    data = rows_of(labels, feature)
    for spec in (SPEC, "transfer:strategy=full,layer_decay=1"):
        trainer = trainer_of(spec, model_of(**config), data)
        if trainer.model.classifier.out_features != outputs:
            raise Wrong(f"{spec}: {trainer.model.classifier.out_features} outputs, not {outputs}")
        if outputs == model_of(**config).config.num_labels:
            kept = torch.equal(trainer.model.classifier.weight, model_of(**config).classifier.weight)
            if not kept:
                raise Wrong(f"{spec}: the head, which fits, was replaced")
        given = logits_of(trainer.model)
        truth = torch.tensor(np.asarray(list(labels), dtype=np.float64), dtype=torch.float32)
        if kind == REGRESSION:
            expected = mse_loss(given.reshape(truth.shape), truth)
        elif kind == MULTI:
            expected = binary_cross_entropy_with_logits(given, truth)
        else:
            expected = cross_entropy(given, truth.reshape(-1).long())
        close(spec, first_loss(trainer), float(expected))


def fives(lowest: int) -> list[int]:
    return [lowest + row % 5 for row in EVERY]


FOUR = {"id2label": dict(enumerate(("angry", "calm", "happy", "sad")))}
INT, FLOAT = Value("int64"), Value("float32")
FORMS: dict[str, tuple[dict[str, Any], Sequence[Any], Any, str, int]] = {
    "numbers, several a row": ({"num_labels": 3, "problem_type": REGRESSION}, TARGETS, List(FLOAT), REGRESSION, 3),
    "whole numbers, several a row": (
        {"num_labels": 3, "problem_type": REGRESSION},
        SEVERAL,
        List(INT),
        REGRESSION,
        3,
    ),
    "ratings from 1": ({"num_labels": 1, "problem_type": REGRESSION}, fives(1), INT, REGRESSION, 1),
    "ratings from 0": ({"num_labels": 1, "problem_type": REGRESSION}, fives(0), INT, REGRESSION, 1),
    "ratings, one output": ({"num_labels": 1}, fives(1), INT, REGRESSION, 1),
    "ratings as float32": ({"num_labels": 1}, fives(1), FLOAT, REGRESSION, 1),
    "ratings, lists of one": ({"num_labels": 1}, [[value] for value in fives(1)], List(FLOAT), REGRESSION, 1),
    "ratings with names": ({"num_labels": 1}, fives(0), ClassLabel(names=list("abcde")), REGRESSION, 1),
    "numbers, nothing said": ({}, [value / 3 for value in fives(0)], FLOAT, REGRESSION, 1),
    "classes without rows, the last": (FOUR, [row % 3 for row in EVERY], INT, SINGLE, 4),
    "classes without rows, between": (FOUR, [(0, 1, 3)[row % 3] for row in EVERY], INT, SINGLE, 4),
    "classes without rows, four outputs": ({"num_labels": 4}, [row % 2 for row in EVERY], INT, SINGLE, 4),
    "classes, more than two": ({}, [row % 3 for row in EVERY], INT, SINGLE, 3),
    "truth values": ({}, [row % 2 == 0 for row in EVERY], Value("bool"), SINGLE, 2),
    "classes as float32": ({"problem_type": SINGLE}, [row % 2 for row in EVERY], FLOAT, SINGLE, 2),
    "classes as float32, named": (FOUR, [row % 4 for row in EVERY], FLOAT, SINGLE, 4),
    "lists of one class": ({}, [[row % 2] for row in EVERY], List(INT), SINGLE, 2),
    "several, whole numbers": ({"num_labels": 3, "problem_type": MULTI}, SEVERAL, List(INT), MULTI, 3),
    "several, truth values": ({"num_labels": 3, "problem_type": MULTI}, SEVERAL, List(Value("bool")), MULTI, 3),
    "several, nothing said": ({"num_labels": 3}, SEVERAL, List(INT), MULTI, 3),
    "several, one-hot float32": ({"num_labels": 3}, np.eye(3)[np.arange(ROWS) % 3].tolist(), List(FLOAT), MULTI, 3),
    "several, one width": ({"num_labels": 3}, SEVERAL, List(FLOAT, length=3), MULTI, 3),
    "several, yes and no": ({"num_labels": 3}, SEVERAL, List(ClassLabel(names=["no", "yes"])), MULTI, 3),
}
# Where the labels cannot be what is said, or nothing says what they are: by which words each is to be mended.
UNFIT: dict[str, tuple[dict[str, Any], Sequence[Any], Any, str]] = {
    "ratings from 1, nothing said": ({}, fives(1), INT, r"num_labels=6.*problem_type='regression'"),
    "fractions as classes": ({"problem_type": SINGLE}, [0.5] * ROWS, FLOAT, "problem_type='regression'"),
    "numbers, several, nothing said": ({"num_labels": 3}, TARGETS, List(FLOAT), "problem_type='regression'"),
    "one number a row for several": ({"num_labels": 3, "problem_type": MULTI}, fives(0), INT, "list of 0.0 or 1.0"),
    "lists of classes for several": (
        {"num_labels": 3, "problem_type": MULTI},
        [[row % 3] * (1 + row % 2) for row in EVERY],
        List(ClassLabel(names=list("abc"))),
        "list of 3 numbers",
    ),
    "texts": ({}, ["good", "bad"] * (ROWS // 2), None, r"class_encode_column\('labels'\)"),
    "one-hot as one class": (
        {"num_labels": 3, "problem_type": SINGLE},
        np.eye(3)[np.arange(ROWS) % 3].tolist(),
        List(FLOAT),
        "problem_type='multi_label_classification'",
    ),
}


def unfit(config: dict[str, Any], labels: Sequence[Any], feature: Any) -> None:
    trainer_of(SPEC, model_of(**config), rows_of(labels, feature))
    raise Wrong("it was taken")


def tokens(names: tuple[str, ...] | None, ours: tuple[str, ...]) -> None:
    """Classes of tokens with -100: the loss by hand, of the labels that the names say."""
    model = model_of(BertForTokenClassification, id2label=dict(enumerate(ours)))
    plain, before = [[0, 1, -100, 2, 1, -100]] * ROWS, logits_of(model)
    feature = None
    if names is not None:
        plain = [[0, 1, 0, 2, 1, 2]] * ROWS
        feature = List(ClassLabel(names=list(names)))
    trainer = trainer_of(SPEC, model, rows_of(plain, feature))
    truth = torch.tensor(plain)
    if names is not None:
        truth = torch.tensor([ours.index(name) for name in names])[truth]
    close("tokens", first_loss(trainer), float(cross_entropy(before.flatten(0, 1), truth.flatten(), ignore_index=-100)))


# ---- names of classes ----

TRAINED = ("negative", "neutral", "positive")
NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # Names in the data, and of the trained head in the same order; written otherwise, they mean the same.
    "the same": (TRAINED, TRAINED),
    "in capitals": (("NEGATIVE", "NEUTRAL", "POSITIVE"), TRAINED),
    "abbreviated": (("neg", "neu", "pos"), TRAINED),
    "with other marks": (("not-spam", "spam mail"), ("Not Spam", "SPAM_MAIL")),
    "in another order": (("positive", "negative", "neutral"), ("positive", "negative", "neutral")),
    "abbreviated and turned round": (("pos", "neg", "neu"), ("positive", "negative", "neutral")),
    "all but one": (("ham", "spam"), ("not spam", "spam")),
    "placeholders in the data": (("LABEL_0", "LABEL_1", "LABEL_2"), TRAINED),
    "numbers in the data": (("0", "1", "2"), TRAINED),
    "placeholders in the model": (TRAINED, ("LABEL_0", "LABEL_1", "LABEL_2")),
    "some of the model's": (("neg", "pos"), ("negative", "positive", "neutral")),
    "signs": (("C++", "C", "Java"), ("c++", "c", "java")),
    "points of numbers": (("1.5", "15"), ("1.5", "15")),
    "separators": (("Sci & Tech", "World"), ("sci/tech", "world")),
    "stars": (("1", "2", "3", "4", "5"), ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")),
}
# The head's own order, where it is another.
ORDERS = {"in another order": TRAINED, "abbreviated and turned round": TRAINED, "some of the model's": TRAINED}
ORDERS |= {"all but one": ("spam", "not spam")}


def named(case: str, spec: str, said: Callable[[tuple[str, ...]], dict[str, Any]]) -> None:
    """The loss before the first step is that of the head as it was, with labels put in its order by hand."""
    names, meant = NAMES[case]
    order = ORDERS.get(case, meant)
    model = model_of(num_labels=len(order), said=said(order))
    labels, before = [row % len(names) for row in EVERY], logits_of(model)
    truth = torch.tensor([order.index(meant[label]) for label in labels])
    trainer = trainer_of(spec, model, rows_of(labels, ClassLabel(names=list(names))))
    close("loss", first_loss(trainer), float(cross_entropy(before, truth)))


def maps(order: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(order)), "label2id": {name: index for index, name in enumerate(order)}}


def other_class(spec: str) -> None:
    """One class of three is another: the rows of the two that are there stay, and the third is new, with its name."""
    before, names = ("sports", "politics", "travel"), ("politics", "sports", "tech")
    model = model_of(num_labels=3, said=maps(before))
    old = logits_of(model)
    trainer = trainer_of(spec, model, rows_of([row % 3 for row in EVERY], ClassLabel(names=list(names))))
    new = logits_of(trainer.model)
    if not torch.allclose(new[:, :2], old[:, [1, 0]]) or torch.allclose(new[:, 2], old[:, 2]):
        raise Wrong("the rows are not those of the classes of these names")
    if tuple(trainer.model.config.id2label.values()) != names:
        raise Wrong(f"the outputs are called {trainer.model.config.id2label}")


def wide_hidden_layer(cls: Any, spec: str) -> None:
    """The head's hidden layer has as many outputs as there are classes: the logits alone are put in order."""
    torch.manual_seed(0)
    names, sizes = [f"class {chr(97 + row)}" for row in range(16)], {"num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0}
    if cls is DistilBertForSequenceClassification:
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    model = cls(cls.config_class(vocab_size=WORDS, max_position_embeddings=LENGTH + 2, **sizes, **maps(tuple(names))))
    before, data = logits_of(model), rows_of([row % 16 for row in EVERY], ClassLabel(names=names[::-1]))
    after = logits_of(trainer_of(spec, model, data).model)
    if not torch.allclose(after, before.flip(-1), atol=1e-6):
        raise Wrong(f"logits are {float((after - before.flip(-1)).abs().max()):.3g} off")


def stream_of_several(how: str) -> None:
    """Fractional labels, several a row, of a stream: the loss is the binary one, as transformers takes it."""
    stored = rows_of([[float(bit) for bit in bits] for bits in SEVERAL])
    made = {
        "features": stored.to_iterable_dataset,
        "no features": lambda: IterableDataset.from_generator(lambda: iter(stored.to_list())),
    }
    model = model_of(num_labels=3)
    expected = binary_cross_entropy_with_logits(logits_of(model), torch.tensor(SEVERAL).float())
    close("loss", first_loss(trainer_of(SPEC, model, made[how]())), float(expected))


def label2id_alone(order: tuple[str, ...]) -> dict[str, Any]:
    return {"label2id": {name: index for index, name in enumerate(order)}}


def keys_as_texts(order: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": {str(index): name for index, name in enumerate(order)}}


# ---- the best checkpoint ----

SERIES = (0.9, 0.7, 0.3, 0.5, 0.6, 0.8)
LOWEST, HIGHEST = "checkpoint-3", "checkpoint-1"
# Metric, whether greater is better by the script (None: it does not say), evaluation sets, the best by hand.
BEST: dict[str, tuple[str, bool | None, tuple[str, ...], str]] = {
    "accuracy": ("accuracy", None, (), HIGHEST),
    "logloss": ("logloss", None, (), LOWEST),
    "my_loss": ("my_loss", None, (), LOWEST),
    "rmse": ("rmse", None, (), LOWEST),
    "inaccuracy": ("inaccuracy", None, (), LOWEST),
    "rank_ic": ("rank_ic", None, (), HIGHEST),
    "mape": ("mape", None, (), LOWEST),
    "a set named error": ("error_accuracy", None, ("error", "clean"), HIGHEST),
    "a set named loss": ("loss_accuracy", None, ("loss", "clean"), HIGHEST),
    "an unknown name, lower": ("quux", False, (), LOWEST),
    "an unknown name, as stock": ("quux", None, (), HIGHEST),
    "accuracy, lower": ("accuracy", False, (), LOWEST),
}


def best(metric: str, greater: bool | None, sets: tuple[str, ...], expected: str) -> None:
    calls = iter(range(100))
    key = metric.removeprefix(f"{sets[0]}_") if sets else metric
    data = rows_of([row % 2 for row in EVERY], INT)

    def metrics(_: Any) -> dict[str, float]:
        return {key: SERIES[next(calls) // max(1, len(sets))]}

    every = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 6}
    trainer = trainer_of(
        SPEC,
        model_of(),
        data,
        compute_metrics=metrics,
        eval_dataset=dict.fromkeys(sets, data) if sets else data,
        metric_for_best_model=metric,
        greater_is_better=greater,
        load_best_model_at_end=True,
        **every,
    )
    trainer.train()
    if Path(trainer.state.best_model_checkpoint).name != expected:
        raise Wrong(f"{Path(trainer.state.best_model_checkpoint).name} was kept, not {expected}")


def asked() -> None:
    data = rows_of([row % 2 for row in EVERY], INT)
    trainer_of("task:metric=quux", model_of(), data, eval_dataset=data, eval_strategy="steps", eval_steps=1)
    raise Wrong("a direction was guessed for a metric that nobody knows")


# ---- test sets, and models ----


def unlabelled(how: str) -> None:
    data, test = rows_of([row % 2 for row in EVERY], ClassLabel(names=["no", "yes"])), rows_of()
    spec, changes = SPEC.replace("calibrate=false,", ""), {"eval_strategy": "steps", "eval_steps": 1}
    if how == "fewer columns":
        test = test.remove_columns("attention_mask")
    sets = {"predicted": data, "evaluated": test, "one of two": {"new": test, "old": data}}.get(how, data)
    sets = test.to_list() if how == "a list of rows" else test.to_iterable_dataset() if how == "a stream" else sets
    trainer = trainer_of(spec, model_of(), data, eval_dataset=sets, **changes)
    trainer.train()
    found = trainer.predict(test)
    stock = trainer_of(None, trainer.model, data).predict(test)
    if found.label_ids is not None or not np.array_equal(found.predictions, stock.predictions):
        raise Wrong("the predictions are not stock's")


def no_labels() -> None:
    trainer_of(SPEC, model_of(), rows_of([0, 1] * (ROWS // 2), INT, "target"))
    raise Wrong("a training set without labels was taken")


def other_model(cls: Any) -> None:
    trainer_of(SPEC, model_of(cls), rows_of([0, 1] * (ROWS // 2), INT))
    raise Wrong("it was taken for a classifier")


def situations() -> list[Situation]:
    """All of task's."""
    made = [Situation("forms of labels", name, partial(form, *case)) for name, case in FORMS.items()]
    for name, (config, labels, feature, mend) in UNFIT.items():
        made.append(Situation("labels that do not fit", name, partial(unfit, config, labels, feature), mend))
    three = ("O", "B-PER", "B-LOC")
    for case, names in {"-100": None, "named": three, "turned round": three[::-1]}.items():
        made.append(Situation("tokens", case, partial(tokens, names, three)))
    for case in NAMES:
        for spec in (SPEC, "transfer:strategy=full,layer_decay=1"):
            made.append(
                Situation("names of classes", f"{case}, {spec.split(':')[0]}", partial(named, case, spec, maps))
            )
    for said in (label2id_alone, keys_as_texts):
        name = said.__name__.replace("_", " ")
        made.append(Situation("names of classes", name, partial(named, "abbreviated and turned round", SPEC, said)))
    for spec in (SPEC, "transfer:strategy=full,layer_decay=1"):
        name = spec.split(":")[0]
        made.append(Situation("names of classes", f"one is another, {name}", partial(other_class, spec)))
        for cls in (DistilBertForSequenceClassification, RobertaForSequenceClassification):
            case = partial(wide_hidden_layer, cls, spec)
            made.append(Situation("names of classes", f"a hidden layer as wide, {cls.__name__}, {name}", case))
    for how in ("features", "no features"):
        made.append(Situation("streams", how, partial(stream_of_several, how)))
    made += [Situation("the best checkpoint", name, partial(best, *case), quick=False) for name, case in BEST.items()]
    made.append(Situation("the best checkpoint", "asked", asked, "greater_is_better="))
    for how in ("predicted", "evaluated", "one of two", "fewer columns", "a list of rows", "a stream"):
        made.append(Situation("test sets without labels", how, partial(unlabelled, how)))
    made.append(Situation("no labels", "a column of another name", no_labels, r"rename_column\('target', 'labels'\)"))
    made.append(Situation("other models", "multiple choice", partial(other_model, BertForMultipleChoice), "positions"))
    made.append(Situation("other models", "language model", partial(other_model, BertLMHeadModel), "vocabulary"))
    return made
