"""A small Llama with an adapter, and what it learns and writes: set-ups of peft's tests."""

import pytest
import torch
from transformers import TrainingArguments

peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")


from hf_ft_plugins.host.adapter import with_adapter  # noqa: E402
from hf_ft_plugins.techniques.peft import (  # noqa: E402
    Peft,
)
from hf_ft_plugins.testing import tiny_trainer  # noqa: E402
from hf_ft_plugins.testing.examples.behavioral import tiny_llama  # noqa: E402

IDS = torch.randint(3, 380, (4, 24), generator=torch.Generator().manual_seed(1))


def small_llama(**changes):
    size = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny_llama(**(size | changes))


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **changes)


def adapted(technique, folder, model=None):
    model = small_llama() if model is None else model
    return with_adapter(model, technique.ft_adapter(model, arguments(folder)), 0, "peft")


def learn(model, steps=5):
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=5e-3)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits[:, -IDS.shape[1] :]


def exported(folder, **options):
    setting = {"model": small_llama(), "train_dataset": texts(), "eval_strategy": "no", "save_strategy": "no"}
    trainer = tiny_trainer(folder, Peft(export="both", **options), **setting)
    trainer.train()
    return trainer


def texts():
    return [{"input_ids": row, "labels": row} for row in IDS.repeat(6, 1)]
