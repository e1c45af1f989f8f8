"""The kit for authors of techniques: tiny models and data, and `check_technique`, which holds one to the contract.

    from hf_ft_plugins.testing import Example, check_technique

    def acted(technique, trainer):
        return any("my_technique/scale" in entry for entry in trainer.state.log_history)

    def test_my_technique(tmp_path):
        check_technique(Example(MyTechnique(factor=0.8), acted), tmp_path)

`check_pair` tries two techniques together; `example_of("adaptive-lr")` is the kit's own example of a built-in one.
Needs no network, no GPU and no test runner; a check takes a few seconds. Our own tests use nothing else.
"""

from __future__ import annotations

from .checks import (
    check_building,
    check_options,
    check_pair,
    check_questions,
    check_run,
    check_technique,
    check_trains_and_resumes,
)
from .composition import composition_table
from .equality import difference
from .example import Example, example_of, setting_of
from .log_everything import LogEverything, hook_names
from .resuming import InterruptAt, Interruption, outcome, resumed
from .tiny_run import LENGTH, VOCABULARY, tiny_dataset, tiny_model, tiny_trainer

__all__ = [
    "LENGTH",
    "VOCABULARY",
    "Example",
    "InterruptAt",
    "Interruption",
    "LogEverything",
    "check_building",
    "check_options",
    "check_pair",
    "check_questions",
    "check_run",
    "check_technique",
    "check_trains_and_resumes",
    "composition_table",
    "difference",
    "example_of",
    "hook_names",
    "outcome",
    "resumed",
    "setting_of",
    "tiny_dataset",
    "tiny_model",
    "tiny_trainer",
]
