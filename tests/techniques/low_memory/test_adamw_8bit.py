"""algorithm=adamw-8bit: bitsandbytes' optimizer with the script's groups, and embeddings in 32 bits."""

import pytest
import torch

from hf_ft_plugins.techniques.low_memory.optimizers.adamw_8bit import adamw_8bit
from hf_ft_plugins.techniques.low_memory.technique import LowMemory
from hf_ft_plugins.testing import difference, outcome, resumed, tiny_trainer

pytest.importorskip("bitsandbytes")

SPEC = "low-memory:algorithm=adamw-8bit"


class Embedder(torch.nn.Module):
    def __init__(self, embeds=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Embedding(100, 64) if embeds else torch.nn.Linear(100, 64)
        self.second = torch.nn.Linear(64, 128)

    def forward(self, tokens):
        return self.second(self.first(tokens))


def stepped(model, tokens):
    optimizer = adamw_8bit(model, [{"params": list(model.parameters()), "lr": 1e-3}])
    model(tokens).square().mean().backward()
    optimizer.step()
    return optimizer


def test_embeddings_are_kept_in_32_bits_and_other_matrices_in_8():
    model = Embedder()
    optimizer = stepped(model, torch.arange(8))
    assert optimizer.state[model.first.weight]["state1"].dtype is torch.float32
    assert optimizer.state[model.second.weight]["state1"].dtype is torch.uint8


def test_what_one_optimizer_keeps_in_32_bits_is_forgotten_by_the_next():
    stepped(Embedder(), torch.arange(8))
    model = Embedder(embeds=False)
    optimizer = stepped(model, torch.ones(2, 100))
    assert optimizer.state[model.first.weight]["state1"].dtype is torch.uint8


def test_the_groups_are_those_of_the_script(tmp_path):
    trainer = tiny_trainer(tmp_path, SPEC, max_steps=2, weight_decay=0.1, adam_beta2=0.95, adam_epsilon=1e-6)
    trainer.train()
    inner = trainer.optimizer.optimizer.optimizer
    assert type(inner).__name__ == "AdamW8bit"
    assert [group["weight_decay"] for group in inner.param_groups] == [0.1, 0.0]
    assert {tuple(group["betas"]) for group in inner.param_groups} == {(0.9, 0.95)}
    assert {group["eps"] for group in inner.param_groups} == {1e-6}


def test_within_the_backward_pass_is_after_it(tmp_path):
    results = []
    for fused in ("true", "false"):
        spec = f"{SPEC},fused={fused}"
        trainer = tiny_trainer(tmp_path / fused, spec, max_grad_norm=0.0, gradient_accumulation_steps=1)
        trainer.train()
        results.append(outcome(trainer)["weights"])
    assert difference(*results) is None


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    whole = tiny_trainer(tmp_path / "whole", SPEC)
    whole.train()
    assert difference(outcome(resumed(tmp_path / "cut", SPEC)), outcome(whole)) is None


def test_its_package_is_named():
    assert "bitsandbytes" in LowMemory(algorithm="adamw-8bit").packages()
    assert LowMemory().packages() == {}
