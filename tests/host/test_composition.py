"""The composition matrix: every pair of registered techniques trains, keeps both effects and resumes, or refuses."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from transformers import TrainerCallback

from hf_ft_plugins import lr_scale
from hf_ft_plugins.registry import offers
from hf_ft_plugins.technique import Technique, option
from hf_ft_plugins.testing import Example, check_pair, check_technique, composition_table, example_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
BEGIN, END = "<!-- composition: begin -->", "<!-- composition: end -->"


class HalvingCallback(TrainerCallback):
    """Halves the rate from a step on; remembers that step."""

    def __init__(self, after: int) -> None:
        self.after, self.halved_at = after, None

    def state_dict(self) -> dict[str, Any]:
        return {"halved_at": self.halved_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.halved_at = state["halved_at"]

    def on_step_begin(self, args, state, control, *, optimizer, **kwargs):
        if self.halved_at is None and state.global_step >= self.after:
            self.halved_at = state.global_step
        lr_scale.set_scale(optimizer, "halve-lr", 1.0 if self.halved_at is None else 0.5)


@dataclass(frozen=True, kw_only=True)
class HalveLR(Technique):
    name: ClassVar[str] = "halve-lr"
    summary: ClassVar[str] = "halve the learning rate after some steps"
    after: int = option(4, help="optimizer steps at the full rate")

    def ft_callbacks(self) -> list[Any]:
        return [HalvingCallback(self.after)]


def halved(technique, trainer):
    return all(group.get(lr_scale.KEY, {}).get(technique.name) == 0.5 for group in trainer.optimizer.param_groups)


@dataclass(frozen=True, kw_only=True)
class SquareRootSchedule(Technique):
    name: ClassVar[str] = "square-root-schedule"
    summary: ClassVar[str] = "decay the learning rate with the square root of the step"
    kind: Literal["inverse"] = option("inverse", help="the only kind")

    def ft_scheduler(self, optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) ** -0.5)


@dataclass(frozen=True, kw_only=True)
class OtherSchedule(SquareRootSchedule):
    name: ClassVar[str] = "other-schedule"


def decayed(technique, trainer):
    return trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-2 * 15**-0.5)


BUILT_IN = [example_of(offer.name) for offer in offers() if offer.distribution == "hf-ft-plugins"]
EXAMPLES = [
    *BUILT_IN,
    Example(HalveLR(), halved),
    Example(SquareRootSchedule(), decayed),
    Example(OtherSchedule(), decayed),
]
PAIRS = list(itertools.combinations(EXAMPLES, 2))


@pytest.fixture(scope="module")
def result_of(tmp_path_factory):
    """What `check_pair` says of two examples; each pair is tried once, by whichever test asks first."""
    results: dict[frozenset[str], str] = {}

    def result(first, second):
        names = frozenset((first.name, second.name))
        if names not in results:
            results[names] = check_pair(first, second, tmp_path_factory.mktemp("pair"))
        return results[names]

    return result


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_each_technique_keeps_the_contract(example, tmp_path):
    check_technique(example, tmp_path)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "+".join(example.name for example in pair))
def test_each_pair_trains_and_resumes_together_or_says_why_not(pair, result_of):
    assert result_of(*pair)


def test_the_conflict_of_two_owners_names_both_and_the_hook(result_of):
    square_root, other = EXAMPLES[-2:]
    reason = result_of(square_root, other)
    assert all(word in reason for word in ("square-root-schedule", "other-schedule", "ft_scheduler"))


def test_the_page_shows_this_matrix(request, result_of):
    pairs = itertools.combinations(BUILT_IN, 2)
    results = {frozenset(example.name for example in pair): result_of(*pair) for pair in pairs}
    table = composition_table([example.technique for example in BUILT_IN], results)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if request.config.getoption("--update-docs"):
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    else:
        assert shown.strip() == table, "run: pytest tests/host/test_composition.py --update-docs"
