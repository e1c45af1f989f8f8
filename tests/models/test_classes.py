"""The class that a configuration names."""

import pytest
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from hf_ft_plugins.models.classes import class_of


@pytest.mark.parametrize("architectures", [["set_seed"], ["logging"], ["BertConfig"], ["NoSuchModel"], [], None, [3]])
def test_a_name_that_is_no_model_is_never_taken_for_one(architectures):
    config = BertConfig()
    config.architectures = architectures
    assert class_of(config) is AutoModelForCausalLM
    assert class_of(config, AutoModel) is AutoModel


def test_the_first_model_that_is_named_is_taken():
    config = BertConfig(architectures=["BertForSequenceClassification", "BertModel"])
    assert class_of(config) is BertForSequenceClassification
