"""Techniques on models that FSDP2 has cut up over two ranks: what two that hold the whole compute, and exact resume."""

import contextlib

import pytest

from tests.two_processes import build, host_class, resumes_on_two_ranks, shard_on_cpus, sharded_as

CLOSE = 1e-6
PLAIN_SPECS = {"low-memory": ["low-memory:algorithm=lomo"]}
# Adam steps as far with a gradient of nearly 0, whose last bit depends on the order of sums, as with any.
PLAIN = {"optim": "sgd", "learning_rate": 0.1}
CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"
GRADUAL = "transfer:strategy=gradual,layer_decay=0.5"
# `benchmarks.endurance` tries each alone and each pair.
SPECS = {
    "transfer, gradual": [GRADUAL],
    "transfer, lpft": ["transfer:strategy=lpft,cache_features=never,unfrozen_at=0.4"],
    "low-memory": ["low-memory:algorithm=adalomo"],
    "peft": ["peft:r=4,loraplus_ratio=2.0"],
    "layer-removal": ["layer-removal:number=1,protect_first=0,protect_last=0,max_degradation=none,max_repetition=none"],
    "multitask": ["multitask"],
    "text2text": ["text2text:target_tokens=64,parts=1"],
    "behavioral": ["behavioral"],
    "four": [CUTTING, "transfer:strategy=gradual", "task:early_stopping_patience=none", "sequential:wise=0.5"],
}


def setting_for(name):
    """What the techniques need besides the kit's own classifier."""
    from hf_ft_plugins.testing import example_of

    if name == "text2text":
        from hf_ft_plugins.testing.examples.behavioral import tiny_llama
        from hf_ft_plugins.testing.examples.text2text import setting

        joined = {
            part: [
                {
                    "input_ids": row["input_ids"] + row["labels"],
                    "labels": [-100] * len(row["input_ids"]) + row["labels"],
                }
                for row in rows
            ]
            for part, rows in setting().items()
            if part.endswith("dataset")
        }
        return joined | {"model": tiny_llama(), "processing_class": setting()["processing_class"]}
    known = {"four": "task", "multitask": "multitask", "behavioral": "behavioral"}
    return example_of(known[name]).setting() if name in known else {}


def run(folder, name, pieces, *, plain=False, **changes):
    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.testing import tiny_model

    setting = setting_for(name)
    setting.setdefault("model", tiny_model())
    setting["trainer_class"] = with_plugins(setting.get("trainer_class", host_class()))
    arguments = {"max_steps": 8, "gradient_accumulation_steps": 1, **(sharded_as(setting["model"]) if pieces else {})}
    specs = PLAIN_SPECS.get(name, SPECS[name]) if plain else SPECS[name]
    return build(folder, *specs, **(arguments | setting | (PLAIN if plain else {}) | changes))


def weights_of(trainer):
    from hf_ft_plugins.shards import put_in_pieces, whole_tensor

    put_in_pieces(trainer.model)
    return {name: whole_tensor(one.detach()).double() for name, one in trainer.model.named_parameters()}


def apart(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def in_pieces(rank, folder, name):
    import torch

    from hf_ft_plugins.testing import InterruptAt, Interruption

    shard_on_cpus()
    straight = run(folder / "straight", name, True)
    straight.train()
    with contextlib.suppress(Interruption):
        run(folder / "cut", name, True, callbacks=[InterruptAt(5)]).train()
    again = run(folder / "cut", name, True)
    again.train(resume_from_checkpoint=True)
    found = weights_of(straight)
    plain = run(folder / "plain", name, True, plain=True)
    plain.train()
    kept = weights_of(plain)
    if rank == 0:
        torch.save(kept, folder / "weights.pt")
    pieces = any(hasattr(one, "placements") for one in straight.model.parameters())
    return {"pieces": pieces, "resumed": apart(found, weights_of(again)), "steps": again.state.global_step}


def whole(rank, folder, name):
    import torch

    trainer = run(folder / "whole", name, False, plain=True)
    trainer.train()
    control = run(folder / "control", name, False, plain=True, learning_rate=0.2)
    control.train()
    found = torch.load(folder / "weights.pt", weights_only=True)
    return {"apart": apart(found, weights_of(trainer)), "control": apart(found, weights_of(control))}


@pytest.mark.slow
@resumes_on_two_ranks
@pytest.mark.parametrize("name", SPECS)
def test_in_pieces_a_run_computes_the_same_and_resumes_exactly(name, on_both_ranks):
    for result in on_both_ranks(in_pieces, name):
        assert result == {"pieces": True, "resumed": 0.0, "steps": 8}
    for result in on_both_ranks(whole, name):
        assert result["apart"] < CLOSE
        assert result["control"] > 100 * CLOSE


# ---- cut up by from_pretrained ----


def loaded(folder, *specs, cut_up=True, **changes):
    from transformers import AutoModelForSequenceClassification
    from transformers.distributed import DistributedConfig

    cut = {"distributed_config": DistributedConfig(fsdp_size=2)} if cut_up else {}
    model = AutoModelForSequenceClassification.from_pretrained(folder.parent / "model", **cut)
    settings = {"max_steps": 8, "gradient_accumulation_steps": 1, **changes}
    return build(folder, *specs, model=model, **settings)


def save_model(rank, folder):
    import torch.distributed as dist

    from hf_ft_plugins.testing import tiny_model

    dist.init_process_group("gloo")
    if rank == 0:
        tiny_model().save_pretrained(folder / "model")
    dist.barrier()


def loaded_in_pieces(rank, folder, specs):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    save_model(rank, folder)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_steps": 2}
    straight = loaded(folder / "straight", *specs, **best)
    straight.train()
    with contextlib.suppress(Interruption):
        loaded(folder / "cut", *specs, callbacks=[InterruptAt(5)], **best).train()
    again = loaded(folder / "cut", *specs, **best)
    again.train(resume_from_checkpoint=True)
    whole = loaded(folder / "whole", *specs, cut_up=False, **best)
    whole.train()
    control = loaded(folder / "control", *specs, cut_up=False, **best, seed=8)
    control.train()
    found = weights_of(straight)
    again.save_model(folder / "saved")
    return {
        "resumed": apart(found, weights_of(again)),
        "whole": apart(found, weights_of(whole)) < 1e-4,
        "control": apart(found, weights_of(control)) < 1e-4,
    }


LOADED = {
    "none": [],
    "low-memory": SPECS["low-memory"],
    "three": [CUTTING, GRADUAL, "sequential:wise=0.5"],
}


@pytest.mark.slow
@resumes_on_two_ranks
@pytest.mark.parametrize("name", LOADED)
def test_a_model_that_from_pretrained_has_cut_up_resumes_exactly(name, on_both_ranks, tmp_path):
    from transformers import AutoModelForSequenceClassification

    for result in on_both_ranks(loaded_in_pieces, LOADED[name]):
        assert result == {"resumed": 0.0, "whole": True, "control": False}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")


def cut_off_in_pieces(rank, folder):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    save_model(rank, folder)
    with contextlib.suppress(Interruption):
        loaded(folder / "cut", callbacks=[InterruptAt(5)], per_device_train_batch_size=2).train()
    straight = loaded(folder / "straight", per_device_train_batch_size=2)
    straight.train()
    straight.save_model(folder / "saved")
    return {"done": True}


@pytest.mark.slow
@resumes_on_two_ranks
def test_one_rank_goes_on_where_two_with_pieces_were_cut_off(on_both_ranks, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from hf_ft_plugins.testing import tiny_trainer

    on_both_ranks(cut_off_in_pieces)
    # As many rows a step; the order of the data is that of one rank, though, so steps are not compared.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    settings = {"max_steps": 8, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}
    again = tiny_trainer(tmp_path / "cut", model=model, trainer_class=host_class(), **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    straight = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    start = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    parted = apart(weights_of(again), {name: one.double() for name, one in straight.named_parameters()})
    moved = apart(weights_of(again), {name: one.double() for name, one in start.named_parameters()})
    assert parted < moved / 3


def refused_in_pieces(rank, folder, spec):
    from hf_ft_plugins.errors import PluginError

    save_model(rank, folder)
    try:
        loaded(folder / "run", spec)
    except PluginError as error:
        return str(error)


@resumes_on_two_ranks
@pytest.mark.parametrize("name", ["peft", "layer-removal"])
def test_what_needs_the_whole_model_says_how_to_shard_it(name, on_both_ranks):
    for message in on_both_ranks(refused_in_pieces, *SPECS[name]):
        assert message.startswith(f"{name}: ")
        assert "TrainingArguments(fsdp=True)" in message
