"""What peft leaves to the training loop: LoRA+'s rates, AdaLoRA's ranks, EVA's beginning."""

import pytest
import torch

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import get_peft_model  # noqa: E402

from hf_ft_plugins import lr_scale  # noqa: E402
from hf_ft_plugins.errors import PluginError  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    AdaLoraCallback,
    Peft,
    find_targets,
    loraplus,
)
from hf_ft_plugins.testing import tiny_model, tiny_trainer  # noqa: E402
from tests.techniques.peft.small_models import adapted, logits, small_llama, texts  # noqa: E402


def test_loraplus_changes_the_rate_of_b_alone(tmp_path):
    model = adapted(Peft(r=4), tmp_path)
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for ratio in (16.0, None):
        for weight in learning.values():
            weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD(list(learning.values()), lr=1e-3)
        if ratio is not None:
            loraplus(optimizer, model, ratio)
        before = {name: weight.detach().clone() for name, weight in learning.items()}
        optimizer.step()
        for name, weight in learning.items():
            rate = 1e-3 * (ratio if ratio is not None and "lora_B" in name else 1.0)
            torch.testing.assert_close(before[name] - weight.detach(), torch.full_like(weight, rate))


def test_the_method_loraplus_does_so_in_trainer_and_the_schedule_multiplies_it(tmp_path):
    trainer = tiny_trainer(tmp_path, "peft:method=loraplus,r=4", max_steps=4)
    trainer.train()
    rates = {
        name: rate
        for group, rate in zip(trainer.optimizer.param_groups, lr_scale.effective_lrs(trainer.optimizer), strict=True)
        for name, weight in trainer.model.named_parameters()
        if any(weight is one for one in group["params"])
    }
    assert all(group["params"] for group in trainer.optimizer.param_groups)
    plain = {rate for name, rate in rates.items() if "lora_B" not in name}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {16 * rate for rate in plain}


def adalora_run(folder, *techniques, **changes):
    trainer = tiny_trainer(folder, *techniques, max_steps=20, eval_strategy="no", save_steps=100, **changes)
    trainer.train()
    values = {name: int((weight != 0).sum()) for name, weight in trainer.model.named_parameters() if "lora_E" in name}
    return trainer, values


def test_adalora_moves_ranks_to_its_budget_and_the_stock_trainer_does_not(tmp_path):
    trainer, ranks = adalora_run(tmp_path / "ours", Peft(method="adalora", r=4))
    assert sum(ranks.values()) == 4 * len(ranks)
    assert len(set(ranks.values())) > 1, "every layer has as many"
    config = peft.AdaLoraConfig(
        target_r=4, init_r=6, total_step=20, target_modules=list(find_targets(tiny_model()).modules)
    )
    stock, untouched = adalora_run(tmp_path / "stock", model=get_peft_model(tiny_model(), config))
    assert set(untouched.values()) == {6}
    for folder, one in (("ours", trainer), ("stock", stock)):
        one.model.save_pretrained(tmp_path / folder / "adapter")
    ours, theirs = (
        peft.load_peft_weights(str(tmp_path / folder / "adapter"), device="cpu") for folder in ("ours", "stock")
    )
    assert sum(tensor.numel() for tensor in ours.values()) < sum(tensor.numel() for tensor in theirs.values())


def test_the_callback_alone_does_so_in_a_stock_trainer(tmp_path):
    config = peft.AdaLoraConfig(
        target_r=4, init_r=6, total_step=20, target_modules=list(find_targets(tiny_model()).modules)
    )
    model = get_peft_model(tiny_model(), config)
    _, ranks = adalora_run(tmp_path, model=model, callbacks=[AdaLoraCallback()])
    assert sum(ranks.values()) == 4 * len(ranks)


def test_too_short_a_run_for_adalora_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path, Peft(method="adalora", r=4), max_steps=1)
    with pytest.raises(PluginError, match="Train for longer"):
        trainer.train()


def test_eva_begins_along_the_inputs_and_lora_does_not(tmp_path):
    def explained(method):
        trainer = tiny_trainer(tmp_path / method, Peft(method=method, r=4), model=small_llama(), train_dataset=texts())
        layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
        seen = []
        hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(0, 1)))
        logits(trainer.model)
        hook.remove()
        basis = torch.linalg.qr(layer.lora_A["default"].weight.detach().T)[0]
        return float((seen[0] @ basis).norm() ** 2 / seen[0].norm() ** 2) / basis.shape[1]

    assert explained("eva") > 3 * explained("lora")
