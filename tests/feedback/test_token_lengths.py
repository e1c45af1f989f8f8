"""How many completions would be cut."""

from pathlib import Path

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback import preferences_from_log
from tests.feedback.written_logs import conversation


def test_tokens_are_measured(data_folder, log):
    from hf_ft_plugins.feedback.report import measured

    long = conversation("short", "long " * 400)
    act = [{"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}]
    made = preferences_from_log(log(long, act), eval_share=0.0)
    tokenizer = str(data_folder / "ckpt_books_lm")
    assert measured(made.folder, tokenizer, 1024)["pairs"]["cut"] == 0
    cut = measured(made.folder, tokenizer, 64)["pairs"]
    assert cut["cut"] == 1
    assert 0 < cut["padding"] < 1
    with pytest.raises(PluginError, match="holds no tokenizer"):
        measured(made.folder, str(Path("nowhere")), 64)
