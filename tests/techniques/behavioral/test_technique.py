"""References, refusals, and batches of rows about which nothing is known."""

import copy
import itertools

import pytest
import torch

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402

from hf_ft_plugins.errors import ConflictError, PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral import Behavioral  # noqa: E402
from hf_ft_plugins.testing import difference, tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_llama,
    tiny_preferences,
    tiny_setting,
)
from tests.techniques.behavioral.trainers import EXTRAS, built  # noqa: E402

# ---- references ----


def test_a_reference_without_the_models_surgery_is_refused(tmp_path):
    model = tiny_llama()
    reference = copy.deepcopy(model)
    del model.model.layers[-1]
    setting = tiny_setting("dpo") | {"model": model, "ref_model": reference}
    with pytest.raises(PluginError, match=r"the reference model lacks.*model\.layers\.1"):
        tiny_trainer(tmp_path, "behavioral", **setting)


def test_a_trained_adapter_that_becomes_its_own_reference_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    tiny_trainer(tmp_path, "behavioral", **tiny_setting("dpo") | {"model": model, "ref_model": None})
    trained = peft.get_peft_model(
        tiny_llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    with pytest.raises(PluginError, match="trained_adapter=reference"):
        tiny_trainer(tmp_path, "behavioral", **tiny_setting("dpo") | {"model": trained, "ref_model": None})
    again = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    setting = tiny_setting("dpo") | {"model": again, "ref_model": None}
    tiny_trainer(tmp_path, "behavioral:trained_adapter=reference", **setting)


def test_references_that_other_options_made_are_computed_again(tmp_path):
    data = tiny_preferences(8)
    folder = tmp_path / "data"
    data.save_to_disk(folder)

    def reference_log_probabilities(technique, alpha):
        setting = tiny_setting("dpo", precompute_ref_log_probs=True, ld_alpha=alpha, truncation_mode="keep_end")
        setting |= {"train_dataset": Dataset.load_from_disk(folder), "eval_dataset": None, "eval_strategy": "no"}
        trainer = tiny_trainer(tmp_path / "run", *technique, **setting)
        return torch.tensor(trainer.train_dataset["ref_rejected_logps"])

    for technique, stale in ((["behavioral"], False), ([], True)):
        whole, part = (reference_log_probabilities(technique, alpha) for alpha in (None, 0.1))
        assert torch.equal(whole, part) == stale


# ---- as a technique ----


@pytest.mark.parametrize("other", ["task", "text2text", "multitask"])
def test_techniques_that_train_on_labels_are_refused(other, tmp_path):
    with pytest.raises(ConflictError, match="preferences"):
        tiny_trainer(tmp_path, "behavioral", other, **tiny_setting("dpo"))


def test_a_trainer_that_is_not_trls_is_refused(tmp_path):
    with pytest.raises(PluginError, match="none of TRL's"):
        tiny_trainer(tmp_path, Behavioral())


def test_batches_are_those_of_stock_where_nothing_is_known_about_the_rows(tmp_path):
    data = tiny_preferences(24).remove_columns(list(EXTRAS))
    ours = built(tmp_path / "a", "behavioral", train_dataset=data)
    stock = built(tmp_path / "b", train_dataset=data)
    for one, other in itertools.islice(zip(ours.get_train_dataloader(), stock.get_train_dataloader(), strict=True), 3):
        assert difference(dict(one), dict(other)) is None
