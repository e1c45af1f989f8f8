"""Which optimizers follow a factor on their rate: all of torch's, of transformers' names and of scripts' own kinds.

Each is held to a run by hand: two copies of one weight, one stepped with the plain rate, one with the factor.
"""

import inspect

import pytest
import torch
from transformers.optimization import Adafactor
from transformers.trainer import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.training_args import OptimizerNames

from hf_ft_plugins import lr_scale
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.testing import tiny_model, tiny_trainer


def torch_optimizers():
    found = [getattr(torch.optim, name) for name in dir(torch.optim)]
    kinds = [kind for kind in found if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)]
    return [kind for kind in kinds if kind is not torch.optim.Optimizer]


def two_weights():
    return [torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(shape)) for shape in ((4, 6), (6, 4))]


def end_of_run(make, factor):
    """Where the weights are after five real steps, the rate of all groups times `factor` from the third on."""
    weights = two_weights()
    optimizer = make(weights)
    for step in range(5):
        for group in optimizer.param_groups:
            group.setdefault("first", group["lr"])
            if step == 2 and group["lr"] is not None:
                group["lr"] = group["lr"] * factor
        for place, weight in enumerate(weights):
            gradient = torch.sin(torch.arange(24.0).reshape(weight.shape) + step + place)
            weight.grad = gradient.to_sparse(1) if type(optimizer).__name__ == "SparseAdam" else gradient
        optimizer.step(lambda: 0.0) if type(optimizer).__name__ == "LBFGS" else optimizer.step()
    return torch.cat([weight.detach().flatten() for weight in weights])


def refused(make):
    optimizer = make(two_weights())
    try:
        lr_scale.set_scale(optimizer, "transfer/depth", 0.1)
    except PluginError as error:
        text = str(error)
    else:
        return False
    assert all(word in text for word in ("transfer", type(optimizer).__name__, "reach no weight"))
    assert not lr_scale.is_scaled(optimizer)
    return True


class KeepsItsRate(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.rate = lr

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.add_(weight.grad, alpha=-self.rate)


class OnePerWeight(torch.optim.Optimizer):
    """Holds an optimizer for each weight; `shared`: its groups are theirs."""

    def __init__(self, params, lr, shared):
        super().__init__(params, {"lr": lr})
        self.each = [torch.optim.AdamW([weight], lr=lr) for weight in params]
        if shared:
            self.param_groups = [group for one in self.each for group in one.param_groups]

    def step(self, closure=None):
        for one in self.each:
            one.step()


SCRIPTS_OWN = {
    "keeps its rate": lambda weights: KeepsItsRate(weights, 0.01),
    "one per weight": lambda weights: OnePerWeight(weights, 0.01, shared=True),
    "one per weight, rates copied": lambda weights: OnePerWeight(weights, 0.01, shared=False),
    "rate in a tensor": lambda weights: torch.optim.AdamW(weights, lr=torch.tensor(0.01), foreach=False),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "Adafactor, relative": lambda weights: Adafactor(weights),
    "Adafactor, relative, warm": lambda weights: Adafactor(weights, warmup_init=True),
    "Adafactor, relative, unscaled": lambda weights: Adafactor(weights, scale_parameter=False),
    "Adafactor, absolute": lambda weights: Adafactor(weights, lr=0.01, relative_step=False),
    "Adafactor, absolute, first moment": lambda weights: Adafactor(weights, lr=0.01, relative_step=False, beta1=0.9),
}
DEAF = {"Rprop", "keeps its rate", "one per weight, rates copied"} | {
    name for name in SCRIPTS_OWN if "relative" in name
}
MAKERS = {kind.__name__: lambda weights, kind=kind: kind(weights, lr=0.01) for kind in torch_optimizers()} | SCRIPTS_OWN


@pytest.mark.parametrize("name", MAKERS)
def test_a_factor_is_refused_where_and_only_where_the_weights_do_not_follow_it(name):
    make = MAKERS[name]
    stays = torch.equal(end_of_run(make, 1.0), end_of_run(make, 0.1))
    assert refused(make) is stays is (name in DEAF)


# Of transformers' names: what is not made here, by the library or the device that is missing; and what is never fit.
MISSING = ("xla", "npu", "anyprecision", "4bit", "torch_8bit", "galore", "lomo", "grokadamw", "schedule_free", "apollo")
MISSING += ("stable_adamw",)


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_every_optim_name_acts_or_is_refused_or_is_not_there(name, tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.args.optim = name
    if "layerwise" in name:
        with pytest.raises(PluginError, match=r"adaptive-lr: optim=.*without layerwise"):
            lr_scale.refuse_when_built(trainer, "adaptive-lr")
        return
    lr_scale.refuse_when_built(trainer, "adaptive-lr")
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    except (ImportError, ValueError):
        assert any(word in name for word in MISSING)
        return
    settings.pop("params", None)
    assert not refused(lambda weights: kind(weights, **settings))


def test_lomo_and_layerwise_dummies_are_known_by_name(tmp_path):
    class Lomo(torch.optim.SGD):
        """Stands for the optimizer of that name."""

    lomo = Lomo(two_weights(), lr=0.1)
    lr_scale.set_scale(lomo, "adaptive-lr", 0.5)
    with pytest.raises(PluginError, match=r"peft: the optimizer Lomo .*one rate for all weights"):
        lr_scale.set_scale(lomo, "peft/loraplus", 2.0, lomo.param_groups)
    with pytest.raises(PluginError, match="without layerwise"):
        lr_scale.set_scale(LayerWiseDummyOptimizer(optimizer_dict={}, lr=0.1), "adaptive-lr", 0.5)
    trainer = tiny_trainer(tmp_path)
    trainer.args.optim = "lomo"
    lr_scale.refuse_when_built(trainer, "adaptive-lr")
    with pytest.raises(PluginError, match="optim='lomo'"):
        lr_scale.refuse_when_built(trainer, "transfer", by_group=True)


def test_an_optimizer_that_wants_one_rate_for_all_groups_is_refused_for_some_of_them_alone():
    class Equal(torch.optim.SGD):
        def step(self, closure=None):
            if len({group["lr"] for group in self.param_groups}) > 1:
                raise RuntimeError("different lr values are not supported")
            return super().step(closure)

    optimizer = Equal([{"params": [weight]} for weight in two_weights()], lr=0.1)
    lr_scale.set_scale(optimizer, "adaptive-lr", 0.5)
    other = Equal([{"params": [weight]} for weight in two_weights()], lr=0.1)
    with pytest.raises(PluginError, match=r"groups of different rates.*different lr values are not supported"):
        lr_scale.set_scale(other, "transfer/depth", 0.5, other.param_groups[:1])


def test_what_cannot_be_tried_passes_with_a_warning(caplog):
    class Holds(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)
            self.model = tiny_model()

    optimizer = Holds(two_weights(), lr=0.1)
    lr_scale.set_scale(optimizer, "adaptive-lr", 0.5)
    assert "was not tried: it holds a BertForSequenceClassification" in caplog.text
    assert lr_scale.effective_lrs(optimizer) == [0.05]


def test_the_trial_changes_nothing_and_draws_no_random_number():
    weights = two_weights()
    optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}, {"params": []}], lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    before, random = [weight.detach().clone() for weight in weights], torch.get_rng_state()
    rates = [group["lr"] for group in optimizer.param_groups]
    lr_scale.refuse_unfit(optimizer, "adaptive-lr")
    assert all(map(torch.equal, before, weights))
    assert torch.equal(random, torch.get_rng_state())
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert not optimizer.state
    assert all(weight.grad is None for weight in weights)


def test_a_rate_in_a_tensor_is_scaled_for_the_step_and_stays_the_same_tensor():
    # Groups that do not set their own share one tensor.
    rate, weights = torch.tensor(0.1), two_weights()
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:]}], lr=rate, foreach=False)
    lr_scale.set_scale(optimizer, "adaptive-lr", 0.5)
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for old, weight in zip(before, weights, strict=True):
        assert torch.allclose(old - weight, torch.full_like(weight, 0.05))
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    assert rate.item() == pytest.approx(0.1)


@pytest.mark.parametrize("technique", ["adaptive-lr", "transfer:strategy=full,layer_decay=0.5"])
def test_a_script_s_deaf_optimizer_is_refused_when_the_trainer_is_built(technique, tmp_path):
    with pytest.raises(PluginError, match=r"Adafactor does not step .*relative_step=False"):
        tiny_trainer(tmp_path, technique, trainer_class=WithAdafactor)
    # The control: an absolute rate is followed.
    tiny_trainer(tmp_path, technique, trainer_class=WithAbsoluteAdafactor, max_steps=2).train()


class WithAdafactor(Trainer):
    def __init__(self, **kwargs):
        super().__init__(optimizer_cls_and_kwargs=(Adafactor, {"relative_step": True}), **kwargs)


class WithAbsoluteAdafactor(Trainer):
    def __init__(self, **kwargs):
        super().__init__(optimizer_cls_and_kwargs=(Adafactor, {"relative_step": False, "lr": 1e-3}), **kwargs)
