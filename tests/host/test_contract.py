"""Each technique keeps the contract by itself: options, training, exact resume, an effect that shows."""

import pytest

from hf_ft_plugins.testing import check_technique
from tests.host.example_techniques import EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_each_technique_keeps_the_contract(example, tmp_path):
    check_technique(example, tmp_path)
