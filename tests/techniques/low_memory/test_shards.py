"""Steps within the backward pass on two ranks that each hold a shard of every tensor (FSDP2), on CPUs."""

import hashlib

import pytest
from safetensors.torch import load_file, save_file

from hf_ft_plugins.techniques.low_memory.algorithms import ALGORITHMS
from tests.two_processes import build, shard_on_cpus, sharded_by

RUN = {
    "gradient_accumulation_steps": 1,
    "max_steps": 4,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
}
SHARDED = sharded_by("BertLayer")


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


def weights(trainer):
    shards = {name: one.detach() for name, one in trainer.model.named_parameters()}
    return {name: (one.full_tensor() if hasattr(one, "full_tensor") else one).clone() for name, one in shards.items()}


def digest(trainer):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights(trainer).values())).hexdigest()


def largest_difference(first, second):
    others = weights(second)
    return max((one.double() - others[name].double()).abs().max().item() for name, one in weights(first).items())


def gradients_counted():
    """A callback that counts the gradients which the backward pass has left."""
    from transformers import TrainerCallback

    class Counts(TrainerCallback):
        left = 0

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.left += sum(parameter.grad is not None for parameter in model.parameters())

    return Counts()


# ---- sharded by accelerate ----


def saved_and_resumed(rank, folder, technique, other, changes):
    """A run that is saved in the middle, its second half again from there, and a run of `other` that is not saved."""
    from hf_ft_plugins.testing import difference

    shard_on_cpus()
    changes = RUN | SHARDED | changes
    counts = gradients_counted()
    saving = {"save_strategy": "steps", "save_steps": 2}
    saved = build(folder / "saved", technique, callbacks=[counts], **changes | saving)
    saved.train()
    resumed = build(folder / "resumed", technique, **changes)
    resumed.train(resume_from_checkpoint=str(folder / "saved" / "checkpoint-2"))
    compared = build(folder / "compared", other, **changes)
    compared.train()
    whole = weights(saved)
    if rank == 0:
        save_file(whole, folder / "sharded.safetensors")
    return {
        "resumed": difference(weights(saved), weights(resumed)),
        "compared": difference(weights(saved), weights(compared)),
        "largest": largest_difference(saved, compared),
        "weights": digest(saved),
        "steps": [saved.state.global_step, resumed.state.global_step],
        "norms": [norms(saved), norms(compared)],
        "sharded": str(saved.accelerator.distributed_type.value),
        "gradients": counts.left,
    }


def against_replicas(rank, folder, technique, changes):
    """The largest difference between the weights of `saved_and_resumed` and those of ranks that hold whole tensors."""
    from hf_ft_plugins.testing import tiny_model

    replicas = build(folder / "replicas", technique, **RUN | changes)
    replicas.train()
    sharded = load_file(folder / "sharded.safetensors")
    begun = dict(tiny_model().named_parameters())
    # But for the biases of keys: their gradients are nothing but rounding, which some algorithms blow up to a step.
    whole = {name: one for name, one in weights(replicas).items() if not name.endswith("key.bias")}
    return {
        "largest": max((one - sharded[name]).abs().max().item() for name, one in whole.items()),
        "moved": max((one - begun[name]).abs().max().item() for name, one in sharded.items()),
    }


@pytest.mark.parametrize("algorithm", [name for name, one in ALGORITHMS.items() if one.sharded is None])
def test_shards_are_stepped_within_the_backward_pass_as_after_it_and_resumed(on_both_ranks, algorithm):
    fused, unfused = (f"low-memory:algorithm={algorithm},fused={fused}" for fused in ("true", "false"))
    first, second = on_both_ranks(saved_and_resumed, fused, unfused, {"max_grad_norm": 0.0})
    assert first["sharded"] == "FSDP"
    assert first["gradients"] == 0, "the backward pass has left gradients"
    assert first["steps"] == [4, 4]
    assert first["weights"] == second["weights"]
    for result in (first, second):
        assert result["compared"] is None
        assert result["resumed"] is None
    # Also where what is computed of a tensor depends on all of its shards.
    for result in on_both_ranks(against_replicas, fused, {"max_grad_norm": 0.0}):
        assert result["largest"] <= 1e-6 < result["moved"]


def test_the_norm_that_clips_is_that_of_whole_tensors(on_both_ranks):
    ours, stock = "low-memory:algorithm=lomo,clip=two_pass", "low-memory:algorithm=lomo,fused=false"
    first, second = on_both_ranks(saved_and_resumed, ours, stock, {"max_grad_norm": 0.1, "learning_rate": 0.1})
    assert first["weights"] == second["weights"]
    assert first["largest"] < 1e-6
    assert first["norms"][0] == pytest.approx(first["norms"][1], rel=1e-5)
    assert min(first["norms"][0]) > 0.1, "nothing was clipped"
    assert first["resumed"] is None


def test_the_norm_of_the_last_step_outlives_a_checkpoint(on_both_ranks):
    # An optimizer without state is stepped with gradients of 0 when it is saved.
    technique = "low-memory:algorithm=lomo,clip=lagged"
    first, second = on_both_ranks(saved_and_resumed, technique, technique, {"max_grad_norm": 0.1})
    assert first["weights"] == second["weights"]
    assert first["compared"] is None, "the save has changed what comes after it"
    assert first["resumed"] is None
    assert min(first["norms"][0]) > 0.1, "nothing was clipped"


# ---- sharded when it is loaded ----


def loaded_as_shards(rank, folder):
    import torch
    import torch.distributed as dist
    from transformers import BertForSequenceClassification
    from transformers.distributed import DistributedConfig

    from hf_ft_plugins.testing import difference, tiny_model

    dist.init_process_group("gloo")
    if rank == 0:
        tiny_model().save_pretrained(folder / "model")
    dist.barrier()
    runs = []
    for technique in ("low-memory", "low-memory:fused=false"):
        model = BertForSequenceClassification.from_pretrained(
            folder / "model", distributed_config=DistributedConfig(fsdp_size=2)
        )
        # Not sharded, like an adapter that is put on afterwards: Trainer averages its gradients by hooks.
        torch.manual_seed(rank)
        model.classifier = torch.nn.Linear(16, 2)
        trainer = build(folder / "run", technique, model=model, max_grad_norm=0.0, **RUN)
        trainer.train()
        runs.append(trainer)
    return {
        "difference": difference(weights(runs[0]), weights(runs[1])),
        "weights": digest(runs[0]),
        "shards": sum(hasattr(one, "full_tensor") for one in runs[0].model.parameters()),
    }


def test_a_model_that_is_loaded_as_shards_is_stepped_within_the_backward_pass(on_both_ranks):
    first, second = on_both_ranks(loaded_as_shards)
    assert first["shards"] > 40
    assert first["weights"] == second["weights"]
    assert first["difference"] is None
    assert second["difference"] is None


# ---- optimizers without state ----


def test_sharded_parameters_without_state_are_marked_when_saved_and_have_none_when_loaded():
    import torch

    from hf_ft_plugins.shards import NO_STATE, drop_marks, mark_missing_state
    from hf_ft_plugins.testing import difference

    learns, rests, whole = (torch.nn.Parameter(torch.ones(size)) for size in (3, 2, 1))
    for parameter in (learns, rests):
        parameter.full_tensor = lambda: None  # what makes a tensor a sharded one here
    optimizer = torch.optim.AdamW([learns, rests, whole])
    mark_missing_state(optimizer)
    learns.grad = torch.ones(3)
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved["state"]) == [0, 1]
    assert list(saved["state"][1]) == [NO_STATE]
    before = {name: tensor.clone() for name, tensor in optimizer.state[learns].items()}
    optimizer.load_state_dict(saved)
    drop_marks(optimizer)
    assert list(optimizer.state) == [learns]
    assert difference(dict(optimizer.state[learns]), before) is None
