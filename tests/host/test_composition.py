"""The composition matrix: every pair of registered techniques trains, keeps both effects and resumes, or refuses."""

import itertools
from pathlib import Path

import pytest

from hf_ft_plugins.testing import check_pair, composition_table
from tests.host.example_techniques import BUILT_IN, EXAMPLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
BEGIN, END = "<!-- composition: begin -->", "<!-- composition: end -->"
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
