"""What a run's report says of preferences: rows, their weights and doubts, and what max_length did to them."""

import statistics

import pytest

pytest.importorskip("trl")
pytest.importorskip("datasets")

from hf_ft_plugins.techniques.behavioral.collator import FLIP, WEIGHT
from hf_ft_plugins.testing import tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_setting


def reported(folder, spec="behavioral", **changes):
    trainer = tiny_trainer(folder, spec, **tiny_setting("dpo", **changes))
    (technique,) = trainer._ft_techniques
    return {section.title: section for section in technique.ft_report(trainer)}, trainer


def test_weights_and_doubts_are_counted_where_they_are_used(tmp_path):
    found, trainer = reported(tmp_path)
    facts, data = found["Preferences"].facts, trainer.train_dataset
    assert facts["rows"] == len(data)
    for word, column in (("weight", WEIGHT), ("doubt", FLIP)):
        given = [value for value in data[column] if value is not None]
        assert facts[f"rows with a {word}"] == len(given)
        assert facts[f"mean {word}"] == pytest.approx(statistics.fmean(given))
    unused, _ = reported(tmp_path, "behavioral:weights=false,noise=off")
    assert unused["Preferences"].facts.keys() == {"rows", "prefixes of pairs computed once"}


def test_few_rows_are_said_to_be_few(tmp_path, caplog, monkeypatch):
    from hf_ft_plugins.techniques.behavioral import data_report

    with caplog.at_level("INFO"):
        _, trainer = reported(tmp_path)
        assert f"behavioral: {len(trainer.train_dataset)} rows are few" in caplog.text
        caplog.clear()
        monkeypatch.setattr(data_report, "FEW", 2)
        reported(tmp_path)
    assert "are few" not in caplog.text


def test_what_was_cut_and_dropped_is_a_table(tmp_path):
    found, trainer = reported(tmp_path, max_length=28)
    table = found["Rows at max_length=28"]
    assert {row[0] for row in table.rows} == {"train", "eval"}
    assert "completion cut" in {row[1] for row in table.rows}
    kept = sum(row[2] for row in table.rows if row[0] == "train" and not row[1].startswith("dropped"))
    assert kept == len(trainer.train_dataset)
