"""Files of JSON, one record a line or one list, whole and broken."""

import gzip
import json

import pytest

from hf_ft_plugins.errors import PluginError
from tests.feedback.format_samples import ASK, BAD, GOOD, PAIRED
from tests.feedback.written_logs import contents, conversation, found, lines


@pytest.mark.parametrize("how", ["jsonl.gz", "json", "tables in one file", "bom"])
def test_ways_of_writing_a_log(how, tmp_path):
    records = PAIRED["trl"] * 3
    if how == "jsonl.gz":
        path = tmp_path / "log.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in records).encode()))
    elif how == "json":
        path = tmp_path / "log.json"
        path.write_text(json.dumps(records, indent=1))
    elif how == "bom":
        path = tmp_path / "log.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + lines(tmp_path / "x", records).read_bytes())
    else:
        act = {"id": "e", "type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}
        told = [{"table": "message", **one} for one in conversation(GOOD, BAD, prompt=ASK)]
        path = lines(tmp_path / "log.jsonl", [{"table": "event", **act}, *told])
    pairs, _, _ = found(path)
    assert [contents(row) for row in pairs] == [(GOOD, BAD)]


def test_large_items_of_a_list_are_read_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ft_plugins.feedback.log_files.CHUNK", 64)
    rows = [{"prompt": f"q{n}", "chosen": "yes " * n, "rejected": "no"} for n in range(1, 40)]
    (tmp_path / "log.json").write_text(json.dumps(rows))
    assert found(tmp_path / "log.json")[2]["lines"]["read"] == 39


def test_broken_lines_are_counted_and_quoted_and_too_many_are_an_error(tmp_path):
    rows = [json.dumps({**PAIRED["trl"][0], "prompt": f"q{n}"}) for n in range(300)]
    rows[7] = '{"prompt": "secret'
    rows[9] = json.dumps({"prompt": "x", "chosen": 3, "rejected": "y"})
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(rows))
    pairs, _, report = found(path)
    assert len(pairs) == 298
    assert report["lines"]["broken"] == 2
    assert [quote.split(": ")[0] for quote in report["lines"]["broken_first"]] == ["log.jsonl:8", "log.jsonl:10"]
    assert "secret" not in json.dumps(report)
    rows[20:24] = ["[1]", "null", "{} {}", "\ud800".encode("utf-8", "replace").decode() + "{"]
    path.write_text("\n".join(rows))
    with pytest.raises(PluginError, match=r"6 of 300 lines of the log are broken, more than 1%.*log.jsonl:8"):
        found(path)


def test_a_list_that_breaks_off_is_an_error(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(PAIRED["trl"] * 3)[:-20])
    with pytest.raises(PluginError, match="breaks off or breaks in item 3"):
        found(path)
