"""TRL trainers of tiny models, and their losses and gradients: set-ups of behavioral's tests."""

import copy

import pytest
import torch

trl = pytest.importorskip("trl")
pytest.importorskip("datasets")

from transformers import AutoModelForCausalLM  # noqa: E402

from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import (  # noqa: E402
    tiny_setting,
)

EXTRAS = ("behavior_weight", "behavior_eps")

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 384}

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}

SAME = {"rtol": 1e-5, "atol": 1e-6}


def tiny_causal(kind, **changes):
    from transformers import AutoConfig

    settings = {
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 384, "n_positions": 128},
        "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 384},
        "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 384, "state_size": 4},
    }.get(kind, {**SMALL, **HEADS})
    torch.manual_seed(0)
    attention = {} if kind == "mamba" else {"attn_implementation": changes.pop("attn_implementation", "sdpa")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(settings | changes)), **attention)


def built(folder, *technique, contract="dpo", model=None, **changes):
    setting = tiny_setting(contract, per_device_train_batch_size=4, eval_strategy="no", **changes)
    if model is not None:
        setting |= {"model": model, "ref_model": copy.deepcopy(model)}
    if setting.get("ref_model") is not None:
        # A reference that is the model would make every log-ratio 0, and hide a wrong one.
        torch.manual_seed(5)
        for parameter in setting["ref_model"].parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return tiny_trainer(folder, *technique, **setting)


def a_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def loss_and_gradients(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach(), gradients


def assert_same_gradients(ours, expected):
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda text, n=name: n + text
        )


def pair_scores(trainer, batch):
    """Log-ratios of chosen and rejected texts from a plain forward pass, [B] each, and completions' lengths."""

    def log_probabilities(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        scored = batch["completion_mask"][:, 1:].bool()
        tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        return (tokens * scored).sum(1)

    with torch.no_grad():
        reference = log_probabilities(trainer.ref_model)
    return log_probabilities(trainer.model), reference


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}
