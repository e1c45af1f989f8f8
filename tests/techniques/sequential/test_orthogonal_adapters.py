"""O-LoRA: the gradient against autograd of the paper's sum, directions that come apart, adapters that do not fit."""

import pytest
import torch

pytest.importorskip("peft")

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.sequential.orthogonal_adapters import OrthogonalAdapters, read_earlier
from hf_ft_plugins.techniques.sequential.start_weights import moving_parameters
from tests.techniques.sequential.lora_models import adapted, base_model, peft


def saved(folder, **changes):
    adapted(**changes).save_pretrained(folder)
    return folder


def test_the_gradient_and_the_value_are_those_of_the_penalty(tmp_path):
    folders = [saved(tmp_path / "first", seed=1), saved(tmp_path / "second", seed=2, r=4)]
    model = adapted().double()
    named = moving_parameters(model)
    earlier = {name: one.double() for name, one in read_earlier(model, folders, 0.5, begins=True).items()}
    penalty = OrthogonalAdapters(0.5, earlier)
    for one in named.values():
        one.grad = torch.ones_like(one)
    penalty.add_gradients(named)
    value = torch.zeros((), dtype=torch.float64)
    for seed, rank in ((1, 2), (2, 4)):
        for name, one in adapted(seed=seed, r=rank).named_parameters():
            if "lora_A" in name:
                value = value + 0.5 * (one.detach().double() @ named[name].T).square().sum()
    learned = [name for name in named if "lora_A" in name]
    for name, expected in zip(learned, torch.autograd.grad(value, [named[name] for name in learned]), strict=True):
        assert torch.allclose(named[name].grad - 1, expected, rtol=0, atol=1e-12)
        assert expected.abs().max() > 1e-3
    assert all(torch.equal(one.grad, torch.ones_like(one)) for name, one in named.items() if "lora_B" in name)
    assert penalty.value(named) == pytest.approx(value.item(), rel=1e-12)


def test_directions_become_orthogonal(tmp_path):
    model = adapted()
    named = moving_parameters(model)
    penalty = OrthogonalAdapters(0.5, read_earlier(model, [saved(tmp_path, seed=1)], 0.5, begins=True))
    before = penalty.value(named)
    optimizer = torch.optim.SGD(named.values(), lr=0.3)
    for _ in range(100):
        for one in named.values():
            one.grad = torch.zeros_like(one)
        penalty.add_gradients(named)
        optimizer.step()
    assert penalty.value(named) < 1e-4 * before


def test_a_layer_that_earlier_stages_did_not_train_is_free(tmp_path, caplog):
    model = adapted()
    earlier = read_earlier(model, [saved(tmp_path, seed=1, targets=["q_proj"])], 0.5, begins=True)
    assert earlier
    assert all("q_proj" in name for name in earlier)
    assert "down_proj" in caplog.text


def test_what_does_not_fit_is_refused_with_the_mend(tmp_path):
    model, folder = adapted(), saved(tmp_path / "first")
    with pytest.raises(PluginError, match=r"olora=0.5 wants a new adapter.*Merge"):
        read_earlier(model, [folder], 0.5, begins=True)
    assert read_earlier(model, [folder], 0.5, begins=False)
    with pytest.raises(PluginError, match=r"there is no adapter_model.safetensors in .*Keep the adapters"):
        read_earlier(model, [tmp_path], 0.5, begins=True)
    with pytest.raises(PluginError, match=r"none of the layers of the adapter in .*Train the same layers"):
        read_earlier(model, [saved(tmp_path / "other", targets=["k_proj"])], 0.5, begins=True)
    with pytest.raises(PluginError, match=r"the model has no adapter. Add peft, or set olora=0"):
        read_earlier(base_model(), [folder], 0.5, begins=True)
    other = peft.get_peft_model(base_model(), peft.VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(PluginError, match=r"olora=0.5 .*method vera"):
        read_earlier(other, [folder], 0.5, begins=True)
