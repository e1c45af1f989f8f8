"""Each penalty's gradient: against autograd of the penalty's own definition in 64 bits, and in 16 bits."""

import pytest
import torch

from hf_ft_plugins.techniques.sequential.penalties import EWC, L2SP, Together


def parameters(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (5, 3), "vector": (7,), "new": (2,)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def with_gradients(named, seed=5):
    for name, other in parameters(seed=seed).items():
        named[name].grad = other.detach().to(named[name].dtype)
    return {name: one.grad.clone() for name, one in named.items()}


def start_of(dtype=torch.float64):
    return {name: one.detach() for name, one in parameters(dtype, seed=1).items() if name != "new"}


def fisher(dtype=torch.float64):
    return {name: one.detach().square() for name, one in parameters(dtype, seed=2).items() if name != "new"}


def l2sp_of(named):
    return 0.3 / 2 * sum((named[name] - one).square().sum() for name, one in start_of().items())


def ewc_of(named):
    return 0.3 / 2 * sum((fisher()[name] * (named[name] - one).square()).sum() for name, one in start_of().items())


PENALTIES = {
    "l2sp": (L2SP(0.3, start_of()), l2sp_of),
    "ewc": (EWC(0.3, start_of(), fisher()), ewc_of),
    "both": (Together((L2SP(0.3, start_of()), EWC(0.3, start_of(), fisher()))), lambda one: l2sp_of(one) + ewc_of(one)),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_and_the_value_are_those_of_the_penalty(name):
    penalty, definition = PENALTIES[name]
    named = parameters()
    before = with_gradients(named)
    penalty.add_gradients(named)
    reference = parameters()
    value = definition(reference)
    value.backward()
    for key in ("matrix", "vector"):
        assert torch.allclose(named[key].grad - before[key], reference[key].grad, rtol=0, atol=1e-12)
    assert torch.equal(named["new"].grad, before["new"]), "a parameter that is new has no start"
    assert penalty.value(named) == pytest.approx(value.item(), rel=1e-12)


def test_a_parameter_without_a_gradient_gets_none():
    named = parameters()
    with_gradients(named)
    named["matrix"].grad = None
    L2SP(0.3, start_of()).add_gradients(named)
    assert named["matrix"].grad is None


@pytest.mark.parametrize("name", ["l2sp", "ewc"])
def test_sixteen_bits_are_rounded_once(name):
    named = parameters(torch.bfloat16)
    before = with_gradients(named)
    start = start_of(torch.bfloat16)
    penalty = L2SP(0.3, start) if name == "l2sp" else EWC(0.3, start, fisher(torch.float32))
    penalty.add_gradients(named)
    for key in ("matrix", "vector"):
        pull = 0.3 * (named[key].detach().float() - start[key].float())
        pull = pull if name == "l2sp" else 0.3 * fisher(torch.float32)[key] * (pull / 0.3)
        expected = (before[key].float() + pull).to(torch.bfloat16)
        assert torch.allclose(named[key].grad, expected, rtol=2**-8, atol=0)
        # The control: in 16 bits throughout.
        rough = before[key] + torch.tensor(0.3, dtype=torch.bfloat16) * (named[key].detach() - start[key])
        assert name == "ewc" or not torch.equal(rough, expected)
