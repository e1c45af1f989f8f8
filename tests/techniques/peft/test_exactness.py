"""What decides whether an adapter or a merged model is the trained one, checked on cases where it must say no."""

import copy

import pytest
import torch
import transformers

peft = pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict  # noqa: E402

from hf_ft_plugins.errors import OptionError, PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    AdaLoraCallback,
    find_targets,
    make_config,
    plain_lora,
    verified_merge,
)
from hf_ft_plugins.techniques.peft.model_outputs import relative_error  # noqa: E402
from hf_ft_plugins.techniques.peft.saved_adapter import config_for  # noqa: E402
from hf_ft_plugins.techniques.peft.tasks import task_of  # noqa: E402
from hf_ft_plugins.techniques.peft.tied_weights import joined  # noqa: E402
from hf_ft_plugins.techniques.peft.whole_folders import written_whole  # noqa: E402
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_llama  # noqa: E402

IDS = torch.randint(3, 380, (4, 24), generator=torch.Generator().manual_seed(1))


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def learned(model):
    model.train()
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


# ---- how far outputs differ ----


def test_positions_of_padding_do_not_count_in_the_error():
    wanted, found = torch.ones(2, 3, 5), torch.ones(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found[0, 2] = 9.0
    assert relative_error([wanted], [found], {"attention_mask": mask}) == 0.0
    assert relative_error([wanted], [found], {}) > 1, "without the mask they count"
    found[1, 2] = 2.0
    # 5 differences of 1 among 25 values of 1.
    assert relative_error([wanted], [found], {"attention_mask": mask}) == pytest.approx((5 / 25) ** 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_equals_no_finite_one(value):
    wanted, found = torch.ones(2, 3), torch.ones(2, 3)
    found[1, 1] = value
    assert relative_error([wanted], [found], {}) == float("inf")
    # Masked logits are infinite in both models.
    assert relative_error([found], [found.clone()], {}) == 0.0


def test_outputs_of_another_shape_differ():
    assert relative_error([torch.ones(2, 3)], [torch.ones(3, 2)], {}) == float("inf")


# ---- merged ----


def test_a_merged_model_that_reloads_otherwise_is_not_kept(tmp_path, monkeypatch):
    model = learned(get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"])))
    read = transformers.LlamaForCausalLM.from_pretrained

    def other(folder):
        again = read(folder)
        again.lm_head.weight.data[0, 0] += 1e-3
        return again

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", other)
    with pytest.raises(PluginError, match=r"the merged model's lm_head\.weight is another"):
        verified_merge(model, {"input_ids": IDS}, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    monkeypatch.undo()
    assert verified_merge(model, {"input_ids": IDS}, tmp_path / "merged") < 1e-5


def test_tied_layers_share_one_tensor_again_where_they_differ_by_rounding_alone():
    names = ["model.embed_tokens.weight", "lm_head.weight"]

    def shared_again(change, tied):
        model = tiny_llama(tie_word_embeddings=True)
        weight = model.model.embed_tokens.weight
        model.lm_head.weight = torch.nn.Parameter(weight.detach() + change * weight.detach().abs().max())
        joined(model, [names], tied)
        assert model.config.tie_word_embeddings == (model.lm_head.weight is model.model.embed_tokens.weight)
        return model.config.tie_word_embeddings

    rounding = 4 * torch.finfo(torch.float32).eps
    assert shared_again(rounding, tied=True)
    assert not shared_again(rounding, tied=False), "adapters of their own may differ by little"
    assert not shared_again(1e-4, tied=True)


# ---- adapters that changed their base ----


@pytest.mark.parametrize("patterns", [{}, {"rank_pattern": {"k_proj": 3}, "alpha_pattern": {"k_proj": 5}}])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_as_plain_lora_computes_what_was_trained(use_rslora, patterns):
    base = tiny_llama()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "k_proj"],
        init_lora_weights="pissa",
        use_rslora=use_rslora,
        **patterns,
    )
    model = get_peft_model(copy.deepcopy(base), config)
    initial = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    trained = logits(learned(model))
    tensors, plain = plain_lora(model, initial)
    again = get_peft_model(copy.deepcopy(base), plain)
    set_peft_model_state_dict(again, tensors)
    torch.testing.assert_close(logits(again), trained, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(base), trained, rtol=1e-4, atol=1e-5), "nothing was learned"


# ---- an adapter and its base ----


def test_an_adapter_without_a_fingerprint_is_compared_by_the_name_of_its_base(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "one")
    tiny_llama().save_pretrained(tmp_path / "two")
    one, two = (transformers.LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    get_peft_model(copy.deepcopy(one), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert not config_for(one, tmp_path / "adapter").inference_mode
    with pytest.raises(PluginError, match=r"was trained on .*one, and the model is .*two"):
        config_for(two, tmp_path / "adapter")


# ---- configuration ----


def test_scale_and_rank_are_those_of_the_methods_papers():
    model = tiny_llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=4)
    targets = find_targets(model)

    def of(method, **options):
        config = make_config(method, model, targets, **options)
        return config.r, config.lora_alpha

    assert of("lora") == (16, 32)
    assert of("lora", r=8) == (8, 16)
    assert of("lora", r=8, alpha=3) == (8, 3)
    assert of("rslora", r=8) == of("pissa", r=8) == (8, 8)


def test_a_rank_may_be_as_large_as_the_layer():
    model = tiny_llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    targets = find_targets(model)
    assert make_config("pissa", model, targets, r=32).r == 32
    with pytest.raises(OptionError, match="r=33 is above the size"):
        make_config("pissa", model, targets, r=33)


def test_a_model_to_which_peft_passes_no_embeddings_has_a_task():
    config = transformers.MptConfig(d_model=16, n_heads=2, n_layers=2, vocab_size=64, max_seq_len=16)
    assert task_of(transformers.MptForCausalLM(config)) == "CAUSAL_LM"


def test_a_router_that_is_a_linear_layer_gets_no_adapter():
    size = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32}
    with torch.device("meta"):
        config = transformers.Qwen2MoeConfig(num_hidden_layers=2, vocab_size=64, **size, **experts)
        model = transformers.Qwen2MoeForCausalLM(config)
    routers = [path for path, module in model.named_modules() if path.endswith("shared_expert_gate")]
    assert all(isinstance(model.get_submodule(path), torch.nn.Linear) for path in routers)
    assert routers
    names = find_targets(model, moe="attention").modules
    assert any("shared_expert.gate_proj" in name or name == "gate_proj" for name in names)
    assert not any(path.endswith(name) for path in routers for name in names)


def test_adalora_reaches_its_budget_at_the_last_step_that_moves_ranks(tmp_path):
    # deltaT: ranks move at that step alone.
    config = peft.AdaLoraConfig(target_r=2, init_r=4, total_step=10, deltaT=100, target_modules=["q_proj", "v_proj"])
    rows = [{"input_ids": row, "labels": row} for row in IDS.repeat(4, 1)]
    setting = {"train_dataset": rows, "eval_strategy": "no", "save_strategy": "no", "max_steps": 10}
    callback = AdaLoraCallback()
    tiny_trainer(tmp_path, model=get_peft_model(tiny_llama(), config), callbacks=[callback], **setting).train()
    assert sum(callback.by_layer().values()) == 2 * 4


# ---- folders ----


def test_a_folder_is_written_whole_with_the_users_permissions_or_not_at_all(tmp_path):
    folder, plain = tmp_path / "export", tmp_path / "plain"
    plain.mkdir()
    with written_whole(folder) as scratch:
        (scratch / "model-00001-of-00002.safetensors").write_text("old")
        (scratch / "notes.txt").write_text("old")
    assert folder.stat().st_mode == plain.stat().st_mode

    def fail_half_way():
        with written_whole(folder) as scratch:
            (scratch / "notes.txt").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert (folder / "notes.txt").read_text() == "old"
    with written_whole(folder) as scratch:
        (scratch / "model.safetensors").write_text("new")
    # Weights of the older export would be read with the new ones; other files stay.
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "plain"]
