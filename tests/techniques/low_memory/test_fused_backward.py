"""Stepping within the backward pass: the weights of the same optimizer stepped after it, bit for bit."""

import logging

import pytest
import torch
from transformers import TrainerCallback

from hf_ft_plugins import PluginError, lr_scale
from hf_ft_plugins.techniques.low_memory import FusedBackward, LowMemory
from hf_ft_plugins.techniques.low_memory.optimizers.lomo import LOMO
from hf_ft_plugins.testing import difference
from hf_ft_plugins.testing.resuming import outcome, resumed
from tests.techniques.low_memory.models import language_model, texts, trained, weights_of

OPTIMS = ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "rmsprop", "adagrad", "lion_8bit", "adamw_8bit"]


@pytest.mark.parametrize("optim", OPTIMS)
def test_the_weights_are_those_of_the_same_optimizer_stepped_afterwards(tmp_path, optim):
    if "8bit" in optim:
        pytest.importorskip("bitsandbytes")
    stock = trained(tmp_path / "stock", optim=optim, weight_decay=0.1)
    ours = trained(tmp_path / "ours", "low-memory", optim=optim, weight_decay=0.1)
    assert difference(weights_of(stock), weights_of(ours)) is None
    assert [one["grad_norm"] for one in stock.state.log_history if "grad_norm" in one] == pytest.approx(
        [one["grad_norm"] for one in ours.state.log_history if "grad_norm" in one], rel=1e-5
    )
    other = trained(tmp_path / "other", "low-memory", optim=optim, weight_decay=0.1, learning_rate=1.1e-2)
    assert difference(weights_of(stock), weights_of(other)) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"bf16": True},
        {"model": lambda: language_model(tied=False)},
        {"model": lambda: language_model(dtype=torch.bfloat16)},
    ],
    ids=["checkpointing", "reentrant", "schedule", "autocast", "untied", "bfloat16"],
)
def test_they_are_so_too_under(tmp_path, arguments):
    make = arguments.pop("model", language_model)
    stock = trained(tmp_path / "stock", model=make(), **arguments)
    ours = trained(tmp_path / "ours", "low-memory", model=make(), **arguments)
    assert difference(weights_of(stock), weights_of(ours)) is None


@pytest.mark.parametrize("other", ["transfer:strategy=gradual,rewarm=0", "transfer:strategy=full,layer_decay=0.5"])
def test_rates_by_layer_and_layers_that_are_unfrozen_later_are_stepped_as_in_any_run(tmp_path, other):
    stock = trained(tmp_path / "stock", other, max_steps=10)
    ours = trained(tmp_path / "ours", other, "low-memory", max_steps=10)
    assert difference(weights_of(stock), weights_of(ours)) is None
    plain = trained(tmp_path / "plain", "low-memory", max_steps=10)
    assert difference(weights_of(stock), weights_of(plain)) is not None


def test_at_no_time_are_two_gradients_alive():
    model, most = language_model(), []
    optimizer = FusedBackward(torch.optim.AdamW(model.parameters()))
    for parameter in model.parameters():
        parameter.register_hook(lambda _: most.append(sum(one.grad is not None for one in model.parameters())))
    batch = {name: column.unsqueeze(0) for name, column in texts(1)[0].items()}
    model(**batch).loss.backward()
    assert len(most) == len(list(model.parameters()))
    assert max(most) == 0
    assert all(one.grad is None for one in model.parameters())
    optimizer.detach()
    model(**batch).loss.backward()
    assert all(one.grad is not None for one in model.parameters())


class RestingGroup(TrainerCallback):
    """Sets the factor of one group to 0 for the first three steps."""

    def on_step_begin(self, args, state, control, *, optimizer, **kwargs):
        factor = 0.0 if state.global_step < 3 else 1.0
        lr_scale.set_scale(optimizer, "resting", factor, lr_scale.innermost(optimizer).param_groups[:1])


def test_a_group_whose_factor_is_zero_keeps_weights_and_state(tmp_path):
    before = weights_of(type("", (), {"model": language_model()}))
    ours = trained(tmp_path, "low-memory", callbacks=[RestingGroup()], max_steps=3)
    group = ours.optimizer.param_groups[0]
    names = {id(weight): name for name, weight in ours.model.named_parameters()}
    assert group["params"]
    for weight in group["params"]:
        assert torch.equal(weight, before[names[id(weight)]])
        assert not ours.optimizer.state[weight]


# ---- resume ----


@pytest.mark.parametrize("algorithm", ["script", "lomo"])
@pytest.mark.parametrize("clip", ["lagged", "two_pass", "per_tensor", "none"])
def test_a_run_that_was_cut_off_resumes_exactly(tmp_path, algorithm, clip):
    setting = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.5}
    technique = LowMemory(algorithm=algorithm, clip=clip)
    from hf_ft_plugins.testing import tiny_trainer

    straight = tiny_trainer(tmp_path / "straight", technique, **setting)
    straight.train()
    again = resumed(tmp_path / "resumed", technique, **setting)
    assert difference(outcome(straight), outcome(again)) is None


# ---- clipping ----


def test_two_passes_clip_by_the_norm_of_all_gradients(tmp_path):
    stock = trained(tmp_path / "stock", max_grad_norm=0.5)
    ours = trained(tmp_path / "ours", "low-memory:clip=two_pass", max_grad_norm=0.5)
    for name, weight in weights_of(stock).items():
        torch.testing.assert_close(weights_of(ours)[name], weight, rtol=0, atol=2e-6)
    unclipped = trained(tmp_path / "unclipped", "low-memory:clip=none", max_grad_norm=0.5, optim="sgd")
    clipped = trained(tmp_path / "clipped", "low-memory:clip=two_pass", max_grad_norm=0.5, optim="sgd")
    assert difference(weights_of(clipped), weights_of(unclipped)) is not None


@pytest.mark.parametrize("clip", ["lagged", "per_tensor"])
def test_no_gradient_that_is_applied_is_longer_than_max_grad_norm(clip):
    model = language_model()
    from hf_ft_plugins.techniques.low_memory.clipping import Clipping

    applied = []

    class Watched(LOMO):
        def update(self, parameter, gradient, state, group):
            if applied is not None and parameter.numel() > 16**2:
                applied.append(gradient.norm().item())
            super().update(parameter, gradient, state, group)

    FusedBackward(Watched(model.parameters(), lr=0.01), clipping=Clipping(1e-3, clip))
    model(**{name: column.unsqueeze(0) for name, column in texts(1)[0].items()}).loss.backward()
    assert applied
    assert max(applied) <= 1e-3


def test_lagged_clipping_uses_the_norm_of_the_step_before():
    weight = torch.nn.Parameter(torch.zeros(2))
    from hf_ft_plugins.techniques.low_memory.clipping import Clipping

    fused = FusedBackward(LOMO([weight], lr=1.0), clipping=Clipping(1.0, "lagged"))
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    fused.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    (weight * torch.tensor([0.3, 0.4])).sum().backward()
    fused.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.66, -0.88]))
    (weight * torch.tensor([0.3, 0.4])).sum().backward()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.96, -1.28]))


# ---- accumulation ----


def test_with_accumulation_gradients_are_kept_and_clipped_as_in_a_stock_run(tmp_path, caplog):
    arguments = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    stock = trained(tmp_path / "stock", **arguments)
    with caplog.at_level(logging.WARNING):
        ours = trained(tmp_path / "ours", "low-memory", **arguments)
    assert difference(weights_of(stock), weights_of(ours)) is None
    assert "gradient_accumulation_steps=2" in caplog.text


def test_accumulation_can_be_refused(tmp_path):
    with pytest.raises(PluginError, match="accumulation=refuse, and gradient_accumulation_steps=2"):
        trained(tmp_path, "low-memory:accumulation=refuse", gradient_accumulation_steps=2)


# ---- gradients that are not finite ----


class Spoil(TrainerCallback):
    """Makes the loss of one step NaN, by a weight of the batch."""

    def __init__(self, model, step):
        self.model, self.step, self.before = model, step, None
        self.forward = model.forward

    def on_step_begin(self, args, state, control, **kwargs):
        self.model.forward = self.forward
        if state.global_step == self.step:
            self.before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
            self.model.forward = self.spoiled

    def spoiled(self, *args, **kwargs):
        outputs = self.forward(*args, **kwargs)
        outputs.loss = outputs.loss * float("nan")
        return outputs

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step + 1:
            self.after = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}


@pytest.mark.parametrize("others", [(), ("adaptive-lr:metric=loss",)], ids=["alone", "adaptive-lr"])
def test_a_step_whose_gradients_are_not_finite_is_dropped(tmp_path, others, caplog):
    model = language_model()
    spoil = Spoil(model, 2)
    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "ours", *others, "low-memory", model=model, callbacks=[spoil])
    assert difference(spoil.before, spoil.after) is None
    assert "was not finite" in caplog.text
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    model = language_model()
    trained(tmp_path / "stock", model=model, callbacks=[Spoil(model, 2)])
    assert any(torch.isnan(weight).any() for weight in model.parameters())


# ---- what cannot be right ----


class ByGlobalNorm(torch.optim.SGD):
    """Steps along the gradient of all tensors, at a fixed length."""

    def step(self, closure=None):
        gradients = [one.grad for group in self.param_groups for one in group["params"] if one.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
        for gradient in gradients:
            gradient.div_(norm)
        return super().step(closure)


class Counting(torch.optim.SGD):
    """Its rate falls with a count that it keeps in its group."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for one in group["params"]:
                if one.grad is not None:
                    one.grad.div_(group["count"])
        return super().step(closure)


@pytest.mark.parametrize("kind", [ByGlobalNorm, Counting])
def test_an_optimizer_whose_tensors_depend_on_each_other_is_refused(kind):
    with pytest.raises(PluginError, match=f"{kind.__name__} steps tensors otherwise one by one"):
        FusedBackward(kind(language_model().parameters(), lr=0.1))


def test_a_second_backward_pass_in_one_step_is_an_error_that_names_the_parameter():
    model = language_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    FusedBackward(torch.optim.AdamW(model.parameters()), names=names)
    batch = {name: column.unsqueeze(0) for name, column in texts(1)[0].items()}
    model(**batch).loss.backward()
    with pytest.raises(PluginError, match=r"low-memory: the gradient of model\.norm\.weight came twice"):
        model(**batch).loss.backward()


def test_sparse_gradients_are_refused(tmp_path):
    model = language_model(tied=False)
    model.model.embed_tokens = torch.nn.Embedding(64, 32, sparse=True)
    with pytest.raises(PluginError, match=r"model\.embed_tokens has sparse gradients"):
        trained(tmp_path, "low-memory", model=model, optim="sgd")


def test_what_needs_the_gradients_after_the_step_refuses(tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(PluginError, match=r"(?s)peft.*low-memory|low-memory.*peft"):
        trained(tmp_path, "low-memory", "peft:method=adalora")


class Raises(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_run_that_ends_by_an_exception_leaves_no_hook_behind(tmp_path):
    model = language_model()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "low-memory:clip=two_pass", model=model, max_grad_norm=1.0, callbacks=[Raises()])
    model(**{name: column.unsqueeze(0) for name, column in texts(1)[0].items()}).loss.backward()
    assert all(one.grad is not None for one in model.parameters())
