import gc
import json
import os
import sys
from pathlib import Path

import pytest

from tests.two_processes import on_both_ranks, on_ranks, processes  # noqa: F401

# Set before anything imports transformers or datasets: no test touches the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nor does one write into the user's cache folder.
os.environ.setdefault("HF_FT_PLUGINS_FORGET", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--update-docs", action="store_true", help="write the composition table into docs/composition.md")


modules_frozen = 0


def pytest_runtest_setup(item):
    # Each `Trainer.train()` collects garbage, and would look through all that torch and transformers made: half of the
    # time that a tiny run takes.
    global modules_frozen
    if len(sys.modules) > modules_frozen + 100:
        gc.collect()
        gc.freeze()
        modules_frozen = len(sys.modules)


@pytest.fixture(autouse=True)
def _refusals_can_be_read_by_programs(monkeypatch):
    """Of every refusal that a test meets: its code is of the table, its mend of the vocabulary, and JSON holds both."""
    from hf_ft_plugins import mends
    from hf_ft_plugins.error_codes import table
    from hf_ft_plugins.errors import PluginError

    made, initialise = [], PluginError.__init__

    def init(error, *args, **kwargs):
        initialise(error, *args, **kwargs)
        made.append(error)

    monkeypatch.setattr(PluginError, "__init__", init)
    yield
    for error in made:
        assert error.code in table()
        mends.refuse_strangers(json.loads(json.dumps(error.mend)))


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data sets and checkpoints; tests that need it skip without it."""
    folder = Path(os.environ.get("FT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FT_DATA")
    return folder
