"""Which parameters the algorithms of matrices take, with which settings, and what they do in a trainer."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.host.trainer import with_plugins
from hf_ft_plugins.techniques.low_memory import LowMemory, for_matrices
from hf_ft_plugins.techniques.low_memory.optimizers.combined import OWNER
from hf_ft_plugins.testing.equality import difference
from hf_ft_plugins.testing.resuming import outcome, resumed
from hf_ft_plugins.testing.tiny_run import tiny_dataset, tiny_model, tiny_trainer

OPTIONS = {
    "galore": {"rank": 4, "update_gap": 5},
    "apollo": {"rank": 4, "update_gap": 5},
    "apollo-mini": {"update_gap": 5},
    "sinkgd": {},
    "muon": {},
}
LAYERS = 3


@pytest.fixture
def llama():
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def names_by_owner(model, optimizer) -> dict[str, set[str]]:
    names = {id(one): name for name, one in model.named_parameters()}
    found: dict[str, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group[OWNER], set()).update(names[id(one)] for one in group["params"])
    return found


def test_the_blocks_linear_layers_are_taken_and_nothing_else(llama):
    found = names_by_owner(llama, for_matrices(llama, torch.optim.AdamW(llama.parameters()), "sinkgd"))
    linear = {name for name, _ in llama.named_parameters() if "_proj" in name}
    assert found["sinkgd"] == linear
    assert found["adamw"] == {name for name, _ in llama.named_parameters()} - linear
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= found["adamw"]


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_each_part_has_the_settings_of_its_group(llama, algorithm):
    parameters = list(llama.parameters())
    decayed, rest = ([one for one in parameters if (one.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.3, "lr": 1e-2}, {"params": rest, "weight_decay": 0.0, "lr": 2e-2}]
    script = torch.optim.AdamW(groups, betas=(0.5, 0.6), eps=1e-5)
    optimizer = for_matrices(llama, script, algorithm, **OPTIONS[algorithm])
    of_matrices, *others = optimizer.param_groups
    assert [(group["weight_decay"], group["lr"]) for group in others] == [(0.3, 1e-2), (0.0, 2e-2)]
    assert all((group["betas"], group["eps"]) == ((0.5, 0.6), 1e-5) for group in others)
    assert (of_matrices["weight_decay"], of_matrices["lr"]) == (0.3, 1e-2)
    # Muon's eps is another one.
    assert of_matrices.get("eps") == {"sinkgd": None, "muon": 1e-7}.get(algorithm, 1e-5)
    # None is lost, none comes twice.
    found = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(found) == sorted(map(id, parameters))


def test_settings_of_other_optimizers_are_not_taken_for_adams(llama):
    from transformers import Adafactor

    script = Adafactor(llama.parameters(), lr=1e-3, relative_step=False, beta1=0.9)
    optimizer = for_matrices(llama, script, "galore", rank=2)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.999), 1e-8)}
    with pytest.raises(PluginError, match="the learning rate of the script's optimizer, and the Adafactor has none"):
        for_matrices(llama, Adafactor(llama.parameters()), "galore", rank=2)


def test_matrices_that_the_rank_does_not_make_smaller_are_left_to_adamw(llama, caplog):
    script = torch.optim.AdamW(llama.parameters())
    with caplog.at_level(logging.INFO):
        found = names_by_owner(llama, for_matrices(llama, script, "galore", rank=4))
    # Keys and values are 4 wide.
    assert not any(name in found["galore"] for name in found["adamw"])
    assert {name.split(".")[-2] for name in found["galore"]} == {
        "q_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert "among them 4 matrices whose smaller side is not above rank=4" in caplog.text
    with pytest.raises(PluginError, match=r"rank=16 is not below.*the largest of which is 16.*rank=4\."):
        for_matrices(llama, script, "apollo", rank=16)


def test_tied_and_frozen_parameters(llama):
    for parameter in llama.model.layers[0].parameters():
        parameter.requires_grad_(False)
    learning = [one for one in llama.parameters() if one.requires_grad]
    found = names_by_owner(llama, for_matrices(llama, torch.optim.AdamW(learning), "muon"))
    assert all(name.startswith("model.layers.1.") for name in found["muon"])


def test_a_model_without_matrices_or_with_an_adapter_is_refused(llama):
    plain = torch.nn.Linear(4, 4)
    with pytest.raises(PluginError, match=r"the optimizer of this Linear has none\. Use algorithm=adalomo"):
        for_matrices(plain, torch.optim.AdamW(plain.parameters()), "muon")
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"]))
    learning = [one for one in adapted.parameters() if one.requires_grad]
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(PluginError, match=r"trains an adapter.*Use algorithm=script"):
            for_matrices(model, torch.optim.AdamW(learning), "sinkgd")


def test_a_model_most_of_which_is_left_to_adamw_is_a_warning(llama, caplog):
    script = torch.optim.AdamW(llama.parameters())
    with caplog.at_level(logging.WARNING):
        for_matrices(llama, script, "sinkgd")
        assert not caplog.records
        llama.resize_token_embeddings(1000)
        for_matrices(llama, torch.optim.AdamW(llama.parameters()), "sinkgd")
    assert "sinkgd trains 14 matrices" in caplog.text


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_a_trainer_resumes_it_exactly(tmp_path, algorithm):
    technique = LowMemory(algorithm=algorithm, **OPTIONS[algorithm])
    whole = tiny_trainer(tmp_path / "whole", technique)
    whole.train()
    assert difference(outcome(resumed(tmp_path / "resumed", technique)), outcome(whole)) is None


def test_it_works_in_a_stock_trainer(tmp_path):
    model = tiny_model()
    optimizer = for_matrices(model, torch.optim.AdamW(model.parameters(), lr=1e-2), "galore", rank=4)
    args = TrainingArguments(str(tmp_path), max_steps=5, report_to="none", disable_tqdm=True, use_cpu=True)
    own = Trainer(model=model, args=args, train_dataset=tiny_dataset(), optimizers=(optimizer, None))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    own.train()
    # The word embeddings of tokens that do not come, and biases of keys, which softmax cancels, may stay.
    still = [name for name, one in model.named_parameters() if torch.equal(one, before[name])]
    assert all("bias" in name or "embeddings" in name for name in still)


def test_layer_wise_rates_of_transfer_reach_both_parts(tmp_path):
    trainer = tiny_trainer(tmp_path, LowMemory(algorithm="apollo-mini"), "transfer:layer_decay=0.5,strategy=full")
    trainer.create_optimizer()
    groups = trainer.optimizer.param_groups
    assert {group[OWNER] for group in groups} == {"apollo-mini", "adamw"}
    assert len(groups) > 2 * LAYERS
    trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank=0 is not allowed"), ({"update_gap": 0}, "update_gap=0"), ({"scale": 0.0}, "scale=0.0")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        LowMemory(algorithm="galore", **options)


def test_options_of_other_algorithms_are_idle():
    assert LowMemory(algorithm="galore", rank=8, update_gap=9, scale=1.0).idle_options() == {}
    idle = LowMemory(algorithm="sinkgd", rank=8, update_gap=9, scale=1.0).idle_options()
    assert idle == {"rank": "algorithm=sinkgd has none", "update_gap": "algorithm=sinkgd has none"}
    assert set(LowMemory(rank=8, scale=2.0).idle_options()) == {"rank", "scale"}


def test_options_reach_the_groups(tmp_path):
    trainer = tiny_trainer(tmp_path, LowMemory(algorithm="galore", rank=5, update_gap=6, scale=0.7))
    group = next(one for one in trainer.create_optimizer().param_groups if one[OWNER] == "galore")
    assert (group["rank"], group["update_gap"], group["scale"]) == (5, 6, 0.7)
    trainer = tiny_trainer(tmp_path, LowMemory(algorithm="apollo-mini"))
    group = next(one for one in trainer.create_optimizer().param_groups if one[OWNER] == "apollo-mini")
    assert (group["rank"], group["scale"], group["scaling"]) == (1, math.sqrt(128), "tensor")
    assert with_plugins(Trainer, "low-memory:algorithm=muon")
