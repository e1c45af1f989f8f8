"""`behavioral` in TRL's trainers: prefixes, weights and flip probabilities against references computed by hand."""

import copy
import itertools
import logging
from collections import Counter

import pytest
import torch
from torch.nn.functional import logsigmoid

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from trl.data_utils import _tokenize  # noqa: E402

from hf_ft_plugins.errors import ConflictError, PluginError  # noqa: E402
from hf_ft_plugins.techniques.behavioral import Behavioral, MixedLabelSampler  # noqa: E402
from hf_ft_plugins.techniques.behavioral import prefix_sharing as sharing_code  # noqa: E402
from hf_ft_plugins.techniques.behavioral.fit_to_length import (  # noqa: E402
    CUT,
    DROPPED,
    TRIMMED,
    WHOLE,
    Fitter,
    fitted_dataset,
    shorter_prompts,
)
from hf_ft_plugins.techniques.behavioral.mixed_labels import spread  # noqa: E402
from hf_ft_plugins.techniques.behavioral.model_forward import gated  # noqa: E402
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_llama,
    tiny_preferences,
    tiny_setting,
    tiny_tokenizer,
)

EXTRAS = ("behavior_weight", "behavior_eps")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 384}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
SAME = {"rtol": 1e-5, "atol": 1e-6}


def tiny_causal(kind, **changes):
    from transformers import AutoConfig

    settings = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 384, "n_positions": 128},
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 384},
        "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 384, "state_size": 4},
    }.get(kind, {**SMALL, **HEADS})
    torch.manual_seed(0)
    attention = {} if kind == "mamba" else {"attn_implementation": changes.pop("attn_implementation", "sdpa")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(settings | changes)), **attention)


def built(folder, *technique, contract="dpo", model=None, **changes):
    setting = tiny_setting(contract, per_device_train_batch_size=4, eval_strategy="no", **changes)
    if model is not None:
        setting |= {"model": model, "ref_model": copy.deepcopy(model)}
    if setting.get("ref_model") is not None:
        # A reference that is the model would make every log-ratio 0, and hide a wrong one.
        torch.manual_seed(5)
        for parameter in setting["ref_model"].parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return tiny_trainer(folder, *technique, **setting)


def a_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach(), gradients


def assert_same_gradients(ours, expected):
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, n=name: n + text
        )


# ---- shared prefixes ----


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


# ---- weights ----


def pair_scores(trainer, batch):
    """Log-ratios of chosen and rejected texts from a plain forward pass, [B] each, and completions' lengths."""

    def log_probabilities(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        scored = batch["completion_mask"][:, 1:].bool()
        tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        return (tokens * scored).sum(1)

    with torch.no_grad():
        reference = log_probabilities(trainer.ref_model)
    return log_probabilities(trainer.model), reference


@pytest.mark.parametrize(
    "loss_type",
    [
        *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down"),
        *("discopop", "sigmoid_norm", "sigmoid+nca_pair"),
    ],
)
def test_weights_scale_each_pairs_own_gradient(loss_type, tmp_path):
    settings = {"loss_type": loss_type.split("+"), "label_smoothing": 0.1}
    ours = built(tmp_path / "a", "behavioral:noise=off", **settings)
    stock = built(tmp_path / "b", **settings)
    batch = a_batch(ours)
    weights = batch["behavior_weight"]
    loss, gradients = loss_and_gradients(ours, batch)
    expected = Counter()
    for pair, weight in enumerate(weights.tolist()):
        alone = {name: batch[name][[pair, pair + len(weights)]] for name in batch if name not in EXTRAS}
        for name, gradient in loss_and_gradients(stock, alone)[1].items():
            expected[name] = expected[name] + weight * gradient / len(weights)
    assert_same_gradients(gradients, dict(expected))
    whole, unweighted = loss_and_gradients(stock, {name: batch[name] for name in batch if name not in EXTRAS})
    torch.testing.assert_close(loss, whole, **SAME)
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, unweighted)


def test_weights_scale_the_tokens_of_dpos_sft_loss(tmp_path):
    trainer = built(tmp_path, "behavioral:noise=off", loss_type=["sft"])
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    ours, _ = pair_scores(trainer, batch)
    tokens = batch["completion_mask"][:4, 1:].sum()
    (-(batch["behavior_weight"] * ours[:4]).sum() / tokens).backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_weights_scale_each_rows_own_gradient_in_kto(loss_type, tmp_path):
    trainer = built(tmp_path, "behavioral", contract="kto", loss_type=loss_type)
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    ours, reference = pair_scores(trainer, batch)
    ratios, kl = ours - reference, torch.zeros(())
    if loss_type == "kto":
        mismatched = {name.removeprefix("KL_"): value for name, value in batch.items() if name.startswith("KL_")}
        with torch.no_grad():
            there, before = pair_scores(trainer, mismatched)
            kl = (there - before).mean().clamp(min=0)
    beta, label = trainer.beta, batch["label"]
    if loss_type == "kto":
        losses = torch.where(label, 1 - torch.sigmoid(beta * (ratios - kl)), 1 - torch.sigmoid(beta * (kl - ratios)))
    else:
        losses = torch.where(label, 1 - torch.sigmoid(beta * ratios), torch.sigmoid(beta * ratios))
    trainer.model.zero_grad()
    (batch["behavior_weight"] * losses).mean().backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


def test_weights_scale_each_pairs_own_gradient_in_reward_models(tmp_path):
    trainer = built(tmp_path, "behavioral", contract="reward")
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    scores = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    chosen, rejected = scores.chunk(2)
    (-batch["behavior_weight"] * logsigmoid(chosen - rejected)).mean().backward()
    expected = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_weights_scale_the_tokens_of_sft(loss_type, tmp_path):
    rows = [{"prompt": "say a", "completion": " a" * (1 + row), "behavior_weight": 0.5 + row} for row in range(8)]
    setting = tiny_setting("dpo", max_length=64, per_device_train_batch_size=4, eval_strategy="no")
    setting |= {"trainer_class": trl.SFTTrainer, "args_class": trl.SFTConfig, "loss_type": loss_type}
    setting |= {"train_dataset": Dataset.from_list(rows), "eval_dataset": None}
    setting.pop("ref_model")
    trainer = tiny_trainer(tmp_path, "behavioral", **setting)
    batch = a_batch(trainer)
    _, gradients = loss_and_gradients(trainer, batch)
    trainer.model.zero_grad()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    labels = batch["labels"][:, 1:]
    logits = trainer.model(**inputs).logits[:, :-1].log_softmax(-1)
    tokens = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1) * (labels != -100)
    losses = -tokens * (tokens.exp().detach() if loss_type == "dft" else 1)
    ((batch["behavior_weight"][:, None] * losses).sum() / (labels != -100).sum()).backward()
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})


def test_gated_values_keep_their_value():
    values = torch.randn(4, 3, requires_grad=True)
    out = gated(values, torch.tensor([2.0, 0.0]))
    assert torch.equal(out, values)
    out.sum().backward()
    assert values.grad.tolist() == [[2.0] * 3, [0.0] * 3] * 2


# ---- flip probabilities ----


@pytest.mark.parametrize("noise", ["robust", "cdpo"])
def test_each_pair_has_its_own_flip_probability(noise, tmp_path):
    trainer = built(tmp_path, f"behavioral:noise={noise},weights=false")
    batch = a_batch(trainer)
    assert "behavior_weight" not in batch
    loss, gradients = loss_and_gradients(trainer, batch)
    eps = batch["behavior_eps"]
    assert len(set(eps.tolist())) > 1
    ours, reference = pair_scores(trainer, batch)
    ratios = ours - reference
    z = trainer.beta * (ratios[:4] - ratios[4:])
    if noise == "robust":
        losses = (-(1 - eps) * logsigmoid(z) + eps * logsigmoid(-z)) / (1 - 2 * eps)
    else:
        losses = -(1 - eps) * logsigmoid(z) - eps * logsigmoid(-z)
    trainer.model.zero_grad()
    losses.mean().backward()
    torch.testing.assert_close(loss, losses.mean().detach(), **SAME)
    assert_same_gradients(gradients, {name: parameter.grad for name, parameter in trainer.model.named_parameters()})
    assert trainer.label_smoothing == 0.0, "put back after each batch"
    one_rate = loss_and_gradients(trainer, {name: batch[name] for name in batch if name != "behavior_eps"})[1]
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients, one_rate)


def test_flip_probabilities_need_a_loss_that_has_them(tmp_path, caplog):
    trainer = built(tmp_path, "behavioral", loss_type=["ipo"])
    assert trainer.loss_types == ["ipo"]
    assert "loss_type=ipo has no flip probabilities" in caplog.text
    with pytest.raises(PluginError, match="loss_type is ipo"):
        built(tmp_path, "behavioral:noise=robust", loss_type=["ipo"])


@pytest.mark.parametrize("loss_type", ["aot", "aot_unpaired"])
def test_a_loss_without_a_loss_of_its_own_for_each_row_is_refused(loss_type, tmp_path):
    with pytest.raises(PluginError, match=f"loss_type={loss_type} compares rows"):
        built(tmp_path, "behavioral", loss_type=[loss_type])
    built(tmp_path, "behavioral:weights=false,noise=off", loss_type=[loss_type])


@pytest.mark.parametrize(
    ("column", "value"), [("behavior_weight", -1.0), ("behavior_eps", 0.5), ("behavior_eps", None)]
)
def test_numbers_out_of_range_are_refused(column, value, tmp_path):
    rows = tiny_preferences(4).to_list()
    rows[2][column] = value
    trainer = built(tmp_path, "behavioral", train_dataset=Dataset.from_list(rows))
    with pytest.raises(PluginError, match=column):
        a_batch(trainer)


# ---- KTO's batches ----


@pytest.mark.parametrize(
    ("desirable", "undesirable", "batch"), [(20, 20, 4), (33, 8, 8), (9, 40, 4), (8, 9, 8), (3, 3, 2)]
)
def test_every_batch_has_both_labels_and_each_example_is_seen(desirable, undesirable, batch):
    labels = [True] * desirable + [False] * undesirable
    sampler = MixedLabelSampler(labels, batch, seed=3)
    left_out = set()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == len(set(order))
        if sampler.one_label_batches == 0:
            for start in range(0, len(order), batch):
                assert {labels[position] for position in order[start : start + batch]} == {True, False}
        left_out |= set(range(len(labels))) - set(order)
        assert len(order) % batch != 1
        assert order == list(sampler)
    single = (desirable + undesirable) % batch == 1
    assert bool(left_out) == single
    assert len(left_out) != 1 or not single


def test_spread_fills_small_batches_within_their_size():
    assert spread(5, [8, 8, 2]) == [2, 2, 1]
    assert spread(9, [8, 8, 2])[2] == 1
    assert sum(spread(9, [8, 8, 2])) == 9


def test_kto_from_pairs_has_mixed_batches_and_its_own_completions_for_the_kl_term(tmp_path):
    settings = {"contract": "kto", "train_dataset": tiny_preferences(16, turns=2)}

    def looked_at(trainer):
        trainer._created_lr_scheduler = False
        batches = list(trainer.get_train_dataloader())
        mixed = [set(batch["label"].tolist()) == {True, False} for batch in batches]
        return mixed, [kl_pairs_right(batch) for batch in batches]

    mixed, right = looked_at(built(tmp_path / "a", "behavioral", **settings))
    assert all(mixed)
    assert all(right)
    mixed, _ = looked_at(built(tmp_path / "b", **settings))
    assert not any(mixed), "TRL mixes labels itself now: leave the sampler out"


def kl_pairs_right(batch):
    def parts(prefix):
        rows = zip(
            *(batch[f"{prefix}{name}"] for name in ("input_ids", "completion_mask", "attention_mask")), strict=True
        )
        return [
            (tuple(ids[(mask == 0) & (seen == 1)].tolist()), tuple(ids[mask == 1].tolist())) for ids, mask, seen in rows
        ]

    own, mismatched = parts(""), parts("KL_")
    prompts = [prompt for prompt, _ in own] == [prompt for prompt, _ in mismatched]
    completions = [completion for _, completion in own]
    rotated = [completions[-1], *completions[:-1]]
    return prompts and [completion for _, completion in mismatched] == rotated


def test_a_batch_of_one_is_refused_for_kto(tmp_path):
    setting = tiny_setting("kto", per_device_train_batch_size=1, loss_type="apo_zero_unpaired")
    with pytest.raises(PluginError, match="per_device_train_batch_size is 1"):
        tiny_trainer(tmp_path, "behavioral", **setting).get_train_dataloader()


@pytest.mark.parametrize("contract", ["kto", "reward"])
def test_other_contracts_resume_exactly_in_the_middle_of_an_epoch(contract, tmp_path):
    def setting():
        # Metrics are means since the last log, which is older than the checkpoint.
        return tiny_setting(contract, logging_steps=3)

    straight = tiny_trainer(tmp_path / "a", "behavioral", **setting())
    straight.train()
    again = resumed(tmp_path / "b", "behavioral", make_setting=setting)
    outcomes = [outcome(trainer) for trainer in (straight, again)]
    for each in outcomes:
        # Trainer's own mean loss since the last log begins anew.
        each["log"] = [{name: value for name, value in entry.items() if name != "loss"} for entry in each["log"]]
    assert difference(*outcomes) is None


# ---- what fits ----


def fitter(max_length, contract="dpo"):
    return Fitter(tiny_tokenizer(), contract, max_length)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


LONG = [{"role": "system", "content": "s"}, user("a" * 30), assistant("b" * 30), user("c" * 10)]


def test_the_oldest_turns_of_a_prompt_go_first_and_system_and_last_turn_stay():
    row = {"prompt": LONG, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    assert fitter(200)(row)["prompt"] == LONG
    fitted = fitter(50)(row)
    assert fitted["prompt"] == [LONG[0], LONG[3]]
    assert fitted["behavior_fitted"] == TRIMMED
    assert list(shorter_prompts([user("a"), assistant("b")])) == [[user("a"), assistant("b")]]


def test_a_cut_leaves_a_difference_or_the_pair_is_dropped():
    chosen, rejected = [assistant("x" * 40 + "good")], [assistant("x" * 40 + "bad!")]
    row = {"prompt": [user("hi")], "chosen": chosen, "rejected": rejected}
    assert fitter(60)(row)["behavior_fitted"] == WHOLE
    assert fitter(30)(row)["behavior_fitted"] == DROPPED + "the completions differ only past max_length"
    differing = row | {"rejected": [assistant("y" * 50)]}
    assert fitter(30)(differing)["behavior_fitted"] == CUT
    assert fitter(30, "reward")(differing)["behavior_fitted"] == DROPPED + "longer than max_length"
    assert fitter(5)(differing)["behavior_fitted"] == DROPPED + "the last turn of the prompt fills max_length"
    assert fitter(60)(row | {"rejected": chosen})["behavior_fitted"] == DROPPED + "both completions are equal"
    assert fitter(60)(row | {"rejected": []})["behavior_fitted"] == DROPPED + "an empty completion"


def test_turns_of_the_user_are_not_scored(tmp_path):
    rows = [
        {
            "chosen": [user("q"), assistant("one"), user("why?"), assistant("so")],
            "rejected": [user("q"), assistant("two"), user("hm"), assistant("no")],
        }
    ] * 4
    data = Dataset.from_list(rows)

    def scored(trainer):
        batch = a_batch(trainer)
        tokenizer = trainer.processing_class
        return [
            tokenizer.decode(ids[mask == 1])
            for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
        ]

    ours = scored(built(tmp_path / "a", "behavioral", train_dataset=data, eval_dataset=None))
    assert ours[0] == "one\nso\n"
    assert ours[4] == "two\nno\n"
    stock = scored(built(tmp_path / "b", train_dataset=data, eval_dataset=None))
    assert stock[0] == "one\n<u>why?\n<a>so\n"


def test_kto_does_not_score_turns_of_the_user(tmp_path):
    rows = [
        {"prompt": [user("q")], "completion": [assistant(text), user("why?"), assistant("so")], "label": label}
        for text, label in (("one", True), ("two", False))
    ] * 2
    trainer = built(tmp_path, "behavioral", contract="kto", train_dataset=Dataset.from_list(rows), eval_dataset=None)
    batch = a_batch(trainer)
    decode = trainer.processing_class.decode
    for prefix in ("", "KL_"):
        ids, masks = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
        texts = {decode(row[mask == 1]) for row, mask in zip(ids, masks, strict=True)}
        assert texts == {"one\nso\n", "two\nso\n"}


def test_what_was_dropped_is_counted_and_said(tmp_path, caplog):
    rows = [
        {"prompt": [user("hi")], "chosen": [assistant(chosen)], "rejected": [assistant("no")]}
        for chosen in ("yes", "no", "maybe", "no")
    ]
    data, counts = fitted_dataset(Dataset.from_list(rows), fitter(64))
    assert counts == {WHOLE: 2, DROPPED + "both completions are equal": 2}
    assert [row["chosen"][0]["content"] for row in data] == ["yes", "maybe"]
    built(tmp_path, "behavioral", train_dataset=Dataset.from_list(rows))
    assert "2 dropped: both completions are equal" in caplog.text
    with pytest.raises(PluginError, match="no preference is left"):
        fitted_dataset(Dataset.from_list([rows[1]] * 2), fitter(64))


def test_data_that_are_given_later_are_fitted_too(tmp_path):
    trainer = built(tmp_path, "behavioral:share_prefixes=on")
    rows = tiny_preferences(4).to_list()
    rows.append(rows[0] | {"rejected": rows[0]["chosen"]})
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert metrics["eval_loss"] > 0
    assert "eval_rewards/accuracies" in metrics


def test_a_tokenizer_without_a_chat_template_is_named(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PluginError, match="ByT5Tokenizer has no chat_template"):
        built(tmp_path, "behavioral", processing_class=tokenizer)


def test_missing_columns_are_named(tmp_path):
    with pytest.raises(PluginError, match="no column chosen and none rejected; it has prompt, text"):
        built(tmp_path, "behavioral", train_dataset=Dataset.from_list([{"prompt": "a", "text": "b"}]))


def test_lengths_are_those_of_trl():
    tokenizer = tiny_tokenizer()
    assert len(_tokenize(tokenizer, [user("c" * 10)])["input_ids"]) == len(fitter(1)._tokens([user("c" * 10)], {}))


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
