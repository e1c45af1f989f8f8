"""`multitask` on every tokenizer's kind, every text encoder of `AutoModel`, and label columns of many forms."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import (
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
)

from benchmarks.architectures import NotBuilt, kinds, small, takes
from benchmarks.strangers.situation import Situation, Wrong
from benchmarks.tiny_tokenizers import KINDS, SENTENCES, spanning, word_level
from hf_ft_plugins import with_plugins
from hf_ft_plugins.models.inputs import main_input_name
from hf_ft_plugins.models.limits import longest_input
from hf_ft_plugins.techniques.multitask import (
    MultiTaskCollator,
    MultiTaskModel,
    TaskSpec,
    multitask_dataset,
    with_labels,
)
from hf_ft_plugins.techniques.multitask.encoding import Encoding

ROWS = [sentence.split() for sentence in SENTENCES]
TASKS = {"tag": TaskSpec(kind="token", labels=("A", "B")), "mood": TaskSpec(kind="sequence", labels=("x", "y"))}
POSITIONS = 40
# Of the quick run: those whose table of positions or class differs from its neighbours'.
QUICK = ("roberta", "bart", "gpt2", "xlnet", "t5", "distilbert", "modernbert", "llama", "mpnet", "esm", "vit", "dpr")


def expect(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise Wrong(f"{what}: {found!r}, and it should be {wanted!r}")


# ---- tokenizers ----


def folded(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text.lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).replace(" ", "")


def check_tokenizer(make: Callable[[], Any], joined: bool = True) -> None:
    """Reference: the tokens of the running text, and each word's tokens decoded."""
    tokenizer = make()
    encoded = Encoding(tokenizer).of_words(ROWS)
    for place, row in enumerate(ROWS):
        ids = encoded.batch["input_ids"][place]
        if joined:
            text = ids[encoded.batch["attention_mask"][place].bool()].tolist()
            expect(" ".join(row), text, tokenizer(" ".join(row))["input_ids"])
        for number, word in enumerate(row):
            said = folded(tokenizer.decode(ids[encoded.words[place] == number].tolist()))
            if said != folded(word) and tokenizer.unk_token not in said:
                raise Wrong(f"word {number} of {' '.join(row)!r} has the tokens of {said!r}")


def no_padding_token() -> None:
    tokenizer = word_level()
    tokenizer.pad_token = None
    MultiTaskCollator(tokenizer, TASKS)


# ---- architectures ----


def check_limit(kind: str) -> None:
    """Reference: the longest row that the bare model takes, found by trying."""
    try:
        model = small(kind, POSITIONS)
    except NotBuilt:
        return
    if main_input_name(model) != "input_ids":
        expect("limit", longest_input(model), None)
        return
    if not takes(model, 4):
        return
    limit = longest_input(model)
    free = takes(model, 3 * POSITIONS)
    if free and limit not in (None, POSITIONS, getattr(model.config, "max_position_embeddings", None)):
        if takes(model, limit + 1):
            raise Wrong(f"takes rows of any length, and the limit is {limit}")
    elif not free and not (limit and takes(model, limit) and not takes(model, limit + 1)):
        raise Wrong(f"the limit is {limit}, and it takes other lengths")


def check_encoder(kind: str) -> None:
    """Reference: the heads on what the encoder itself gives for the running text, after training and loading again."""
    try:
        encoder = small(kind, POSITIONS, padding=0)
    except NotBuilt:
        return
    rows = [{"tokens": ROWS[place % 2][:6], "tag": ["A", "B"] * 3, "mood": "xy"[place % 2]} for place in range(4)]
    data = Dataset.from_list(rows)
    tokenizer = word_level()
    model = MultiTaskModel.from_encoder(encoder, TASKS)
    trainer = trained(model, data, processing_class=tokenizer)
    ids = torch.tensor(tokenizer(" ".join(ROWS[0][:6]))["input_ids"])[None]
    batch = trainer.eval_collator([{"tokens": ROWS[0][:6]}])
    expect("token ids", batch["input_ids"].tolist(), ids.tolist())
    model.eval()
    with torch.no_grad():
        hidden = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        words = hidden[:, 1:-1]
        expect("tags", model(**batch).predictions["tag"].tolist(), model.heads["tag"](words).argmax(-1).tolist())
        model.save_pretrained("saved")
        again = MultiTaskModel.from_pretrained("saved").eval()
        expect(
            "tags, loaded again", again(**batch).predictions["tag"].tolist(), model(**batch).predictions["tag"].tolist()
        )


def trained(model: Any, data: Any, trainer_class: type = Trainer, **changes: Any) -> Any:
    names = ("eval_dataset", "processing_class", "data_collator")
    given = {name: changes.pop(name) for name in names if name in changes}
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "save_strategy": "no"}
    settings |= {"disable_tqdm": True, "use_cpu": True, "log_level": "error"}
    args = TrainingArguments("run", **settings | changes)
    trainer = with_plugins(trainer_class, "multitask")(model=model, args=args, train_dataset=data, **given)
    trainer.train()
    return trainer


def roberta(positions: int = 66, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return RobertaModel(
        RobertaConfig(vocab_size=99, max_position_embeddings=positions, pad_token_id=0, **sizes), **settings
    )


def without_a_pooler() -> None:
    model = MultiTaskModel.from_encoder(roberta(add_pooling_layer=False), TASKS).eval()
    model.save_pretrained("saved")
    ids = {"input_ids": torch.tensor([[5, 6]]), "word_ids": torch.tensor([[0, 1]])}
    before, after = (own(**ids).predictions["mood"] for own in (model, MultiTaskModel.from_pretrained("saved").eval()))
    expect("logits, loaded again", after.tolist(), before.tolist())


def the_encoder_of_t5() -> None:
    sizes = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 8}
    model = MultiTaskModel.from_encoder(T5EncoderModel(T5Config(vocab_size=99, **sizes)), TASKS)
    model.save_pretrained("saved")
    expect("class", type(MultiTaskModel.from_pretrained("saved").encoder), T5EncoderModel)


def a_model_with_a_head() -> None:
    from transformers import RobertaForSequenceClassification

    MultiTaskModel.from_encoder(RobertaForSequenceClassification(roberta().config), TASKS)


def a_row_at_the_limit() -> None:
    """Case of RoBERTa: 34 positions, 33 tokens behind a padding index of 0."""
    model = MultiTaskModel.from_encoder(roberta(34), TASKS)
    rows = [{"tokens": ROWS[0] * 9, "tag": ["A"] * 8 * 9, "mood": "x"}] * 4
    trainer = trained(model, Dataset.from_list(rows), processing_class=word_level())
    expect("tokens", trainer.eval_collator(rows[:1])["input_ids"].shape[1], 33)


# ---- label columns ----

ONE, SEVERAL, NUMBER = (TaskSpec(kind=kind) for kind in ("sequence", "multi_label", "regression"))
AB, BA, ABC = (ClassLabel(names=list(names)) for names in ("ab", "ba", "abc"))
GIVEN = TaskSpec(kind="sequence", labels=("b", "a", "c"))
MANY = TaskSpec(kind="multi_label", labels=("b", "a"))
NAN = math.nan
# Spec, values, feature; names or None for those of the spec; labels.
FORMS: dict[str, tuple[Any, ...]] = {
    "texts": (ONE, ["b", "a", None], None, [1, 0, -100]),
    "texts in an order given": (GIVEN, ["b", "c", "a"], None, [0, 2, 1]),
    "a class without rows": (GIVEN, ["b", "c"], None, [0, 2]),
    "ClassLabel": (ONE, [1, 0, 1], BA, [1, 0, 1]),
    "ClassLabel in another order": (GIVEN, [0, 1, 1], AB, [1, 0, 0]),
    "ClassLabel of all in another order": (GIVEN, [0, 1, 2], ABC, [1, 0, 2]),
    "numbers": (ONE, [1, 0, 2], None, [1, 0, 2]),
    "numbers with gaps": (ONE, [0, 3, 7], None, [0, 3, 7]),
    "numbers and names given": (GIVEN, [2, 0, 1], None, [2, 0, 1]),
    "ratings from 1": (ONE, [1, 5, 3], None, [1, 5, 3]),
    "booleans": (ONE, [True, False], None, [1, 0]),
    "pandas' fractions": (ONE, [1.0, NAN, 0.0], None, [1, -100, 0]),
    "-100": (ONE, [1, -100, 0], None, [1, -100, 0]),
    "regression": (NUMBER, [0.5, 3.0], None, [[0.5], [3.0]]),
    "regression on whole numbers": (NUMBER, [0, 4], None, [[0.0], [4.0]]),
    "regression on several": (NUMBER, [[1.5, -2.0], [0.0, 9.0]], None, [[1.5, -2.0], [0.0, 9.0]]),
    "regression on texts": (NUMBER, ["0.5", "3"], None, [[0.5], [3.0]]),
    "regression on a ClassLabel": (NUMBER, [1, 0], AB, [[1.0], [0.0]]),
    "multi_label of 0 and 1": (SEVERAL, [[0, 1], [1, 1]], None, [[0.0, 1.0], [1.0, 1.0]]),
    "multi_label of booleans": (SEVERAL, [[False, True]], None, [[0.0, 1.0]]),
    "multi_label of names": (SEVERAL, [["b"], [], ["b", "a"]], None, [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]),
    "multi_label of names in an order": (MANY, [["b"], ["a"]], None, [[1.0, 0.0], [0.0, 1.0]]),
    "multi_label of ClassLabels": (MANY, [[0], [0, 1]], Sequence(AB), [[0.0, 1.0], [1.0, 1.0]]),
}
BAD = {
    "fractions as classes": (ONE, [0.5, 1.0], "kind='regression'"),
    "classes below 0": (ONE, [-1, 1], "Make the column texts"),
    "bytes": (ONE, [b"a", b"b"], "Make the column texts"),
    "codes": (ONE, [7, 123_456], "Make the column texts"),
    "several in a row": (GIVEN, [["a"]], "kind='multi_label'"),
    "another spelling": (GIVEN, ["A"], "Read the labels from all splits"),
    "beyond the names": (GIVEN, [3], "Use 0 to 2"),
    "multi_label of numbers of classes": (SEVERAL, [[0, 2], [1]], "a list of names"),
    "multi_label in one text": (SEVERAL, ["a"], "a list of names"),
    "regression on words": (NUMBER, ["n/a"], "give it None"),
    "regression of unequal widths": (NUMBER, [[1.0, 2.0], [1.0]], "give it None"),
}


def read(spec: TaskSpec, values: Any, feature: Any = None, how: Callable[[Any], Any] = lambda data: data) -> list[Any]:
    features = Features({"text": Value("string"), "y": feature}) if feature is not None else None
    data = how(Dataset.from_dict({"text": ["The river"] * len(values), "y": values}, features=features))
    tasks = with_labels({"y": spec}, data)
    rows = multitask_dataset(data, tasks)
    batch = MultiTaskCollator(word_level(), tasks)([rows[place] for place in range(len(rows))])
    return batch["labels"]["y"].tolist()


def check_form(form: str, how: Callable[[Any], Any] = lambda data: data) -> None:
    spec, values, feature, wanted = FORMS[form]
    expect(form, read(spec, values, feature, how), wanted)


def identity(rows: Any) -> Any:
    return rows


FORMATS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda data: data.with_format("numpy"),
    "torch": lambda data: data.with_format("torch"),
    "pandas": lambda data: data.with_format("pandas"),
    "a transform": lambda data: data.with_transform(identity),
    "a transform that makes the labels": lambda data: data.rename_column("y", "raw").with_transform(
        lambda rows: {"text": rows["text"], "y": rows["raw"]}
    ),
}


# ---- trainers ----


def data(rows: int = 6, **columns: Any) -> Any:
    return Dataset.from_list(
        [{"tokens": row, "tag": ["A"] * len(row), "mood": "x", **columns} for row in (ROWS * 2)[:rows]]
    )


def a_test_set_without_labels() -> None:
    trainer = trained(MultiTaskModel.from_encoder(roberta(), TASKS), data(), processing_class=word_level(),
                      eval_dataset=Dataset.from_list([{"tokens": row} for row in ROWS]))  # fmt: skip
    trainer.evaluate()
    found = trainer.predict(Dataset.from_list([{"tokens": row} for row in [*ROWS[:2], [], *ROWS[2:]]])).predictions
    expect("words", (found["tag"] >= 0).sum(1).tolist(), [len(row) for row in [*ROWS[:2], [], *ROWS[2:]]])


def hidden_labels() -> None:
    trainer = trained(MultiTaskModel.from_encoder(roberta(), TASKS), data(), processing_class=word_level())
    rows = Dataset.from_list([{"tokens": row, "mood": -1} for row in ROWS])
    expect("rows", len(trainer.predict(rows).predictions["mood"]), len(ROWS))


def a_batch_size_that_is_found() -> None:
    sizes = []

    class Small(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().training_step(model, inputs, *args, **kwargs)

    model = MultiTaskModel.from_encoder(roberta(), TASKS)
    trained(
        model, data(), Small, processing_class=word_level(), per_device_train_batch_size=6, auto_find_batch_size=True
    )
    expect("rows of each attempt", sizes, [6, 5, 4, 3, 3])


def padded_by_the_script() -> None:
    tokenizer = word_level()
    padded = tokenizer(SENTENCES[0], padding="max_length", max_length=30)
    batch = MultiTaskCollator(tokenizer, {"mood": TASKS["mood"]})([{**padded, "mood": "x"}])
    expect("attended", int(batch["attention_mask"].sum()), len(tokenizer(SENTENCES[0])["input_ids"]))


def class_names_of_data_given_later() -> None:
    trainer = trained(MultiTaskModel.from_encoder(roberta(), TASKS), data(), processing_class=word_level())
    texts = Dataset.from_list([{"tokens": row, "mood": "xy"[place % 2]} for place, row in enumerate(ROWS)])
    numbers = texts.cast_column("mood", ClassLabel(names=["y", "x"]))
    expect("loss", trainer.evaluate(numbers)["eval_loss"], trainer.evaluate(texts)["eval_loss"])


def grouped_by_length() -> None:
    strategy = {"train_sampling_strategy": "group_by_length"}
    trainer = trained(MultiTaskModel.from_encoder(roberta(), TASKS), data(), processing_class=word_level(), **strategy)
    sizes = [3, 1, 5, 2, 4]
    found = trainer.predict(Dataset.from_list([{"tokens": ["river"] * size} for size in sizes])).predictions["tag"]
    expect("words", (found >= 0).sum(1).tolist(), sizes)


def a_stream_to_evaluate() -> None:
    trainer = trained(MultiTaskModel.from_encoder(roberta(), TASKS), data(), processing_class=word_level())
    expected, found = (trainer.evaluate(given)["eval_loss"] for given in (data(), data().to_iterable_dataset()))
    expect("loss", found, expected)


def words_numbered_in_arrays() -> None:
    row = {"input_ids": [1, 5, 6, 2], "attention_mask": [1] * 4, "word_ids": [-1, 0, 1, -1], "tag": [0, 1], "mood": "x"}
    arrays = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in row.items()}
    expected, found = (MultiTaskCollator(word_level(), TASKS)([own]) for own in (row, arrays))
    expect("words", found["word_ids"].tolist(), expected["word_ids"].tolist())


def situations() -> list[Situation]:
    refusals = r"rows here are tokens|does not run on a row of tokens|has an encoder and a decoder"
    names = kinds()
    trainers = (a_test_set_without_labels, hidden_labels, a_batch_size_that_is_found, padded_by_the_script,
                class_names_of_data_given_later, a_row_at_the_limit, without_a_pooler, the_encoder_of_t5,
                grouped_by_length, a_stream_to_evaluate, words_numbered_in_arrays)  # fmt: skip
    return [
        *(Situation("tokenizers", name, partial(check_tokenizer, make)) for name, make in KINDS.items()),
        Situation("tokenizers", "pieces of several words", partial(check_tokenizer, spanning, joined=False)),
        Situation("tokenizers", "no padding token", no_padding_token, r"tokenizer\.pad_token = tokenizer\.eos_token"),
        *(Situation("limits of tokens", kind, partial(check_limit, kind), quick=kind in QUICK) for kind in names),
        *(Situation("encoders", kind, partial(check_encoder, kind), refusals, kind in QUICK) for kind in names),
        Situation("encoders", "a model with a head", a_model_with_a_head, r"model\.base_model"),
        *(Situation("label columns", form, partial(check_form, form)) for form in FORMS),
        *(Situation("label columns", f"bad: {form}", partial(read, *BAD[form][:2]), BAD[form][2]) for form in BAD),
        *(
            Situation("formats of data", f"{name}: {form}", partial(check_form, form, FORMATS[name]))
            for name in FORMATS
            for form in ("texts", "ClassLabel in another order", "numbers", "regression on several")
            # What a transform makes has no names of its own.
            if not (name.endswith("labels") and form.startswith("ClassLabel"))
        ),
        *(Situation("trainers", run.__name__.replace("_", " "), run) for run in trainers),
    ]
