"""Learning without forgetting against its formula, computed by hand, in every way in which a trainer makes a loss."""

import copy

import pytest
import torch
from transformers import Trainer

from hf_ft_plugins import PluginError
from hf_ft_plugins.techniques.sequential.teacher import frozen_copy, remembering
from hf_ft_plugins.techniques.sequential.token_weights import weighing
from hf_ft_plugins.techniques.sequential.unfit_losses import refuse_remembering
from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.text2text import tiny_t5
from tests.techniques.sequential.test_token_weights import IDS, QUIET, gradient, llama, masked, sft_trainer, spread

ROWS = {"input_ids": torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(2))}


def by_hand(ours, theirs, divided_by, temperature):
    """`ours`, `theirs`: logits [N, V] of what is scored."""
    total = 0.0
    for one, other in zip(ours / temperature, theirs.detach() / temperature, strict=True):
        total = total + (other.softmax(-1) * (other.log_softmax(-1) - one.log_softmax(-1))).sum()
    return temperature**2 * total / divided_by


def in_float64(logits, labels, num_items_in_batch=None, **kwargs):
    """The loss of causal models, which transformers computes in float32."""
    total = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / (num_items_in_batch or (labels[:, 1:] != -100).sum())


def moved(model, size=0.1):
    return spread(model, size)


# ---- the term ----


@pytest.mark.parametrize("items", [None, 90])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_of_a_causal_model_it_is_the_divergence_at_the_scored_tokens(items, temperature):
    model = llama().double()
    teacher, labels = frozen_copy(model), masked(IDS)
    moved(model).loss_function = in_float64
    batch = {"input_ids": IDS, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    scored = labels[:, 1:] != -100
    outputs = model(**batch)
    plain = outputs.loss
    ours, theirs = (logits[:, :-1][scored] for logits in (outputs.logits, teacher(input_ids=IDS).logits))
    expected = plain + 0.7 * by_hand(ours, theirs, items or int(scored.sum()), temperature)
    wanted = gradient(expected, model)
    with remembering(model, teacher, 0.7, temperature):
        loss = model(**batch).loss
        with torch.no_grad():
            assert torch.equal(model(**batch).loss, plain), "it is added in evaluation"
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss, model), wanted, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(loss, plain, rtol=1e-3)
    assert torch.equal(model(**batch).loss, plain)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_of_an_encoder_decoder_whose_loss_is_a_mean_it_is_one():
    model, labels = spread(tiny_t5(), 0.2).double().eval(), masked(IDS, 0)
    teacher = frozen_copy(model)
    moved(model)
    batch = {"input_ids": IDS, "labels": labels}
    scored = labels != -100
    ours, theirs = (one(**batch).logits[scored] for one in (model, teacher))
    expected = model(**batch).loss + 0.7 * by_hand(ours, theirs, int(scored.sum()), 2.0)
    for items in ({}, {"num_items_in_batch": 170}):
        with remembering(model, teacher, 0.7):
            torch.testing.assert_close(model(**batch, **items).loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("items", [None, 6])
def test_of_a_classifier_every_row_counts(items):
    model = tiny_model().double().eval()
    teacher = frozen_copy(model)
    moved(model)
    batch = ROWS | {"labels": torch.tensor([0, 1, 1, 0])}
    batch |= {} if items is None else {"num_items_in_batch": items}
    plain = model(**batch)
    # BERT's loss is a mean whatever the number.
    expected = plain.loss + 0.7 * by_hand(plain.logits, teacher(**ROWS).logits, 4, 2.0)
    with remembering(model, teacher, 0.7):
        torch.testing.assert_close(model(**batch).loss, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weighed_first", [True, False])
def test_beside_token_weights_both_terms_are_what_they_are_alone(weighed_first):
    model = llama().double()
    teacher, labels = frozen_copy(model), masked(IDS)
    moved(model)
    batch = {"input_ids": IDS, "labels": labels, "num_items_in_batch": 90}
    plain = model(**batch).loss
    with remembering(model, teacher, 0.7):
        term = model(**batch).loss - plain
    with weighing(model, "entropy"):
        weighted = model(**batch).loss
    one, other = (weighing(model, "entropy"), remembering(model, teacher, 0.7))
    with one if weighed_first else other, other if weighed_first else one:
        torch.testing.assert_close(model(**batch).loss, weighted + term, rtol=1e-7, atol=1e-7)


# ---- the teacher ----


def test_the_teacher_is_the_model_as_it_was_and_stays_so():
    model = llama().train()
    teacher = frozen_copy(model)
    before = model.eval()(input_ids=IDS).logits.detach()
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    moved(model)
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert torch.equal(teacher(input_ids=IDS).logits, before)
    of_a_resumed_run = frozen_copy(model, start)
    assert torch.equal(of_a_resumed_run(input_ids=IDS).logits, before)
    assert not torch.equal(frozen_copy(model)(input_ids=IDS).logits, before)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dora", [False, True])
def test_under_an_adapter_the_teacher_shares_what_is_frozen_and_is_exact(dora):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=dora, modules_to_save=["lm_head"])
    # Trained already: without its adapter the model is not as it was.
    model = moved(peft.get_peft_model(llama(), config).eval())
    before = model(input_ids=IDS).logits.detach()
    start = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    teacher = frozen_copy(model)
    own = {weight.data_ptr() for weight in model.parameters() if not weight.requires_grad}
    copied = [weight for weight in teacher.parameters() if weight.data_ptr() not in own]
    assert sum(weight.numel() for weight in copied) == sum(one.numel() for one in start.values())
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert torch.equal(teacher(input_ids=IDS).logits, before)
    assert torch.equal(frozen_copy(model, start)(input_ids=IDS).logits, before)
    with model.disable_adapter():
        assert not torch.allclose(model(input_ids=IDS).logits, before), "the control is as it was"


def test_weights_of_another_model_are_refused_by_name():
    with pytest.raises(PluginError, match=r"sequential: lwf .*classifier\.bias \[3\], the model \[2\]\. Resume with"):
        frozen_copy(tiny_model(), {"classifier.bias": torch.zeros(3)})
    with pytest.raises(PluginError, match="no such weight"):
        frozen_copy(tiny_model(), {"head.bias": torch.zeros(3)})


# ---- trainers ----


def remembering_trainer(folder, weight, *, trainer_class=Trainer, **changes):
    """A trainer that adds the term as the hook `ft_loss` would; no weight: without."""

    class Remembering(trainer_class):
        teacher = None

        def compute_loss(self, model, *args, **kwargs):
            if weight is None:
                return super().compute_loss(model, *args, **kwargs)
            unwrapped = self.accelerator.unwrap_model(self.model)
            if self.teacher is None:
                refuse_remembering(self, weight)
                self.teacher = frozen_copy(unwrapped)
            with remembering(unwrapped, self.teacher, weight, trainer=self):
                return super().compute_loss(model, *args, **kwargs)

    rows = [{"input_ids": row, "labels": labels} for row, labels in zip(IDS, masked(IDS), strict=True)]
    own = {"model": llama(), "train_dataset": rows * 4, "eval_dataset": rows, "max_steps": 3, "learning_rate": 0.05}
    return tiny_trainer(folder, trainer_class=Remembering, **(QUIET | own | changes))


def trained(trainer):
    trainer.train()
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


def test_accumulated_batches_remember_as_one_large_batch(tmp_path):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = trained(remembering_trainer(tmp_path, 2.0, **sizes))
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    torch.testing.assert_close(whole, trained(remembering_trainer(tmp_path, 2.0, **parts)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, trained(remembering_trainer(tmp_path, None, **sizes)), atol=1e-4)


def on_a_rank(rank, folder):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "ddp_backend": "gloo"}
    return trained(remembering_trainer(folder, 2.0, **sizes)).tolist()


def test_two_ranks_remember_as_one_process(on_both_ranks, tmp_path):
    first, second = (torch.tensor(result) for result in on_both_ranks(on_a_rank))
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert torch.equal(first, second)
    torch.testing.assert_close(
        first, trained(remembering_trainer(tmp_path / "alone", 2.0, **sizes)), rtol=1e-4, atol=1e-6
    )


def classifier_of(folder, weight, **changes):
    own = {"model": tiny_model(), "train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(4)}
    return remembering_trainer(folder, weight, **(own | changes))


def test_the_teacher_leaves_the_random_state_of_the_run(tmp_path):
    weights = [trained(classifier_of(tmp_path, weight)) for weight in (None, 0.0, 2.0)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def mean_of_labels(outputs, labels, num_items_in_batch=None):
    losses = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")
    return losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def test_a_loss_function_that_gets_the_labels_is_added_to(tmp_path):
    # The same loss, computed by the model and outside of it.
    model = tiny_model().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    results = {}
    for weight in (None, 2.0):
        for function in (None, mean_of_labels):
            trainer = classifier_of(tmp_path, weight, model=copy.deepcopy(model), gradient_accumulation_steps=1)
            trainer.compute_loss_func = function
            results[weight, function] = trained(trainer)
            assert trainer.compute_loss_func is function
    torch.testing.assert_close(results[2.0, None], results[2.0, mean_of_labels], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(results[None, None], results[2.0, None], atol=1e-4)


def test_in_half_precision_the_teacher_computes_as_the_model_did(tmp_path):
    terms = []

    class Recording(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            unwrapped = self.accelerator.unwrap_model(self.model)
            teacher = frozen_copy(unwrapped)
            plain = super().compute_loss(model, dict(inputs), **kwargs)
            with remembering(unwrapped, teacher, 1.0):
                loss = super().compute_loss(model, dict(inputs), **kwargs)
            terms.append(float((loss - plain).detach()))
            return loss

    rows = [{"input_ids": row, "labels": row} for row in IDS]
    tiny_trainer(
        tmp_path, trainer_class=Recording, model=llama(), train_dataset=rows, bf16=True, **QUIET, max_steps=1
    ).train()
    assert max(map(abs, terms)) == 0.0


# ---- refusals ----


def test_what_cannot_be_copied_or_compared_is_refused_by_name(tmp_path):
    trainer = remembering_trainer(tmp_path, None)
    for name, said in (("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")):
        setattr(trainer, name, True)
        with pytest.raises(PluginError, match=rf"sequential: lwf=1\.0 .*{said} cuts the model up, .*lwf=0"):
            refuse_remembering(trainer, 1.0)
        setattr(trainer, name, False)
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(PluginError, match=r"label_smoothing_factor=0\.1"):
        refuse_remembering(trainer, 1.0)
    with pytest.raises(PluginError, match=r"is TRL's, .*or train with Trainer"):
        refuse_remembering(sft_trainer(tmp_path, None, trainer_class=pytest.importorskip("trl").SFTTrainer), 1.0)


def test_outputs_that_are_no_classes_are_refused_by_name():
    model = tiny_model()
    teacher = frozen_copy(model)
    model.config.problem_type = "multi_label_classification"
    with remembering(model, teacher, 1.0):
        with pytest.raises(PluginError, match="problem_type=multi_label_classification"):
            model(**ROWS, labels=torch.ones(4, 2))
        with pytest.raises(PluginError, match="called with labels that gives loss and logits"):
            model(**ROWS)
