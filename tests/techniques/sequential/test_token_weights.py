"""Weighted token losses against losses weighted by hand, in every way in which a trainer makes one."""

import math

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hf_ft_plugins import PluginError
from hf_ft_plugins.techniques.sequential.token_weights import entropy_weights, probability_weights, weighing
from hf_ft_plugins.techniques.sequential.unfit_losses import refuse_weighing
from hf_ft_plugins.testing import tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_setting, tiny_tokenizer
from hf_ft_plugins.testing.examples.text2text import tiny_t5
from tests.techniques.text2text.small_models import bart

IDS = torch.randint(3, 380, (4, 12), generator=torch.Generator().manual_seed(1))
KINDS = ("entropy", "probability")
QUIET = {"eval_strategy": "no", "save_strategy": "no", "weight_decay": 0.0, "optim": "sgd", "max_grad_norm": 0.0}


def spread(model, size=0.5):
    """Weights so large that the model is surer of some tokens than of others."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * size)
    return model


def llama(**changes):
    return spread(tiny_llama(**changes))


def masked(ids, prompt=4):
    labels = ids.clone()
    labels[:, :prompt] = -100
    labels[0, -3:] = -100
    return labels


def by_hand(logits, labels, kind, divided_by, *, shift=1, tau=None):
    """The weighted loss, token by token; `logits` [B, L, V]."""
    total = 0.0
    for row, targets in zip(logits, labels, strict=True):
        places = [place for place in range(shift, len(targets)) if targets[place] != -100]
        losses = [-row[place - shift].log_softmax(-1)[targets[place]] for place in places]
        mean = sum(loss.item() for loss in losses) / max(len(losses), 1)
        for place, loss in zip(places, losses, strict=True):
            if kind == "entropy":
                likeliest = row[place - shift].detach().sort(descending=True).values[:20].softmax(-1)
                weight = float(-(likeliest * likeliest.log()).sum()) / math.log(20)
            else:
                weight = max(math.exp(-loss.item() / (mean if tau is None else tau)), 0.01)
            total = total + weight * loss
    return total / divided_by


def gradient(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


# ---- the weights ----


def test_a_token_weighs_most_where_all_of_the_likeliest_are_equally_so():
    sure, unsure = torch.full((1, 50), -30.0), torch.zeros(1, 50)
    sure[0, 7] = 30.0
    assert float(entropy_weights(sure)) < 1e-6
    assert float(entropy_weights(unsure)) == pytest.approx(1.0)
    assert float(entropy_weights(torch.zeros(1, 5))) == pytest.approx(1.0), "fewer tokens than top_k"


def test_an_unlikely_token_weighs_less_and_none_less_than_the_floor():
    losses, scored = torch.tensor([[0.1, 1.0, 50.0]]), torch.ones(1, 3, dtype=torch.bool)
    weights = probability_weights(losses, scored, tau=1.0)[0]
    assert weights.tolist() == pytest.approx([math.exp(-0.1), math.exp(-1.0), 0.01])
    by_mean = probability_weights(losses, scored)[0]
    assert by_mean.tolist() == pytest.approx([math.exp(-one / (51.1 / 3)) for one in (0.1, 1.0, 50.0)])
    assert probability_weights(torch.zeros(1, 2), scored[:, :2]).tolist() == [[1.0, 1.0]]


# ---- the loss ----


@pytest.mark.parametrize("items", [None, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_causal_model_is_the_one_weighted_by_hand(kind, items):
    model, labels = llama().double(), masked(IDS)
    batch = {"input_ids": IDS, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    plain = model(**batch).loss
    scored = int((labels[:, 1:] != -100).sum())
    expected = by_hand(model(input_ids=IDS).logits, labels, kind, items or scored)
    wanted = gradient(expected, model)
    with weighing(model, kind):
        weighted = model(**batch).loss
    torch.testing.assert_close(weighted, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(weighted, model), wanted, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(weighted, plain.double(), rtol=0.05), "the control is weighted too"
    assert torch.equal(model(**batch).loss, plain), "a weight stays"
    with weighing(model, kind), torch.no_grad():
        assert torch.equal(model(**batch).loss, plain), "evaluation is weighted"


@pytest.mark.parametrize("new_model", [tiny_t5, bart])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_an_encoder_decoder_stays_a_mean_where_it_is_one(new_model, kind):
    model, labels = spread(new_model(), 0.2).double().eval(), masked(IDS, 0)
    batch = {"input_ids": IDS, "labels": labels}
    outputs = model(**batch)
    expected = by_hand(outputs.logits, labels, kind, int((labels != -100).sum()), shift=0)
    for items in ({}, {"num_items_in_batch": 170}):
        with weighing(model, kind):
            weighted = model(**batch, **items).loss
        torch.testing.assert_close(weighted, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(weighted, outputs.loss, rtol=0.01)


def test_rows_that_are_packed_weigh_as_rows_that_are_not():
    model, labels = llama().double(), masked(IDS, 3)
    # Its first label is none, or it would be scored from the row before.
    scored = int((labels[:, 1:] != -100).sum())
    packed = {"input_ids": IDS.view(1, -1), "labels": labels.view(1, -1), "num_items_in_batch": scored}
    positions = torch.arange(12).repeat(4)[None]
    with weighing(model, "probability"):
        apart = model(input_ids=IDS, labels=labels, num_items_in_batch=scored).loss
        together = model(**packed, position_ids=positions, use_cache=False).loss
        as_one = model(**packed, position_ids=torch.arange(48)[None], use_cache=False).loss
    torch.testing.assert_close(apart, together, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(as_one, apart, rtol=1e-4)


def test_what_routers_add_stays():
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=384, num_key_value_heads=1, num_local_experts=4, **size)
    config.output_router_logits, config.router_aux_loss_coef = True, 0.5
    model, labels = spread(MixtralForCausalLM(config)), masked(IDS)
    outputs = model(input_ids=IDS, labels=labels)
    expected = by_hand(outputs.logits, labels, "entropy", int((labels != -100).sum())) + 0.5 * outputs.aux_loss
    assert outputs.aux_loss.item() > 0.1
    with weighing(model, "entropy"):
        weighted = model(input_ids=IDS, labels=labels).loss
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-6)


# ---- wrapped and changed models ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_and_checkpointed_gradients_change_nothing(kind):
    peft = pytest.importorskip("peft")
    labels = masked(IDS)
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    spread(model, 0.1).train()
    batch = {"input_ids": IDS, "labels": labels}
    expected = by_hand(model(input_ids=IDS).logits, labels, kind, int((labels[:, 1:] != -100).sum()))
    wanted = gradient(expected, model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    with weighing(model, kind):
        weighted = model(**batch).loss
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(weighted, model), wanted, rtol=1e-4, atol=1e-6)


def test_virtual_tokens_of_a_learned_prompt_are_not_scored():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, labels = peft.get_peft_model(llama(), config), masked(IDS)
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    logits = model(**batch).logits[:, 3:]
    expected = by_hand(logits, labels, "entropy", int((labels[:, 1:] != -100).sum()))
    with weighing(model, "entropy"):
        torch.testing.assert_close(model(**batch, labels=labels).loss, expected, rtol=1e-5, atol=1e-6)


def weighted_trainer(folder, kind, **changes):
    """Trainer whose loss is weighted as the hook `ft_loss` would."""
    from transformers import Trainer

    class Weighted(changes.pop("trainer_class", Trainer)):
        def compute_loss(self, model, *args, **kwargs):
            if kind is None:
                return super().compute_loss(model, *args, **kwargs)
            refuse_weighing(self, kind)
            with weighing(self.accelerator.unwrap_model(self.model), kind):
                return super().compute_loss(model, *args, **kwargs)

    rows = [{"input_ids": row, "labels": labels} for row, labels in zip(IDS, masked(IDS), strict=True)]
    own = {"model": llama(), "train_dataset": rows * 4, "eval_dataset": rows, "max_steps": 3, "learning_rate": 0.05}
    return tiny_trainer(folder, trainer_class=Weighted, **(QUIET | own | changes))


def trained(trainer):
    trainer.train()
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_batches_weigh_as_one_large_batch(kind, tmp_path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = trained(weighted_trainer(tmp_path, kind, **sizes))
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    torch.testing.assert_close(whole, trained(weighted_trainer(tmp_path, kind, **parts)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, trained(weighted_trainer(tmp_path, None, **sizes)), atol=1e-4)


def test_the_evaluation_loss_is_stocks(tmp_path):
    losses = [weighted_trainer(tmp_path, kind).evaluate()["eval_loss"] for kind in (None, *KINDS)]
    assert losses[0] == losses[1] == losses[2]


def on_a_rank(rank, folder, kind):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "ddp_backend": "gloo"}
    return trained(weighted_trainer(folder, kind, **sizes)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_weigh_as_one_process(kind, on_both_ranks, tmp_path):
    first, second = (torch.tensor(result) for result in on_both_ranks(on_a_rank, kind))
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    alone = trained(weighted_trainer(tmp_path / "alone", kind, **sizes))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)


# ---- TRL's fused head ----


def sft_trainer(folder, kind, **changes):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    words = ("red", "blue", "green", "a long yellow")
    rows = datasets.Dataset.from_list(
        [{"prompt": f"say {word}:", "completion": f" it is {word}"} for word in words] * 2
    )
    own = {"processing_class": tiny_tokenizer(), "max_length": 48, "bf16": False, "gradient_checkpointing": False}
    own |= {"train_dataset": rows, "eval_dataset": rows, "args_class": trl.SFTConfig, "trainer_class": trl.SFTTrainer}
    return weighted_trainer(folder, kind, **(own | changes))


def full_entropy_by_hand(logits, labels):
    total, scored = 0.0, labels[:, 1:] != -100
    logs = logits[:, :-1].log_softmax(-1)
    weights = (-(logs.exp() * logs).sum(-1) / math.log(20)).clamp(max=1).detach()
    losses = -logs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    total = (weights * losses)[scored].sum()
    return total / scored.sum()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sft_trainers_fused_head_is_weighted(kind, adapted, tmp_path):
    model = llama(attn_implementation="eager")
    if adapted:
        peft = pytest.importorskip("peft")
        model = spread(peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])), 0.1)
    trainer = sft_trainer(tmp_path, kind, model=model)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    logits = trainer.model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    scored = int((batch["labels"][:, 1:] != -100).sum())
    plain = sft_trainer(tmp_path, None, model=trainer.model).compute_loss(trainer.model, dict(batch))
    if kind == "entropy":
        expected = full_entropy_by_hand(logits, batch["labels"])
    else:
        expected = by_hand(logits, batch["labels"], kind, scored)
    wanted = gradient(expected, trainer.model)
    weighted = trainer.compute_loss(trainer.model, dict(batch))
    torch.testing.assert_close(weighted, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(weighted, trainer.model), wanted, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weighted, plain, rtol=0.01)


@pytest.mark.parametrize("packing", [False, True])
def test_sft_trains_evaluates_and_packs_weighted(packing, tmp_path):
    changes = {"packing": packing, "eval_packing": False, "eval_strategy": "steps", "max_steps": 4}
    if packing:
        changes |= {"packing_strategy": "bfd", "padding_free": True, "model": llama(attn_implementation="eager")}
    trainer = sft_trainer(tmp_path, "probability", **changes)
    before = trainer.evaluate()["eval_loss"]
    assert before == sft_trainer(tmp_path, None, **changes).evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


# ---- refusals ----


def test_unfit_trainers_are_refused_by_name(tmp_path):
    classifier = tiny_trainer(tmp_path)
    with pytest.raises(PluginError, match=r"sequential: token_weights=entropy .*BertForSequenceClassification writes"):
        refuse_weighing(classifier, "entropy")
    for changes, said in (
        ({"compute_loss_func": True}, "compute_loss_func"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.1"),
        ({"use_liger_kernel": True}, "use_liger_kernel=False"),
    ):
        trainer = weighted_trainer(tmp_path, None)
        for name, value in changes.items():
            setattr(trainer if name == "compute_loss_func" else trainer.args, name, value)
        with pytest.raises(PluginError, match=said):
            refuse_weighing(trainer, "entropy")


def test_trls_other_trainers_and_losses_are_refused_by_name(tmp_path):
    pytest.importorskip("trl")
    with pytest.raises(PluginError, match="DPOTrainer learns from preferences"):
        refuse_weighing(tiny_trainer(tmp_path, **tiny_setting("dpo")), "probability")
    with pytest.raises(PluginError, match=r"loss_type='dft' .*Set loss_type='nll'"):
        refuse_weighing(sft_trainer(tmp_path, None, loss_type="dft"), "probability")


def test_models_with_another_loss_or_none_are_refused_by_name():
    model = llama()
    with weighing(model, "entropy"):
        with pytest.raises(PluginError, match="called with labels that gives loss and logits"):
            model(input_ids=IDS)
        model.loss_function = lambda logits, labels, **kwargs: 3 * logits.logsumexp(-1).mean()
        with pytest.raises(PluginError, match=r"computes a loss of its own .*token_weights=none"):
            model(input_ids=IDS, labels=IDS)
    classifier = tiny_model()
    rows = {"input_ids": torch.randint(0, 32, (2, 8)), "labels": torch.tensor([0, 1])}
    with weighing(classifier, "entropy"), pytest.raises(PluginError, match="weights tokens"):
        classifier(**rows)
    for settings in ({"kind": "likelihood"}, {"kind": "entropy", "top_k": 1}, {"kind": "probability", "tau": 0.0}):
        with pytest.raises(PluginError, match="sequential: token_weights="), weighing(model, **settings):
            pass
