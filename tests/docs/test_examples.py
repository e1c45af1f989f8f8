"""The made-up data of the examples, which a user has who has only the package."""

import importlib.util
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

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
