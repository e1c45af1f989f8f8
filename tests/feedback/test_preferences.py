"""The whole way from a log to preferences: splits, weights, privacy, refusals."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.feedback import load_feedback, preferences_from_log
from tests.feedback.format_samples import PAIRED
from tests.feedback.written_logs import EMAIL, contents, conversation, found, lines


def test_invariants_of_a_busy_log(busy):
    prompts = {f"question {n}" for n in range(700)}
    made = preferences_from_log(busy, eval_share=0.4)
    pairs, labels = list(made.pairs()), list(made.labels())
    assert len(pairs) > 500
    assert len(labels) > 500
    for rows in (pairs, labels):
        for split in ("train", "eval"):
            weights = [row["behavior_weight"] for row in rows if row["split"] == split]
            assert len(weights) > 30
            assert np.mean(weights) == pytest.approx(1, abs=1e-4)
        users = {
            split: {one for row in rows if row["split"] == split and row["user"] for one in row["user"].split("+")}
            for split in ("train", "eval")
        }
        assert users["train"]
        assert not users["train"] & users["eval"]
        assert all(0 <= row["behavior_eps"] < 0.5 and row["behavior_weight"] > 0 for row in rows)
        assert all(row["source_event_ids"] for row in rows)
    for row in pairs:
        # Answers name their prompt's number, so a pair across prompts would show.
        assert len({text.split()[1] for text in contents(row)}) == 1
        assert row["prompt"][0]["content"].split(" from")[0] in prompts
        assert contents(row)[0] != contents(row)[1]
    written = "".join(file.read_text() for file in made.folder.iterdir()) + json.dumps(made.report)
    assert "@" not in written
    assert "<EMAIL>" in written
    assert made.report["personal_data"]["EMAIL"] > 1500


def test_personal_data_stays_only_where_that_is_asked_for(busy):
    made = preferences_from_log(busy, pii=False)
    assert EMAIL in (made.folder / "pairs.jsonl").read_text()
    assert any(row["user"] and row["user"].endswith("@example.com") for row in made.labels())


def test_same_log_same_rows_whatever_the_hash_seed(busy, tmp_path):
    code = (
        "import sys; from hf_ft_plugins.feedback.preferences import preferences_from_log as p;"
        "p(sys.argv[1], folder=sys.argv[2])"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(busy), str(tmp_path / seed)], check=True, env=env)
    for name in ("pairs.jsonl", "labels.jsonl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    # Control: another seed makes another split.
    made = preferences_from_log(busy, seed=5)
    assert (made.folder / "pairs.jsonl").read_bytes() != (tmp_path / "1" / "pairs.jsonl").read_bytes()


def test_load_feedback_gives_data_sets_for_trl(busy):
    data = load_feedback(busy, "pairs", "train")
    assert data.column_names[:3] == ["prompt", "chosen", "rejected"]
    assert {"behavior_weight", "behavior_eps", "signal", "user", "source_event_ids", "split"} <= set(data.column_names)
    assert set(data["split"]) == {"train"}
    assert data._fingerprint == load_feedback(busy, "pairs", "train")._fingerprint
    assert data._fingerprint != load_feedback(busy, "pairs", "eval")._fingerprint
    labels = load_feedback(busy, "labels")
    assert set(labels["label"]) == {True, False}


def test_one_sided_logs_are_refused_and_warned_of(log):
    path = log(conversation("a"), [{"type": "copy", "message_id": "c.0"}])
    assert any("all 1 labels are good" in warning for warning in found(path)[2]["warnings"])
    with pytest.raises(PluginError, match=r"all 1 labels .* are good"):
        load_feedback(path, "labels", eval_share=0.0)
    with pytest.raises(PluginError, match=r"gives no pairs.*gives 1 labels: load those"):
        load_feedback(path, "pairs", eval_share=0.0)
    bad = log(conversation("a"), [{"type": "correction", "message_id": "c.0"}], "bad")
    with pytest.raises(PluginError, match="are bad"):
        load_feedback(bad, "labels", eval_share=0.0)
    with pytest.raises(PluginError, match="for the split 'eval'"):
        load_feedback(bad, "labels", "eval", eval_share=0.0)


@pytest.mark.parametrize(
    "options", [{"signals": ("thumb",)}, {"signals": "copy"}, {"eval_share": 1}, {"half_life_days": 0}, {"limit": 0}]
)
def test_options_out_of_range(options, tmp_path):
    with pytest.raises(OptionError, match=next(iter(options))):
        preferences_from_log(lines(tmp_path / "log.jsonl", PAIRED["trl"]), **options)


def test_half_surrogates_and_control_characters_survive(log):
    odd = 'a "quoted"\u2028\x00\x1f\ttext \ud83d and 日本'
    _, (row,), _ = found(log(conversation(odd), [{"type": "copy", "message_id": "c.0"}]))
    assert row["completion"][0]["content"] == odd.replace("\ud83d", "?")
