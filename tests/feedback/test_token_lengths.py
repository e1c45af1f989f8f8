"""How many completions would be cut."""

from pathlib import Path

import pytest

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.feedback import preferences_from_log
from tests.feedback.written_logs import conversation


def test_tokens_are_measured(data_folder, log):
    from hf_ft_plugins.feedback.token_lengths import token_lengths

    long = conversation("short", "long " * 400)
    act = [{"type": "choice", "value": "c.0", "candidates": ["c.0", "c.1"]}]
    made = preferences_from_log(log(long, act), eval_share=0.0)
    tokenizer = str(data_folder / "ckpt_books_lm")
    assert token_lengths(made.folder, tokenizer, 1024)["pairs"]["cut"] == 0
    cut = token_lengths(made.folder, tokenizer, 64)["pairs"]
    assert cut["cut"] == 1
    assert 0 < cut["padding"] < 1
    with pytest.raises(PluginError, match="holds no tokenizer"):
        token_lengths(made.folder, str(Path("nowhere")), 64)
