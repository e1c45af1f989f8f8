"""The mean of a stage's first and last weights, entry by entry."""

import pytest
import torch

from hf_ft_plugins import PluginError
from hf_ft_plugins.techniques.sequential.weight_averaging import average_with_start
from hf_ft_plugins.testing import tiny_model
from tests.techniques.low_memory.test_shards import RUN, SHARDED, weights
from tests.two_processes import build, shard_on_cpus


def tensors(model):
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: one.detach().clone() for name, one in named if one.is_floating_point()}


def moved(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in [*model.parameters(), *(one for one in model.buffers() if one.is_floating_point())]:
            one.add_(torch.randn(one.shape, generator=generator).to(one.dtype))
    return model


class Normalized(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)
        self.last.weight = self.first.weight


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_weight_is_the_mean_of_both_rounded_once(alpha, dtype):
    model = tiny_model().to(dtype)
    start = tensors(model)
    end = tensors(moved(model))
    average_with_start(model, start, alpha)
    coarse = []
    for name, own in tensors(model).items():
        exact = (1 - alpha) * start[name].double() + alpha * end[name].double()
        if dtype == torch.float64:
            torch.testing.assert_close(own, exact, rtol=1e-14, atol=1e-14)
        else:
            # Half a unit in the last of the 8 places.
            torch.testing.assert_close(own.double(), exact, rtol=1.001 * 2**-8, atol=1e-6)
        if dtype == torch.bfloat16 and alpha == 0.3:
            in_half = (start[name] * (1 - alpha) + end[name] * alpha).double()
            coarse.append(not torch.allclose(in_half, exact, rtol=1.001 * 2**-8, atol=1e-6))
        if alpha in (0.0, 1.0):
            assert torch.equal(own, (start if alpha == 0 else end)[name])
    assert not coarse or any(coarse), "the control is as exact"


def test_what_has_not_moved_stays_bit_for_bit():
    model = tiny_model()
    before = tensors(model)
    average_with_start(model, before, 0.3)
    after = tensors(model)
    assert all(torch.equal(after[name], one) for name, one in before.items())
    drifted = [not torch.equal(one * (1 - 0.3) + one * 0.3, one) for one in before.values()]
    assert any(drifted), "the control is exact, too"


def test_statistics_of_batch_normalisation_and_tied_weights_are_averaged_once():
    model = Normalized()
    start = tensors(model) | {"last.weight": model.first.weight.detach().clone()}
    end = tensors(moved(model))
    model.norm.num_batches_tracked += 7
    average_with_start(model, start, 0.25)
    for name in ("norm.running_mean", "norm.running_var", "first.weight"):
        torch.testing.assert_close(tensors(model)[name], 0.75 * start[name] + 0.25 * end[name])
    assert model.last.weight is model.first.weight
    assert int(model.norm.num_batches_tracked) == 7


def test_what_start_does_not_name_stays():
    model = moved(tiny_model())
    before = tensors(model)
    average_with_start(model, {"classifier.bias": torch.zeros(2)}, 0.5)
    changed = [name for name, one in tensors(model).items() if not torch.equal(one, before[name])]
    assert changed == ["classifier.bias"]
    assert all(weight.requires_grad for weight in model.parameters())


def test_weights_of_another_model_are_refused_and_nothing_is_changed():
    model = moved(tiny_model())
    before, start = tensors(model), tensors(tiny_model())
    for changes, said in (
        ({"classifier.bias": torch.zeros(3)}, r"wise .*classifier\.bias has \[3\], and the model \[2\]"),
        ({"other": torch.zeros(3)}, "no such weight"),
    ):
        with pytest.raises(PluginError, match=said):
            average_with_start(model, start | changes, 0.5)
    with pytest.raises(PluginError, match=r"wise=1\.5"):
        average_with_start(model, start, 1.5)
    assert all(torch.equal(one, before[name]) for name, one in tensors(model).items())


def averaged_in_shards(rank, folder):
    shard_on_cpus()
    trainer = build(folder / "run", **RUN | SHARDED | {"max_grad_norm": 0.0})
    trainer.train()
    end = weights(trainer)
    start = tensors(tiny_model(seed=5))
    average_with_start(trainer.model, start, 0.3)
    after = weights(trainer)
    differences = [(after[name] - (0.7 * start[name] + 0.3 * one)).abs().max().item() for name, one in end.items()]
    return {
        "sharded": sum(hasattr(one, "full_tensor") for one in trainer.model.parameters()),
        "largest": max(differences),
        "moved": max((after[name] - one).abs().max().item() for name, one in end.items()),
    }


def test_sharded_weights_are_averaged_shard_by_shard(on_both_ranks):
    for result in on_both_ranks(averaged_in_shards):
        assert result["sharded"] > 40
        assert result["largest"] < 1e-6 < result["moved"]
