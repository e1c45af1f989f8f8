"""What is merged and exported is what was trained."""

import copy
import json

import pytest
import torch
import transformers

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import PeftModel  # noqa: E402

from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    Peft,
    logits_error,
    merge_exactly,
    verified_merge,
)
from hf_ft_plugins.testing import difference, tiny_trainer  # noqa: E402
from tests.techniques.peft.small_models import IDS, adapted, exported, learn, logits, small_llama, texts  # noqa: E402


def test_merged_from_nf4_is_what_was_trained_and_pefts_own_merge_is_not(tmp_path):
    model = adapted(Peft(r=8, quant="nf4"), tmp_path)
    learn(model)
    trained, batch = logits(model), {"input_ids": IDS}
    ours = logits_error(model, merge_exactly(model), batch)
    control = float((logits(copy.deepcopy(model).merge_and_unload()) - trained).norm() / trained.norm())
    assert ours < 1e-5
    assert control > 1e-2


def test_merging_equals_pefts_own_where_nothing_is_quantised(tmp_path):
    model = adapted(Peft(method="dora", r=8), tmp_path)
    learn(model)
    reference = copy.deepcopy(model).merge_and_unload()
    assert difference(dict(merge_exactly(model).state_dict()), dict(reference.state_dict())) is None


def test_a_merge_that_is_not_what_was_trained_is_not_saved(tmp_path, monkeypatch):
    from hf_ft_plugins.techniques.peft import merge

    model = adapted(Peft(r=8, quant="nf4"), tmp_path)
    learn(model)
    monkeypatch.setattr(merge, "merge_exactly", lambda model: copy.deepcopy(model).merge_and_unload())
    with pytest.raises(PluginError, match="logits differ by"):
        verified_merge(model, {"input_ids": IDS}, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["lora", "pissa", "olora", "adalora", "vera"])
def test_what_is_exported_is_what_was_trained(method, tmp_path):
    trainer = exported(tmp_path, method=method, **({} if method == "vera" else {"r": 4}))
    trained = logits(trainer.model)
    # On the base as it was before PiSSA took a part of it.
    adapter = PeftModel.from_pretrained(small_llama(), tmp_path / "adapter")
    assert (
        difference(dict(adapter.get_base_model().lm_head.state_dict()), dict(small_llama().lm_head.state_dict()))
        is None
    )
    torch.testing.assert_close(logits(adapter), trained, rtol=1e-4, atol=1e-4)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    if method in ("pissa", "olora"):
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["init_lora_weights"]) == (8, True)
        own = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
        assert not torch.equal(own, small_llama().model.layers[0].self_attn.q_proj.weight), (
            "there is nothing to convert"
        )


def test_training_goes_on_from_an_adapter_and_not_on_another_base(tmp_path):
    trainer = exported(tmp_path / "first", r=4)
    trained = logits(trainer.model)
    again = Peft(adapter=str(tmp_path / "first" / "adapter"))
    setting = {"train_dataset": texts(), "eval_strategy": "no"}
    went_on = tiny_trainer(tmp_path / "second", again, model=small_llama(), **setting)
    assert torch.equal(logits(went_on.model), trained)
    went_on.train()
    assert not torch.equal(logits(went_on.model), trained)
    with pytest.raises(PluginError, match="was trained on another model"):
        tiny_trainer(tmp_path / "third", again, model=small_llama(seed=1), **setting)
    with pytest.raises(PluginError, match="was trained on another model"):
        tiny_trainer(tmp_path / "third", again, model=small_llama(hidden_size=32), **setting)
    with pytest.raises(PluginError, match="holds no adapter_config"):
        tiny_trainer(tmp_path / "third", Peft(adapter=str(tmp_path)), model=small_llama(), **setting)
