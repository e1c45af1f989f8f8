"""Large tensors stepped by rows: the same bits, in less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.optimization import Adafactor

from hf_ft_plugins.techniques.low_memory import large_tensors
from hf_ft_plugins.techniques.low_memory.fused_backward import FusedBackward
from hf_ft_plugins.techniques.low_memory.large_tensors import rows_are_exact
from hf_ft_plugins.techniques.low_memory.optimizers.adalomo import AdaLOMO
from hf_ft_plugins.techniques.low_memory.optimizers.lomo import LOMO
from hf_ft_plugins.techniques.low_memory.tensor_step import step_tensor
from hf_ft_plugins.testing import difference

ELEMENTWISE = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=1e-2, amsgrad=True, foreach=False),
    "fused": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
    "momentum": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-2, centered=True),
    "lomo": lambda params: LOMO(params, lr=1e-2, weight_decay=0.1),
}
OTHERS = {
    "adafactor": lambda params: Adafactor(params, lr=1e-2, relative_step=False, scale_parameter=False),
    "adalomo": lambda params: AdaLOMO(params, lr=1e-2),
}


def trained(make, *, by_rows, dtype=torch.float32, steps=4, in_backward=True):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"rows": torch.nn.Embedding(203, 20), "head": torch.nn.Linear(20, 203)}).to(dtype)
    optimizer = FusedBackward(make(model.parameters()), in_backward=in_backward)
    if not by_rows:
        optimizer._step_one = step_tensor
    for step in range(steps):
        model["head"](model["rows"](torch.arange(9) * (step + 3))).square().mean().backward()
        optimizer.step()
        if step == steps // 2:
            optimizer.load_state_dict(optimizer.state_dict())
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(large_tensors, "LARGE", 1300)  # 203 x 20 in parts of 64 rows, the last of 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_rows_of_an_elementwise_optimizer_give_the_same_bits(name, dtype):
    make = ELEMENTWISE[name]
    expected = trained(make, by_rows=False, dtype=dtype)
    assert difference(expected, trained(make, by_rows=True, dtype=dtype)) is None
    assert difference(expected, trained(make, by_rows=True, dtype=dtype, in_backward=False)) is None
    assert difference(expected, trained(make, by_rows=True, dtype=dtype, steps=3)) is not None


@pytest.mark.parametrize("name", [*ELEMENTWISE, *OTHERS])
def test_an_optimizer_that_looks_at_whole_tensors_steps_them_whole(name):
    optimizer = (ELEMENTWISE | OTHERS)[name]([torch.nn.Parameter(torch.ones(4, 3))])
    assert rows_are_exact(optimizer) is (name in ELEMENTWISE)


class LargestResult(TorchDispatchMode):
    """The largest number of elements that an operation gives in memory of its own."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, result.numel())
        return result


def largest_of_a_step(*, by_rows):
    weight = torch.nn.Parameter(torch.ones(203, 20))
    optimizer = FusedBackward(torch.optim.AdamW([weight], foreach=False), in_backward=False)
    if not by_rows:
        optimizer._step_one = step_tensor
    largest = LargestResult()
    for step in range(2):
        weight.grad = torch.ones_like(weight)
        if step == 1:
            with largest:
                optimizer.step()
        else:
            optimizer.step()
    return largest.elements


def test_nothing_as_large_as_the_tensor_is_computed_on_the_way():
    assert largest_of_a_step(by_rows=True) <= 64 * 20
    assert largest_of_a_step(by_rows=False) == 203 * 20


def test_a_function_that_gives_no_gradient_leaves_its_weight_as_it_is():
    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, numbers, weight):
            return numbers * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2, None

    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = FusedBackward(torch.optim.SGD(weights, lr=0.1))
    Silent.apply(weights[0], weights[1]).sum().backward()
    optimizer.step()
    assert weights[0].tolist() != [1, 1, 1]
    assert weights[1].tolist() == [1, 1, 1]
