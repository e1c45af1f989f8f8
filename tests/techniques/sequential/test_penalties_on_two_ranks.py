"""Penalties on two ranks that each hold the whole model, or shards of it (FSDP2, on CPUs)."""

import hashlib

import pytest
from safetensors.torch import load_file, save_file

from tests.two_processes import resumes_on_two_ranks, shard_on_cpus, sharded_by

CHANGES = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "max_steps": 6,
    "logging_steps": 1,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "max_grad_norm": 0.0,
}
TWO = {"ddp_backend": "gloo"}
SHARDED = sharded_by("LlamaDecoderLayer")
PULLED = {"l2sp": 0.5, "ewc": 0.2, "fisher_rows": 6}


def trained(folder, penalties=PULLED, **changes):
    from tests.techniques.sequential.penalty_runs import alone

    trainer = alone(folder, penalties=penalties, **CHANGES | changes)
    trainer.train()
    return trainer


def digest(named):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in named.values())).hexdigest()


def logged(trainer):
    return [
        [entry[f"sequential/{name}"] for name in ("l2sp", "ewc")]
        for entry in trainer.state.log_history
        if "sequential/l2sp" in entry
    ]


# ---- whole models ----


def on_replicas(rank, folder):
    from tests.techniques.sequential.penalty_runs import language_model, weights

    # Half the rows on each rank: the same batches as those of one process.
    changes = TWO | {"per_device_train_batch_size": 2}
    # Ranks begin with weights of their own, and have to agree on one.
    trainer = trained(folder / "two", model=language_model(seed=rank).double(), **changes)
    if rank == 0:
        save_file(weights(trainer), folder / "two.safetensors")
    return {"digest": digest(weights(trainer)), "logged": logged(trainer)}


def test_two_ranks_learn_what_one_process_does(on_both_ranks, tmp_path):
    from hf_ft_plugins.techniques.sequential.start_weights import read_start, start_folder
    from hf_ft_plugins.testing import difference
    from tests.techniques.sequential.penalty_runs import language_model, largest, weights

    first, second = on_both_ranks(on_replicas)
    assert first == second
    two = load_file(tmp_path / "two.safetensors")
    one = trained(tmp_path / "one", model=language_model().double(), per_device_train_batch_size=4)
    assert largest(weights(one), two) < 1e-10
    assert logged(one) == [pytest.approx(values, rel=1e-9) for values in first["logged"]]
    start = {name: tensor.detach() for name, tensor in language_model().double().named_parameters()}
    assert difference(read_start(start_folder(one.args)), start) is None
    assert difference(read_start(tmp_path / "two" / "sequential_start"), start) is None
    free = trained(tmp_path / "free", {}, model=language_model().double(), per_device_train_batch_size=4)
    assert largest(weights(free), two) > 1e-3


# ---- shards ----


def on_shards(rank, folder):
    from tests.techniques.sequential.penalty_runs import weights

    shard_on_cpus()
    trainer = trained(folder / "shards", **SHARDED)
    named = weights(trainer)
    if rank == 0:
        save_file(named, folder / "shards.safetensors")
    return {
        "kind": str(trainer.accelerator.distributed_type.value),
        "digest": digest(named),
        "logged": logged(trainer),
    }


def resumed_on_shards(rank, folder):
    from hf_ft_plugins.testing import difference
    from tests.techniques.sequential.penalty_runs import alone, language_model, weights

    shard_on_cpus()
    # An optimizer with state: FSDP2 cannot load one without.
    changes = CHANGES | SHARDED | {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 3}
    straight = alone(folder, penalties=PULLED, **changes)
    straight.train()
    again = alone(folder, penalties=PULLED, model=language_model(seed=3), **changes)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return {
        "difference": difference(weights(straight), weights(again)),
        "logged": [logged(straight), logged(again)],
        "steps": again.state.global_step,
    }


def replicas_to_compare(rank, folder):
    from tests.techniques.sequential.penalty_runs import largest, weights

    trainer, free = trained(folder / "replicas", **TWO), trained(folder / "free", {}, **TWO)
    sharded = load_file(folder / "shards.safetensors")
    names = ("start", "fisher")
    return {
        "largest": largest(weights(trainer), sharded),
        "free": largest(weights(free), sharded),
        "logged": logged(trainer),
        "files": [
            largest(*(load_file(folder / run / "sequential_start" / f"{name}.safetensors") for run in RUNS))
            for name in names
        ],
    }


RUNS = ("shards", "replicas")


def test_shards_learn_what_whole_models_do(on_both_ranks):
    first, second = on_both_ranks(on_shards)
    assert first["kind"] == "FSDP"
    assert first == second
    for result in on_both_ranks(replicas_to_compare):
        assert result["largest"] < 1e-6
        assert result["free"] > 1e-3
        assert result["files"][0] == 0.0
        assert result["files"][1] < 1e-6
        assert first["logged"] == [pytest.approx(values, rel=1e-4) for values in result["logged"]]


@resumes_on_two_ranks
def test_shards_are_resumed_exactly(on_both_ranks):
    for result in on_both_ranks(resumed_on_shards):
        assert result["difference"] is None
        assert result["logged"][0] == result["logged"][1]
        assert result["steps"] == 6


# ---- adapters ----


def orthogonal(rank, folder, sharded):
    from tests.techniques.sequential.lora_models import adapted
    from tests.techniques.sequential.penalty_runs import language_model, largest, weights

    if sharded:
        shard_on_cpus()
    earlier = folder / f"earlier-{rank}"
    adapted(seed=1, model=language_model(), targets=["q_proj"]).save_pretrained(earlier)
    runs = []
    for olora in (0.5, 0.0):
        penalties = {"olora": olora, "earlier_adapters": [earlier]}
        model = adapted(model=language_model(), targets=["q_proj"], lora_dropout=0.0)
        runs.append(trained(folder / "run", penalties, model=model, **(SHARDED if sharded else TWO)))
    named = weights(runs[0])
    matrices = {name.replace("_fsdp", ""): one for name, one in named.items() if "lora_" in name}
    if not sharded and rank == 0:
        save_file(matrices, folder / "replicas.safetensors")
    return {
        "logged": [entry["sequential/olora"] for entry in runs[0].state.log_history if "sequential/olora" in entry],
        "free": largest(named, weights(runs[1])),
        "largest": largest(matrices, load_file(folder / "replicas.safetensors")) if sharded else 0.0,
    }


def test_adapters_in_shards_are_kept_orthogonal_as_whole_ones(on_both_ranks):
    whole = on_both_ranks(orthogonal, False)
    shards = on_both_ranks(orthogonal, True)
    assert shards[0] == shards[1]
    assert shards[0]["largest"] < 1e-6
    assert shards[0]["free"] > 1e-3
    assert shards[0]["logged"] == pytest.approx(whole[0]["logged"], rel=1e-4)


def consolidated(rank, folder):
    from hf_ft_plugins.errors import PluginError
    from tests.techniques.sequential.lora_models import adapted
    from tests.techniques.sequential.penalty_runs import language_model

    shard_on_cpus()
    try:
        trained(folder, {"ewc": 0.5}, model=adapted(model=language_model(), targets=["q_proj"]), **SHARDED)
    except PluginError as error:
        return str(error)
    return None


def test_elastic_weights_of_an_adapter_in_shards_are_refused(on_both_ranks):
    for error in on_both_ranks(consolidated):
        assert "sequential: ewc with LoRA needs whole matrices" in error
