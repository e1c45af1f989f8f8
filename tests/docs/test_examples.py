"""The made-up data of the examples, which a user has who has only the package."""

import importlib.util
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml
from transformers import ByT5Tokenizer

from hf_ft_plugins.techniques.sequential.script_stages import read_stages

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sentences():
    made_up = example("tag_parse_ner").made_up
    return made_up(1000, seed=1), made_up(200, seed=3, unknown=0.15)


def test_made_up_sentences_are_trees_with_one_root(sentences):
    for rows in sentences:
        for row in rows:
            heads = row["head"]
            assert len({len(column) for column in row.values()}) == 1
            assert heads.count(0) == 1
            assert [word for word, head in enumerate(heads) if head == 0] == [row["upos"].index("VERB")]
            for word in range(1, len(heads) + 1):
                above = set()
                while word and word not in above:
                    above.add(word)
                    word = heads[word - 1]
                assert word == 0, row


def test_entities_of_made_up_sentences_are_iob2(sentences):
    for rows in sentences:
        for row in rows:
            for before, tag in zip(["O", *row["ner"]], row["ner"], strict=False):
                assert not tag.startswith("I-") or before[2:] == tag[2:]


@pytest.mark.parametrize("column", ["upos", "ner", "deprel"])
def test_words_alone_do_not_tell_a_made_up_sentences_labels(sentences, column):
    train, test = sentences
    seen = defaultdict(Counter)
    for row in train:
        for word, label in zip(row["tokens"], row[column], strict=True):
            seen[word][label] += 1
    known = [
        (seen[word].most_common(1)[0][0] == label if word in seen else None)
        for row in test
        for word, label in zip(row["tokens"], row[column], strict=True)
    ]
    unknown = known.count(None) / len(known)
    assert 0.05 < unknown < 0.2
    assert 0.6 < known.count(True) / (len(known) - known.count(None)) < 0.97


@pytest.fixture(scope="module")
def stages():
    return example("general_to_medical")


def test_questions_to_evaluate_by_ask_of_every_illness_in_words_that_were_not_learned(stages):
    train, held_out = stages.made_up_questions()
    assert not {row["question"] for row in train} & {row["question"] for row in held_out}
    assert {row["answer"] for row in train} == {row["answer"] for row in held_out}
    assert len(held_out) == len(stages.ILLNESSES) * len(stages.STATEMENTS)


def test_every_answer_is_stated_in_the_medical_text(stages):
    text = " ".join(row["text"] for row in stages.made_up_texts(1500))
    assert [row["answer"] for row in stages.made_up_questions()[0] if row["answer"] not in text] == []


def test_of_a_question_and_its_answer_only_the_answer_is_learned(stages):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    texts = [{"question": "What is gout?", "answer": "A disease."}, {"question": "W" * 200, "answer": "Cut off."}]
    (row,) = stages.answered(tokenizer, texts, 64)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == token]
    assert tokenizer.decode(learned) == " A disease.</s>"
    assert set(row["labels"]) - {-100} == set(learned)


def test_the_recipe_names_every_stage_of_the_script_each_from_the_model_of_the_one_before(stages, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    recipe = EXAMPLES / "general_to_medical.yaml"
    _, found = read_stages(recipe)
    assert [stage.name for stage in found] == list(stages.FILES)
    assert [stage.arguments["stage"] for stage in found] == list(stages.FILES)
    assert ["{previous}" in str(dict(stage.arguments)) for stage in found] == [False, True, True]
    assert Path(yaml.safe_load(recipe.read_text(encoding="utf-8"))["script"]).is_file()
