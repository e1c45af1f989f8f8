"""The estimate of memory: against a real run in a process of its own, and against what is known of its parts."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaConfig, MobileNetV1Config, TrainingArguments

from hf_ft_plugins import Technique, registry
from hf_ft_plugins.errors import OptionError, PluginError
from hf_ft_plugins.memory import estimate as memory
from hf_ft_plugins.memory.estimate import estimate_memory, refuse_over_budget
from hf_ft_plugins.registry import resolve

MIB = 2**20
SIZE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 6}

REAL = """
import sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.set_num_threads(1)
rows = [{"input_ids": torch.randint(5, 900, (128,)), "labels": torch.randint(5, 900, (128,))} for _ in range(24)]

def train(layers):
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_hidden_layers=layers,
                         vocab_size=2048)
    args = TrainingArguments(sys.argv[1], per_device_train_batch_size=8, max_steps=3, use_cpu=True, report_to="none",
                             save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    Trainer(LlamaForCausalLM(config), args, train_dataset=rows).train()

def status(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))

train(1)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
train(6)
print("peak", 1024 * (status("VmHWM") - before))
"""


def llama(**changes):
    return LlamaConfig(**{**SIZE, "vocab_size": 2048, "architectures": ["LlamaForCausalLM"], **changes})


def args(tmp_path, **changes):
    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"} | changes
    return TrainingArguments(str(tmp_path), **settings)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.slow
def test_the_estimate_is_the_peak_of_a_real_run(tmp_path):
    # glibc keeps what is freed in small blocks; that is its own affair.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    real = int(re.search(r"peak (\d+)", done.stdout).group(1))
    estimate = estimate_memory(llama(), args(tmp_path), length=128)
    assert estimate.peak == pytest.approx(real, rel=0.1)
    # Control: the rule of thumb is not.
    assert estimate.weights_only < 0.5 * real


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_and_three_layers_tell_of_six(checkpointing, tmp_path, monkeypatch):
    settings = args(tmp_path, gradient_checkpointing=checkpointing)
    told = estimate_memory(llama(), settings, length=64)
    monkeypatch.setattr(memory, "MORE", 6)
    whole = estimate_memory(llama(), settings, length=64)
    assert told.peak == pytest.approx(whole.peak, rel=0.01)
    assert told.weights_only == whole.weights_only


def test_the_parts_are_what_is_known_of_them(tmp_path):
    config = llama()
    parameters = sum(one.numel() for one in _model(config).parameters())
    adamw, sgd = (estimate_memory(config, args(tmp_path, optim=name), length=64) for name in ("adamw_torch", "sgd"))
    assert adamw.weights == pytest.approx(4 * parameters, rel=1e-3)
    assert adamw.optimizer == pytest.approx(8 * parameters, rel=1e-3)
    assert sgd.optimizer < MIB
    checkpointing = estimate_memory(config, args(tmp_path, gradient_checkpointing=True), length=64)
    assert checkpointing.activations < adamw.activations
    assert estimate_memory(config, args(tmp_path), length=128).activations > 1.8 * adamw.activations
    # Without activations to speak of, the step is the peak: weights, gradients, and two states.
    step = estimate_memory(config, args(tmp_path, per_device_train_batch_size=1), length=4)
    assert step.peak >= 16 * parameters


def test_adapters_train_their_own_parameters_alone_and_quantised_layers_shrink(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted(model):
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))

    full = estimate_memory(llama(), args(tmp_path), length=64)
    lora = estimate_memory(llama(), args(tmp_path), length=64, change=adapted)
    nf4 = estimate_memory(llama(), args(tmp_path), length=64, change=adapted, quant="nf4")
    assert lora.optimizer < 0.05 * full.optimizer
    linear = sum(
        module.weight.numel()
        for name, module in _model(llama()).named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    assert lora.weights - nf4.weights == pytest.approx((4 - 0.5625) * linear, rel=1e-6)


def _model(config):
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_gpt2s_transposed_layers_are_quantised_too(tmp_path):
    config = GPT2Config(n_embd=128, n_layer=6, n_head=4, vocab_size=512, architectures=["GPT2LMHeadModel"])
    whole = estimate_memory(config, args(tmp_path), length=16).weights
    blocks = 6 * 12 * 128 * 128
    saved = whole - estimate_memory(config, args(tmp_path), length=16, techniques=[resolve("peft:quant=nf4")]).weights
    # The adapter adds a little.
    assert 0.8 * blocks * (4 - 0.5625) < saved < blocks * (4 - 0.5625)


def test_techniques_say_what_they_change(tmp_path):
    peft = pytest.importorskip("peft")
    settings = args(tmp_path, per_device_train_batch_size=1)

    def estimated(*techniques, config=None, **changes):
        listed = map(resolve, techniques)
        return estimate_memory(config or llama(num_hidden_layers=3), settings, length=64, techniques=listed, **changes)

    plain, adapter, nf4 = estimated(), estimated("peft:r=4"), estimated("peft:r=4,quant=nf4")
    by_hand = peft.get_peft_model(_model(llama(num_hidden_layers=3)), peft.LoraConfig(r=4, target_modules="all-linear"))
    learning = sum(weight.numel() for weight in by_hand.parameters() if weight.requires_grad)
    assert adapter.optimizer == pytest.approx(8 * learning, rel=0.01)
    assert (nf4.phase, nf4.peak) == ("loading", plain.weights), "all of it is there before it is quantised"
    assert estimated(removed=1).peak == pytest.approx(estimated(config=llama(num_hidden_layers=2)).peak, rel=1e-6)
    with pytest.raises(OptionError, match="removed=3 of 3 layers"):
        estimated(removed=3)


def test_encoders_and_images(tmp_path):
    bert = BertConfig(**SIZE, vocab_size=500, architectures=["BertForSequenceClassification"])
    assert estimate_memory(bert, args(tmp_path), length=32).peak > 0
    images = MobileNetV1Config(
        image_size=64, depth_multiplier=0.25, architectures=["MobileNetV1ForImageClassification"]
    )
    assert estimate_memory(images, args(tmp_path), length=0).activations > 0


def test_a_budget_names_the_cheapest_change_that_fits(tmp_path):
    settings = args(tmp_path)

    def estimated(changed, technique=None):
        listed = [] if technique is None else [resolve(technique)]
        return estimate_memory(llama(num_hidden_layers=2), changed, length=128, techniques=listed)

    estimate = estimated(settings)
    refuse_over_budget(estimate, estimate.peak, estimated, settings)
    with pytest.raises(PluginError, match=r"by: per_device_train_batch_size=1, gradient_accumulation_steps=8\.$"):
        refuse_over_budget(estimate, estimate.peak - 1, estimated, settings)
    settings.per_device_train_batch_size = 1
    settings.gradient_checkpointing = True
    alone = estimated(settings)
    adapter = estimated(settings, "peft")
    assert adapter.peak < estimated(args(tmp_path, per_device_train_batch_size=1, optim="adafactor")).peak
    with pytest.raises(PluginError, match=r"by: --with low-memory:algorithm=adalomo\.$"):
        refuse_over_budget(alone, adapter.peak, estimated, settings)

    def without_that(changed, technique=None):
        return None if str(technique).startswith("low-memory") else estimated(changed, technique)

    with pytest.raises(PluginError, match=r"by: --with peft\.$"):
        refuse_over_budget(alone, adapter.peak, without_that, settings)
    with pytest.raises(PluginError, match=r"The least that was found is .* by: --with peft:quant="):
        refuse_over_budget(alone, MIB, without_that, settings)
    settings.per_device_train_batch_size = 8
    assert settings.per_device_train_batch_size == 8, "the script's arguments stay as they are"


def test_what_is_not_known_is_named(tmp_path):
    with pytest.raises(OptionError, match="no quantisation 'nf3'; there are nf4, int8"):
        estimate_memory(llama(), args(tmp_path), length=8, quant="nf3")
    with pytest.raises(OptionError, match="galore_adamw"):
        estimate_memory(llama(), args(tmp_path, optim="galore_adamw", optim_target_modules=["q"]), length=8)


def test_the_command(tmp_path):
    llama().save_pretrained(tmp_path)
    from typer.testing import CliRunner

    from hf_ft_plugins.cli.app import app

    given = ["check", "--memory", "--model", str(tmp_path), "--length", "64"]
    shown = CliRunner().invoke(app, [*given, "--arg", "optim=sgd"])
    assert shown.exit_code == 0, shown.output
    assert "GiB at the peak" in shown.output
    # The first change of all fits; that others are tried is tested above.
    many = [*given, "--arg", "per_device_train_batch_size=64"]
    over = CliRunner().invoke(app, [*many, "--budget", "0.1"])
    assert isinstance(over.exception, PluginError)
    assert "by: per_device_train_batch_size=1, gradient_accumulation_steps=64" in str(over.exception)
    assert isinstance(CliRunner().invoke(app, ["check", "--memory"]).exception, PluginError)
    named = CliRunner().invoke(app, [*given, "--with", "low-memory", "--budget", "0.0001"])
    assert isinstance(named.exception, PluginError)
    assert "--with low-memory" not in str(named.exception)


@dataclass(frozen=True, kw_only=True)
class Frozen(Technique):
    name: ClassVar[str] = "frozen"
    summary: ClassVar[str] = "trains the head alone"

    @classmethod
    def memory_savings(cls):
        return ("frozen",)


def test_over_budget_a_third_partys_technique_is_tried_and_one_that_cannot_be_imported_is_not(tmp_path, monkeypatch):
    names = {"broken": "NotThere", "frozen": "Frozen"}
    found = [
        registry.Offer(name, "theirs", "1.0", EntryPoint(name, f"{__name__}:{cls}", registry.GROUP))
        for name, cls in names.items()
    ]
    monkeypatch.setattr(memory, "offers", lambda: found)
    settings = args(tmp_path, per_device_train_batch_size=1, gradient_checkpointing=True)
    large = estimate_memory(llama(num_hidden_layers=2), settings, length=128)
    small = replace(large, peak=10 * MIB)
    with pytest.raises(PluginError, match=r"by: --with frozen\.$"):
        refuse_over_budget(
            large, 20 * MIB, lambda _, technique=None: small if technique == "frozen" else large, settings
        )
