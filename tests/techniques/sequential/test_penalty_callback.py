"""Penalties in a Trainer: counted once a step, logged, resumed exactly, and refused where they could not act."""

import contextlib

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_ft_plugins.errors import CheckpointError, OptionError, PluginError
from hf_ft_plugins.techniques.sequential.penalty_callback import PenaltyCallback
from hf_ft_plugins.techniques.sequential.penalty_refusals import refuse_steps_in_backward, refuse_unsupported
from hf_ft_plugins.techniques.sequential.start_weights import START_FILE, read_start, start_folder
from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome, tiny_model, tiny_trainer
from tests.techniques.sequential.penalty_runs import (
    RUN,
    alone,
    hosted,
    language_model,
    largest,
    weights,
)

BOTH = {"l2sp": 2.0, "ewc": 1.0, "fisher_rows": 6}


def in_64_bits():
    return language_model().double()


class PenaltyInTheLoss(Trainer):
    """The control: L2-SP as a term of the loss."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        start = dict(in_64_bits().named_parameters())
        return loss + 2.0 / 2 * sum(
            (one - start[name].detach()).square().sum() for name, one in model.named_parameters()
        )


def accumulated(folder, steps, *, penalties=None, **changes):
    changes = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.05, "max_steps": 6} | RUN | changes
    sizes = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    trainer = alone(folder, penalties=penalties, model=in_64_bits(), **sizes, **changes)
    trainer.train()
    return weights(trainer)


def test_batches_that_a_step_accumulates_do_not_count_a_penalty_again(tmp_path):
    once, accumulating = (accumulated(tmp_path / str(steps), steps, penalties=BOTH) for steps in (1, 4))
    assert largest(once, accumulating) < 1e-10
    without = accumulated(tmp_path / "without", 1)
    assert largest(once, without) > 1e-3
    in_loss = [accumulated(tmp_path / f"loss{steps}", steps, trainer_class=PenaltyInTheLoss) for steps in (1, 4)]
    assert largest(in_loss[0], accumulated(tmp_path / "l2sp", 1, penalties={"l2sp": 2.0})) < 1e-10
    assert largest(*in_loss) > 1e-4, "in the loss, it is counted for each batch"


def test_clipping_comes_before_penalties(tmp_path):
    strong = {"penalties": {"l2sp": 10.0}, "learning_rate": 0.2, "max_steps": 2}
    clipped, unclipped = (accumulated(tmp_path / str(norm), 1, max_grad_norm=norm, **strong) for norm in (1e-9, 0.0))
    # All that is left of a clipped gradient is next to nothing, so nothing moves, and nothing pulls.
    assert largest(clipped, weights_of(in_64_bits())) < 1e-8
    assert largest(unclipped, clipped) > 1e-3


def weights_of(model):
    return {name: one.detach() for name, one in model.named_parameters()}


@pytest.mark.parametrize("make", [hosted, alone])
def test_resumed_run_equals_the_run_never_stopped(make, tmp_path):
    options = {"l2sp": 0.5, "ewc": 0.5} if make is hosted else {"penalties": {"l2sp": 0.5, "ewc": 0.5}}

    def made(folder, **changes):
        return make(folder, **options, **changes)

    straight = made(tmp_path / "straight")
    straight.train()
    cut = made(tmp_path / "cut", callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = made(tmp_path / "cut", model=language_model(seed=3))
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert difference(outcome(straight), outcome(again)) is None
    unpulled = make(tmp_path / "without")
    unpulled.train()
    assert difference(weights(straight), weights(unpulled)) is not None


def test_a_resumed_run_with_adapters_equals_the_run_never_stopped(tmp_path):
    lora_models = pytest.importorskip("tests.techniques.sequential.lora_models")

    def adapted(seed=0):
        return lora_models.adapted(seed=seed, model=language_model(), targets=["q_proj", "down_proj"])

    adapted(seed=1).save_pretrained(tmp_path / "earlier")
    penalties = {"ewc": 0.5, "olora": 0.1, "fisher_rows": 6, "earlier_adapters": [tmp_path / "earlier"]}
    straight = alone(tmp_path / "straight", model=adapted(), penalties=penalties)
    straight.train()
    cut = alone(tmp_path / "cut", model=adapted(), penalties=penalties, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = alone(tmp_path / "cut", model=adapted(seed=2), penalties=penalties)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert difference(outcome(straight), outcome(again)) is None
    logged = [entry for entry in straight.state.log_history if "loss" in entry]
    assert all(entry["sequential/ewc"] > 0 for entry in logged)
    assert logged[-1]["sequential/olora"] < logged[0]["sequential/olora"]


@pytest.mark.parametrize("make", [hosted, alone])
def test_penalties_are_logged_with_each_training_loss(make, tmp_path):
    class Values(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            start = read_start(start_folder(args))
            squares = sum((one - start[name]).square().sum() for name, one in model.named_parameters())
            self.seen.append(0.5 / 2 * squares.item())

    values = Values()
    options = {"l2sp": 0.5, "ewc": 0.5} if make is hosted else {"penalties": {"l2sp": 0.5, "ewc": 0.5}}
    trainer = make(tmp_path, callbacks=[values], **options)
    metrics = trainer.train().metrics
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sequential/l2sp"] for entry in logged] == pytest.approx(values.seen, rel=1e-5)
    assert all(entry["sequential/ewc"] > 0 for entry in logged)
    assert not any("sequential" in key for key in metrics)


def test_the_pull_keeps_the_weights_near_the_start(tmp_path):
    start = weights_of(language_model())
    distances = []
    for strength in (0.0, 1.0, 10.0):
        trainer = alone(tmp_path / str(strength), penalties={"l2sp": strength}, optim="sgd", **RUN)
        trainer.train()
        distances.append(largest(weights(trainer), start))
    assert distances == sorted(distances, reverse=True)


def test_weights_in_16_bits_are_pulled(tmp_path):
    model = language_model().to(torch.bfloat16)
    trainer = alone(tmp_path / "run", model=model, penalties=BOTH, optim="sgd", learning_rate=0.1, **RUN)
    trainer.train()
    other = alone(tmp_path / "other", model=language_model().to(torch.bfloat16), optim="sgd", learning_rate=0.1, **RUN)
    other.train()
    start = weights_of(language_model().to(torch.bfloat16))
    moved, free = (
        sum(float((one[name].float() - start[name].float()).norm()) for name in start)
        for one in (weights(trainer), weights(other))
    )
    assert moved < 0.9 * free
    assert {one.dtype for one in read_start(start_folder(trainer.args)).values()} == {torch.bfloat16}


def test_mixed_precision_is_near_full(tmp_path):
    changes = {"penalties": BOTH, "optim": "sgd", "learning_rate": 0.05, **RUN}
    mixed, full = (alone(tmp_path / str(bf16), bf16=bf16, **changes) for bf16 in (True, False))
    mixed.train()
    full.train()
    free = alone(tmp_path / "free", **changes | {"penalties": {}})
    free.train()
    assert 0 < largest(weights(mixed), weights(full)) < 0.1 * largest(weights(free), weights(full))


def scaled(trainer):
    """As Trainer with fp16=True on a GPU: losses are scaled by 2**16, gradients unscaled again before a step."""
    accelerator = trainer.accelerator
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
    accelerator.state._mixed_precision = "fp16"
    return trainer


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_fp16s_scale_of_the_loss_scales_no_penalty(max_grad_norm, tmp_path):
    changes = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": max_grad_norm, **RUN}
    try:
        half = scaled(alone(tmp_path / "half", penalties=BOTH, **changes))
        half.train()
    finally:
        half.accelerator.state._mixed_precision = "no"
    full = alone(tmp_path / "full", penalties=BOTH, **changes)
    full.train()
    free = alone(tmp_path / "free", **changes)
    free.train()
    assert largest(weights(half), weights(full)) < 0.1 * largest(weights(free), weights(full))


# ---- refused ----


def test_the_file_of_another_run_is_refused_on_resume(tmp_path):
    first = alone(tmp_path, penalties={"l2sp": 0.5}, max_steps=4)
    first.train()
    alone(tmp_path, model=language_model(seed=1), penalties={"l2sp": 0.5}, max_steps=1, save_strategy="no").train()
    again = alone(tmp_path, penalties={"l2sp": 0.5}, max_steps=6)
    with pytest.raises(CheckpointError, match=r"another run has begun in this output_dir"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (start_folder(first.args) / START_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"is not there"):
        alone(tmp_path, penalties={"l2sp": 0.5}, max_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_a_checkpoint_without_the_penalty_is_not_resumed_with_it(tmp_path):
    alone(tmp_path, penalties={"l2sp": 0.5}, max_steps=4).train()
    with pytest.raises(CheckpointError, match=r"knows nothing of the fisher"):
        alone(tmp_path, penalties={"ewc": 0.5}, max_steps=6).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


@pytest.mark.parametrize(
    "options", [{"l2sp": -1.0}, {"ewc": float("nan")}, {"olora": float("inf")}, {"fisher_rows": 0}]
)
def test_values_out_of_range_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(OptionError, match=f"sequential: {name}={value}"):
        PenaltyCallback(**options)


def test_ewc_without_rows_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[PenaltyCallback(ewc=0.5)], **RUN)
    with pytest.raises(PluginError, match=r"sequential: ewc=0.5 needs rows of earlier stages"):
        trainer.train()


@pytest.mark.parametrize("technique", ["low-memory:algorithm=adalomo", "low-memory:algorithm=mezo"])
def test_an_optimizer_that_leaves_no_gradients_is_refused(technique, tmp_path):
    callback = PenaltyCallback(l2sp=0.5)
    changes = RUN | {"gradient_accumulation_steps": 1}
    trainer = tiny_trainer(tmp_path, technique, callbacks=[callback], **changes)
    callback.set_trainer(trainer)
    with pytest.raises(PluginError, match=r"sequential: .*low-memory:fused=false"):
        trainer.train()
    refuse_steps_in_backward(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))


def test_gradients_that_penalties_cannot_be_added_to_are_refused(tmp_path):
    refuse_unsupported(tiny_trainer(tmp_path))
    lomo = tiny_trainer(tmp_path)
    lomo.args.optim = "galore_adamw_layerwise"
    with pytest.raises(PluginError, match=r"optim='galore_adamw_layerwise' steps within"):
        refuse_unsupported(lomo)
    deepspeed = tiny_trainer(tmp_path)
    deepspeed.is_deepspeed_enabled = True
    with pytest.raises(PluginError, match=r"DeepSpeed steps within the backward pass. Use FSDP2"):
        refuse_unsupported(deepspeed)
    sparse = tiny_model()
    sparse.bert.embeddings.word_embeddings.sparse = True
    with pytest.raises(PluginError, match=r"word_embeddings are sparse"):
        refuse_unsupported(tiny_trainer(tmp_path, model=sparse))


def test_nothing_is_written_where_nothing_is_pulled(tmp_path):
    alone(tmp_path, **RUN).train()
    assert not (tmp_path / "sequential_start").exists()
