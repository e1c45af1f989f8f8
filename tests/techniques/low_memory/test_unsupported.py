"""What cannot be stepped within the backward pass is refused, by name and with what to do instead."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.low_memory import algorithms, unsupported
from hf_ft_plugins.techniques.low_memory.algorithms import Algorithm
from hf_ft_plugins.testing import difference, tiny_model, tiny_trainer

ALONE = {"gradient_accumulation_steps": 1, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}


def trainer_like(args=(), state=(), accelerator=(), **changes):
    """What is looked at of a trainer on one device, with `changes`."""
    plain = {"fp16": False, "n_gpu": 1, "optim": "adamw_torch"}
    plain |= {"ddp_find_unused_parameters": None, "ddp_static_graph": None}
    single = {"use_distributed": False, "distributed_type": DistributedType.NO, "parallelism_config": None}
    single |= {"ddp_handler": None, "state": SimpleNamespace(**dict(state))}
    trainer = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False, "model": torch.nn.Linear(2, 2)}
    trainer |= {"is_distributed_loading_by_transformers": False}
    trainer |= {"args": SimpleNamespace(**plain | dict(args))}
    trainer |= {"accelerator": SimpleNamespace(**single | dict(accelerator))}
    return SimpleNamespace(**trainer | changes)


def refuse(trainer, *, algorithm="script", fused=True, in_backward=True):
    unsupported.refuse_unsupported(trainer, algorithm=algorithm, fused=fused, in_backward=in_backward)


REPLICAS = {"use_distributed": True, "distributed_type": DistributedType.MULTI_GPU}
FSDP = {"is_fsdp_enabled": True}
REFUSED = {
    "fp16": (trainer_like({"fp16": True}), "fp16=True scales the loss.*Use bf16=True, or fused=false"),
    "deepspeed": (trainer_like(is_deepspeed_enabled=True), "DeepSpeed collects.*ZeRO's own offloading, or FSDP2"),
    "FSDP1": (
        trainer_like(state={"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, **FSDP),
        r"FSDP1 joins parameters.*fsdp_config=\{'version': 2\}, or fused=false",
    ),
    "DataParallel": (trainer_like({"n_gpu": 2}), "DataParallel keeps copies.*torchrun"),
    "layerwise": (
        trainer_like({"optim": "galore_adamw_layerwise"}),
        "optim=.*layerwise' steps.*algorithm=",
    ),
    "lomo": (trainer_like({"optim": "adalomo"}), "optim='adalomo' steps within.*algorithm="),
    "unused": (
        trainer_like({"ddp_find_unused_parameters": True}, accelerator=REPLICAS),
        "ddp_find_unused_parameters=True.*Leave it out, or set fused=false",
    ),
    "static graph": (
        trainer_like({"ddp_static_graph": True}, accelerator=REPLICAS),
        "ddp_static_graph=True.*Leave it out, or set fused=false",
    ),
    "comm hook": (
        trainer_like(accelerator=REPLICAS | {"ddp_handler": SimpleNamespace(comm_hook="fp16")}),
        "comm_hook=fp16 changes.*Leave it out, or set fused=false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_stepped_within_the_backward_pass_is_refused_unless_it_is_not_fused(case):
    trainer, message = REFUSED[case]
    with pytest.raises(PluginError, match=f"^low-memory: {message}"):
        refuse(trainer)
    refuse(trainer, fused=False, in_backward=False)


@pytest.mark.parametrize("case", ["unused", "static graph", "comm hook"])
def test_what_ddp_reduces_is_not_refused_where_gradients_are_kept(case):
    assert refuse(REFUSED[case][0], in_backward=False) is None


@pytest.mark.parametrize(
    "trainer",
    [
        trainer_like(),
        trainer_like(accelerator=REPLICAS),
        trainer_like({"ddp_find_unused_parameters": True}),
        trainer_like(accelerator=REPLICAS | {"ddp_handler": SimpleNamespace(comm_hook="no")}),
        trainer_like(state={"fsdp_plugin": SimpleNamespace(fsdp_version=2)}, **FSDP),
    ],
    ids=["one device", "replicas", "one device, unused", "replicas, no hook", "FSDP2"],
)
def test_what_can_be_is_not_refused(trainer):
    assert refuse(trainer) is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changes", [FSDP, {"is_distributed_loading_by_transformers": True}], ids=str)
def test_an_algorithm_that_needs_whole_tensors_is_refused_where_they_are_sharded(monkeypatch, changes, fused):
    whole = Algorithm(None, clip="none", sharded="normalises whole rows")
    monkeypatch.setitem(algorithms.ALGORITHMS, "whole", whole)
    state = {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}
    with pytest.raises(PluginError, match=r"algorithm=whole normalises whole rows, and FSDP cuts tensors up. Use"):
        refuse(trainer_like(state=state, **changes), algorithm="whole", fused=fused)
    refuse(trainer_like(), algorithm="whole", fused=fused)


@pytest.mark.parametrize("fused", ["true", "false"])
def test_sparse_gradients_are_refused_when_the_trainer_is_built(tmp_path, fused):
    model = tiny_model()
    model.bert.embeddings.word_embeddings.sparse = True
    with pytest.raises(PluginError, match=r"bert.embeddings.word_embeddings has sparse gradients.*sparse=False"):
        tiny_trainer(tmp_path, f"low-memory:fused={fused}", model=model)


def test_accumulation_is_refused_when_the_trainer_is_built_where_it_is_to_be(tmp_path):
    with pytest.raises(PluginError, match="accumulation=refuse, and gradient_accumulation_steps=2"):
        tiny_trainer(tmp_path, "low-memory:accumulation=refuse")
    tiny_trainer(tmp_path, "low-memory:accumulation=refuse", gradient_accumulation_steps=1)


def shared_layers():
    """One layer, used three times, as ALBERT's is."""
    model = tiny_model()
    layers = model.bert.encoder.layer
    layers[1] = layers[2] = layers[0]
    return model


def checkpointed(folder, *techniques, reentrant):
    return tiny_trainer(
        folder,
        *techniques,
        model=shared_layers(),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        max_grad_norm=0.0,
        **ALONE,
    )


def test_layers_used_several_times_under_reentrant_checkpointing_end_the_first_step_in_an_error(tmp_path):
    trainer = checkpointed(tmp_path, "low-memory", reentrant=True)
    with pytest.raises(PluginError) as error:
        trainer.train()
    assert trainer.state.global_step == 0
    assert "the gradient of bert.encoder.layer.0." in str(error.value)
    assert "came twice in one step" in str(error.value)
    assert "gradient_checkpointing_kwargs={'use_reentrant': False}" in str(error.value)


def test_layers_used_several_times_under_other_checkpointing_are_stepped_as_after_the_backward_pass(tmp_path):
    ours = checkpointed(tmp_path / "ours", "low-memory", reentrant=False)
    ours.train()
    stock = checkpointed(tmp_path / "stock", reentrant=False)
    stock.train()
    assert difference(dict(ours.model.state_dict()), dict(stock.model.state_dict())) is None
