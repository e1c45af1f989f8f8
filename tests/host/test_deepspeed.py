"""Techniques under DeepSpeed's ZeRO-2 and ZeRO-3 on two gloo ranks: what DDP computes, and exact resume.

Needs `pip install deepspeed`, which is no dependency of the tests: it builds a part of itself when it is first used.
"""

import contextlib
import os
from importlib.util import find_spec

import pytest

from tests.host.test_shards import apart, setting_for
from tests.two_processes import build, decisions, host_class, resumes_on_two_ranks

CLOSE = 1e-6
SPECS = {
    "none": [],
    "adaptive-lr": ["adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"],
    "transfer": ["transfer:strategy=full,layer_decay=0.5"],
    "task": ["task:early_stopping_patience=none,calibrate=false"],
    "peft": ["peft:r=4,loraplus_ratio=2.0"],
    "multitask": ["multitask"],
    "text2text": ["text2text:target_tokens=64,parts=1"],
    "behavioral": ["behavioral:share_prefixes=off"],
}
# Under ZeRO-3 multitask is refused.
STAGES = [(stage, name) for stage in (2, 3) for name in SPECS if (stage, name) != (3, "multitask")]
REFUSALS = {
    "adaptive-lr:controller=rollback": "controller=plateau",
    "transfer": "strategy=full",
    "layer-removal:number=1": "FSDP2",
    "low-memory:algorithm=adalomo": "FSDP2",
    "sequential:wise=0.5": "Leave it out",
    "sequential:l2sp=0.1": "FSDP2",
}

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs pip install deepspeed")


def zero(stage):
    """`TrainingArguments` of ZeRO; its kernels of Adam would have to be built."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    auto = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    own = {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    return {"deepspeed": {"zero_optimization": {"stage": stage}, **own, **dict.fromkeys(auto, "auto")}}


def run(folder, name, **changes):
    from hf_ft_plugins import with_plugins

    setting = setting_for(name)
    setting["trainer_class"] = with_plugins(setting.get("trainer_class", host_class()))
    return build(folder, *SPECS[name], **({"max_steps": 8, "optim": "sgd", "learning_rate": 0.1} | setting | changes))


def weights_of(trainer):
    named = dict(trainer.model.named_parameters())
    with contextlib.ExitStack() as gathered:
        if any(hasattr(one, "ds_id") for one in named.values()):
            from deepspeed import zero as cut_up

            gathered.enter_context(cut_up.GatheredParameters(list(named.values())))
        return {name: one.detach().double().clone() for name, one in named.items()}


def under_zero(rank, folder, name, stage):
    import torch

    from hf_ft_plugins.testing import InterruptAt, Interruption

    straight = run(folder / "straight", name, **zero(stage))
    straight.train()
    with contextlib.suppress(Interruption):
        run(folder / "cut", name, callbacks=[InterruptAt(5)], **zero(stage)).train()
    again = run(folder / "cut", name, **zero(stage))
    again.train(resume_from_checkpoint=True)
    found = weights_of(straight)
    torch.save(found, folder / f"rank-{rank}.pt")
    return {
        "resumed": apart(found, weights_of(again)),
        "steps": again.state.global_step,
        "decisions": [entry["adaptive_lr/action"] for entry in decisions(straight.state.log_history)],
    }


def whole(rank, folder, name):
    import torch

    trainer = run(folder / "whole", name)
    trainer.train()
    control = run(folder / "control", name, learning_rate=0.2)
    control.train()
    found = torch.load(folder / f"rank-{rank}.pt", weights_only=True)
    return {"apart": apart(found, weights_of(trainer)), "control": apart(found, weights_of(control))}


@pytest.mark.slow
@needs_deepspeed
@resumes_on_two_ranks
@pytest.mark.parametrize(("stage", "name"), STAGES)
def test_a_run_computes_what_ddp_does_and_resumes_exactly(stage, name, on_both_ranks):
    decided = ["cut", "cut"] if name == "adaptive-lr" else []
    for result in on_both_ranks(under_zero, name, stage):
        assert result == {"resumed": 0.0, "steps": 8, "decisions": decided}
    for result in on_both_ranks(whole, name):
        assert result["apart"] < CLOSE
        assert result["control"] > 100 * CLOSE


def refused(rank, folder, spec, stage):
    from hf_ft_plugins.errors import PluginError

    try:
        build(folder, spec, **setting_for(spec), **zero(stage))
    except PluginError as error:
        return str(error)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("spec", REFUSALS)
def test_what_cannot_be_right_is_refused_by_name_with_the_mend(spec, on_both_ranks):
    for message in on_both_ranks(refused, spec, 2):
        assert message.startswith(spec.partition(":")[0])
        assert "DeepSpeed" in message
        assert REFUSALS[spec] in message


@pytest.mark.slow
@needs_deepspeed
def test_heads_that_a_batch_does_not_use_are_refused_under_zero_3(on_both_ranks):
    for message in on_both_ranks(refused, "multitask", 3):
        assert message.startswith("multitask: ZeRO-3")
