"""Prefixes that are computed once, against stock TRL."""

import copy
import logging
from collections import Counter

import pytest
import torch

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")


from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral import prefix_sharing as sharing_code  # noqa: E402
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_preferences,
    tiny_setting,
)
from tests.techniques.behavioral.trainers import (  # noqa: E402
    EXTRAS,
    SAME,
    a_batch,
    assert_same_gradients,
    built,
    loss_and_gradients,
    tiny_causal,
)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("qwen2", "sdpa"), ("qwen3", "sdpa"), ("gpt2", "sdpa")],
)
def test_shared_prefixes_give_the_loss_gradients_and_metrics_of_stock(kind, attention, checkpointing, tmp_path):
    model = tiny_causal(kind, attn_implementation=attention)
    settings = {
        "train_dataset": tiny_preferences(24, turns=2),
        "gradient_checkpointing": checkpointing,
        "ld_alpha": 0.3,
    }
    shared = built(tmp_path / "a", "behavioral:share_prefixes=on,noise=off", model=copy.deepcopy(model), **settings)
    stock = built(tmp_path / "b", model=model, **settings)
    batch = a_batch(shared)
    for name in EXTRAS:
        batch.pop(name, None)
    loss, gradients = loss_and_gradients(shared, batch)
    expected_loss, expected = loss_and_gradients(stock, batch)
    assert shared.model.forward.shares_prefixes
    torch.testing.assert_close(loss, expected_loss, **SAME)
    assert_same_gradients(gradients, expected)
    metrics, expected_metrics = shared._metrics["train"], stock._metrics["train"]
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
        assert metrics[name] == pytest.approx(expected_metrics[name], rel=1e-5, abs=1e-6), name


def test_a_mask_that_leaks_is_found_by_the_test_pair_and_changes_the_loss(tmp_path, monkeypatch):
    trainer = built(tmp_path, "behavioral:share_prefixes=on,noise=off")
    batch = a_batch(trainer)
    batch.pop("behavior_weight")
    right, _ = loss_and_gradients(trainer, batch)

    def leaky(packed):
        size = packed.pair.shape[1]
        return torch.ones(size, size, dtype=torch.bool).tril().expand(len(packed.pair), 1, size, size)

    monkeypatch.setattr(sharing_code.Packed, "mask", leaky)
    wrong, _ = loss_and_gradients(trainer, batch)
    assert abs(right - wrong) > 1e-4
    with pytest.raises(PluginError, match="test pair differ"):
        built(tmp_path / "leaky", "behavioral:share_prefixes=on")


def test_packed_pairs_hold_each_token_once_and_say_where(tmp_path):
    torch.manual_seed(0)
    lengths = [[5, 9, 1, 12], [7, 9, 4, 3]]
    ids = torch.zeros(8, 12, dtype=torch.long)
    mask = torch.zeros_like(ids)
    common = [3, 9, 1, 0]
    for pair, (one, other, shared) in enumerate(zip(*lengths, common, strict=True)):
        ids[pair, :one], ids[4 + pair, :other] = torch.randint(1, 50, (one,)), torch.randint(50, 99, (other,))
        ids[4 + pair, :shared] = ids[pair, :shared]
        mask[pair, :one], mask[4 + pair, :other] = 1, 1
    packed = sharing_code.packed_pairs(ids, mask)
    tokens = ids.reshape(-1)[packed.source].reshape(-1)
    assert torch.equal(tokens[packed.place][mask.bool()], ids[mask.bool()])
    positions = torch.arange(12).expand(8, 12)
    assert torch.equal(packed.position.reshape(-1)[packed.place][mask.bool()], positions[mask.bool()])
    # 7 + 5 - 2, 9 + 9 - 8, 4 + 1 - 0, 12 + 3 - 0
    assert Counter(packed.pair[packed.pair >= 0].tolist()) == {0: 10, 1: 10, 2: 5, 3: 15}
    assert packed.pair.shape == (3, 15)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("mistral", {"sliding_window": 8}, "sliding"),
        ("gemma2", {"head_dim": 8, "attn_implementation": "eager"}, "sliding_attention"),
        ("bloom", {"attn_implementation": "eager"}, "test pair"),
        ("llama", {"attention_dropout": 0.0, "attn_implementation": "flex_attention"}, "flex_attention"),
    ],
)
def test_prefixes_are_not_shared_where_that_would_not_be_exact(kind, changes, why, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "hf_ft_plugins"):
        trainer = built(tmp_path, "behavioral:noise=off", model=tiny_causal(kind, **changes))
    assert not trainer.model.forward.shares_prefixes
    assert why in caplog.text
    with pytest.raises(PluginError, match="share_prefixes=on would not be exact"):
        built(tmp_path, "behavioral:share_prefixes=on", model=tiny_causal(kind, **changes))


def test_an_adapter_shares_prefixes_and_prompt_learning_does_not(tmp_path):
    peft = pytest.importorskip("peft")
    lora = {"peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "ref_model": None}
    shared = built_with_peft(tmp_path / "a", "behavioral:share_prefixes=on,noise=off,weights=false", **lora)
    stock = built_with_peft(tmp_path / "b", **lora)
    stock.model.load_state_dict(shared.model.state_dict())
    batch = a_batch(shared)
    (loss, gradients), (expected_loss, expected) = (loss_and_gradients(each, batch) for each in (shared, stock))
    torch.testing.assert_close(loss, expected_loss, **SAME)
    assert_same_gradients(gradients, expected)
    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(PluginError, match="prompt learning"):
        built_with_peft(tmp_path, "behavioral:share_prefixes=on", peft_config=prompt, ref_model=None)


def built_with_peft(folder, *technique, peft_config, **changes):
    setting = tiny_setting("dpo", per_device_train_batch_size=4, eval_strategy="no", **changes)
    trainer_class = setting.pop("trainer_class")

    class Adapted(trainer_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, peft_config=peft_config, **kwargs)

    return tiny_trainer(folder, *technique, trainer_class=Adapted, **setting)


def scored_by(model, ids, *, cost):
    """What the model's fused head is called with, and gives, for these rows."""
    calls = []
    inner = model.forward

    def watched(**kwargs):
        calls.append(tuple(kwargs["input_ids"].shape))
        return inner(**kwargs)

    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    outputs = sharing_code.shared_forward(watched, model.config, **batch, cost=cost)
    return calls, outputs.log_probs


def test_a_batch_that_would_cost_more_when_packed_is_passed_as_it_is(tmp_path):
    model = built(tmp_path, "behavioral:share_prefixes=off").model
    generator = torch.Generator().manual_seed(0)
    apart = torch.randint(3, 40, (2, 60), generator=generator)
    alike = torch.cat([apart[:1], apart[:1]])
    alike[1, 50:] = apart[1, 50:]
    cost = sharing_code.PassCost.of(model)
    calls, packed = scored_by(model, alike, cost=cost)
    assert calls == [(1, 71)]
    calls, given = scored_by(model, apart, cost=cost)
    assert calls == [(2, 60)]
    # Control: without a cost all rows are packed, to the same scores.
    calls, same = scored_by(model, apart, cost=None)
    assert calls[0][0] == 1
    torch.testing.assert_close(given, same, rtol=1e-4, atol=1e-5)
    assert packed.shape == given.shape


def test_the_cost_counts_weights_that_are_multiplied_and_attention():
    model = tiny_causal("llama")
    config = model.config
    cost = sharing_code.PassCost.of(model)
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    expected = config.num_hidden_layers * layer + config.hidden_size + config.vocab_size * config.hidden_size
    assert cost.slot == expected
    assert cost.seen == 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert cost(2, 10) == 20 * (cost.slot + 10 * cost.seen)
