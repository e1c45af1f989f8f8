"""Whether a stage goes on with the model of the stage before: what is noticed, and what is no difference."""

import pytest
import torch
from transformers import BertForSequenceClassification, Trainer

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.model_identity import differences, identity_of, sample_of, starts_from
from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer

CHANGES = {"max_steps": 3, "eval_strategy": "no", "save_strategy": "no", "gradient_accumulation_steps": 1}


class Words:
    """A tokenizer, as far as its vocabulary goes."""

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}

    def save_pretrained(self, folder):
        pass


def renamed(names):
    model = tiny_model()
    model.config.id2label = dict(enumerate(names))
    return model


def wider():
    model = tiny_model()
    model.resize_token_embeddings(40)
    return model


class Other(BertForSequenceClassification):
    pass


@pytest.mark.parametrize(
    ("model", "words", "line"),
    [
        (lambda: renamed(["yes", "no"]), Words("a", "b"), "labels was ['no', 'yes'], and is ['yes', 'no']"),
        (lambda: renamed(["no", "yes", "maybe"]), Words("a", "b"), "and is ['no', 'yes', 'maybe']"),
        (wider, Words("a", "b"), "embeddings had 32 rows, and have 40"),
        (lambda: Other(tiny_model().config), Words("a", "b"), "class was BertForSequenceClassification, and is Other"),
        (
            lambda: renamed(["no", "yes"]),
            Words("b", "a"),
            "the tokenizer has other tokens, or numbers them differently",
        ),
    ],
    ids=["order of labels", "labels", "vocabulary", "class", "tokens"],
)
def test_what_differs_is_named(model, words, line):
    before = identity_of(renamed(["no", "yes"]), Words("a", "b"))
    found = differences(before, identity_of(model(), words))
    assert any(line in one for one in found), found


def test_what_is_not_known_is_not_compared():
    known = identity_of(tiny_model(), Words("a"))
    assert differences(known, identity_of(tiny_model(), None)) == []
    assert differences(identity_of(torch.nn.Linear(2, 2), None), {**known, "class": "Linear"}) == []


# ---- the weights ----


def test_weights_are_recognised_in_half_precision_and_wrapped():
    sample = sample_of(tiny_model())
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert starts_from(sample_of(tiny_model().to(dtype)), sample)
    assert starts_from(sample_of(torch.compile(tiny_model())), sample)


def test_others_are_not():
    sample = sample_of(tiny_model())
    assert not starts_from(sample_of(tiny_model(seed=1)), sample)
    moved = tiny_model()
    with torch.no_grad():
        moved.bert.embeddings.word_embeddings.weight[-1].mul_(1.01)
    assert not starts_from(sample_of(moved), sample)
    assert not starts_from({}, sample)


def test_an_adapter_around_the_weights_changes_nothing_and_its_sum_is_what_the_next_stage_starts_from():
    peft = pytest.importorskip("peft")
    plain = sample_of(tiny_model())
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    assert starts_from(sample_of(adapted), plain)


def test_packed_numbers_of_a_quantised_base_are_not_compared():
    model = tiny_model()
    model.bert.pooler.dense.weight = torch.nn.Parameter(torch.zeros(16, 16, dtype=torch.uint8), requires_grad=False)
    assert "bert.pooler.dense.weight" not in sample_of(model)
    assert starts_from(sample_of(model), sample_of(tiny_model()))


# ---- a trainer ----


def trainer(folder, stage, model, **changes):
    data = {"train_dataset": tiny_dataset(12, seed=3), "eval_dataset": tiny_dataset(4, seed=4)}
    host = f"sequential:folder={folder / 'stages'},stage={stage}"
    return tiny_trainer(folder / stage, host, model=model, trainer_class=Trainer, **data, **CHANGES | changes)


@pytest.fixture
def first(tmp_path):
    trainer(tmp_path, "a", renamed(["no", "yes"]), processing_class=Words("a", "b")).train()
    return tmp_path


def told(caplog):
    return [record.getMessage() for record in caplog.records if "does not start from" in record.getMessage()]


def test_a_stage_that_starts_from_other_weights_is_warned_about(first, caplog):
    trainer(first, "b", renamed(["no", "yes"]))
    (line,) = told(caplog)
    assert str(first / "stages" / "a" / "model") in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_that_starts_from_those_of_the_stage_before_is_not(dtype, first, caplog):
    model = BertForSequenceClassification.from_pretrained(first / "stages" / "a" / "model", dtype=dtype)
    trainer(first, "b", model)
    assert told(caplog) == []


def test_one_that_starts_from_a_merged_adapter_is_not_either(tmp_path, caplog):
    pytest.importorskip("peft")
    host = [f"sequential:folder={tmp_path / 'stages'},stage=a", "peft:r=2,targets=query"]
    data = {"train_dataset": tiny_dataset(12), "eval_dataset": tiny_dataset(4)}
    tiny_trainer(tmp_path / "a", *host, **data, **CHANGES | {"learning_rate": 0.5}).train()
    model = BertForSequenceClassification.from_pretrained(tmp_path / "stages" / "a" / "model")
    moved = (model.bert.encoder.layer[0].attention.self.query.weight - tiny_query()).abs().max()
    assert moved > 0.02
    trainer(tmp_path, "b", model)
    assert told(caplog) == []


def tiny_query():
    return tiny_model().bert.encoder.layer[0].attention.self.query.weight


def test_a_model_of_other_labels_or_tokens_is_refused_before_it_trains(first):
    with pytest.raises(PluginError, match=r"stage=b cannot follow a.*labels was \['no', 'yes'\].*another folder="):
        trainer(first, "b", renamed(["no", "yes", "maybe"]))
    with pytest.raises(PluginError, match="numbers them differently"):
        trainer(first, "b", renamed(["no", "yes"]), processing_class=Words("b", "a"))


def test_an_adapter_that_cannot_be_merged_is_refused_before_it_trains(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    with pytest.raises(PluginError, match=r"stage=a could not be kept as a whole model, since a PROMPT_TUNING adapter"):
        trainer(tmp_path, "a", model)
