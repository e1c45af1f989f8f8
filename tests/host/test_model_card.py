"""The model card of a hosted run says how the model was made, once, and in nobody's markup but ours."""

import re

import pytest
from huggingface_hub import ModelCard

from hf_ft_plugins import AdaptiveLR
from hf_ft_plugins.host.model_card import BEGIN, END, MOST_ROWS, add_to_card, section_of
from hf_ft_plugins.report_sections import Curve, Facts, Grid, Rows, as_json
from hf_ft_plugins.testing import tiny_trainer

CUTTING = {"controller": "plateau", "patience": 1, "min_delta": 1e9, "max_cuts": 1}


def record(*sections, **changes):
    return {
        "techniques": [{"name": "mine", "distribution": "d", "version": "1", "options": {"x": 1, "y": "a|b"}}],
        "versions": {"torch": "2"},
        "data": {"train": 1000},
        "trainer": "Trainer",
        "status": "ended",
        "step": 7,
        "sections": {"mine": [as_json(one) for one in sections]},
        **changes,
    }


def rows_of(text):
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]


def test_the_card_of_a_run_tells_its_techniques_options_and_metrics(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(**CUTTING))
    trainer.train()
    trainer.create_model_card(model_name="a model", tags=["a-tag"])
    card = ModelCard.load(tmp_path / "README.md")
    assert {"a-tag", "hf-ft-plugins"} <= set(card.data.tags)
    section = card.text.partition(BEGIN)[2].partition(END)[0]
    for expected in ("adaptive-lr", "`patience=1`", "eval_loss", "cuts", "trained it for"):
        assert expected in section


def test_the_section_stands_there_once_however_often_it_is_made(tmp_path):
    trainer = tiny_trainer(tmp_path, AdaptiveLR(**CUTTING), max_steps=2)
    trainer.create_model_card()
    trainer.train()
    for _ in range(2):
        trainer.create_model_card()
        assert add_to_card(tmp_path, record())
    text = (tmp_path / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == text.count("## Fine-tuning techniques") == 1
    assert "for 7 steps on 1,000 rows" in text


def test_what_a_card_says_elsewhere_is_kept(tmp_path):
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n# Mine\n\n{BEGIN}\nold\n{END}\n\nAfter it.\n")
    add_to_card(tmp_path, record())
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert "# Mine" in card.text
    assert "After it." in card.text
    assert "old" not in card.text


def test_without_a_card_nothing_is_written(tmp_path):
    assert not add_to_card(tmp_path, record())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "section",
    [
        Facts("facts", {"a|b": "<b>bold</b>\nline"}),
        Rows("rows", ("x|", "y"), [("|", "<i>")]),
        Grid("grid", ("r|",), ("c",), [[None]], "true", "predicted"),
        Curve("curve", [1], {"l|": [0.5]}, "x"),
    ],
    ids=lambda section: section.kind,
)
def test_every_kind_is_a_table_whose_cells_stay_cells(section):
    text = section_of(record(section))
    tables = text.partition("### mine")[2]
    cells = rows_of(tables)
    assert len({len(row) for row in cells}) == 1
    assert len(cells) == 3
    assert "<b>" not in tables
    assert "<i>" not in tables


def test_long_tables_are_cut_and_say_so():
    text = section_of(record(Rows("rows", ("x",), [(number,) for number in range(MOST_ROWS + 5)])))
    assert "and 5 more rows" in text
    assert len(rows_of(text.partition("### mine")[2])) == 2 + MOST_ROWS


def test_trls_card_which_is_made_with_each_checkpoint_ends_with_the_whole_report(tmp_path):
    trl = pytest.importorskip("trl")
    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": f"a story of {word}"} for word in ("cats", "dogs", "birds", "fish")])
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    args = trl.SFTConfig(str(tmp_path), eval_strategy="steps", eval_steps=1, **settings)
    options = {**CUTTING, "stop": False}
    host = with_plugins(trl.SFTTrainer, AdaptiveLR(**options))
    sets = {"train_dataset": rows, "eval_dataset": rows}
    trainer = host(tiny_llama(), args, processing_class=tiny_tokenizer(), **sets)
    trainer.train()
    text = (tmp_path / "README.md").read_text()
    assert text.count(BEGIN) == 1
    assert "trained it for 4 steps" in text
    assert "cuts" in text
    assert "trl" in ModelCard.load(tmp_path / "README.md").data.tags
