"""Techniques on models that FSDP2 has cut up over two ranks: what two that hold the whole compute, and exact resume."""

import contextlib
import os

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
    "adaptive-lr": [CUTTING],
    "four": [CUTTING, "transfer:strategy=gradual", "task:early_stopping_patience=none", "sequential:wise=0.5"],
}


def setting_for(name):
    """What the techniques need besides the kit's own classifier."""
    from hf_ft_plugins.testing import example_of

    if name in ("text2text", "causal"):
        from transformers import DataCollatorForSeq2Seq

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
        tokenizer = setting()["processing_class"]
        collated = {"data_collator": DataCollatorForSeq2Seq(tokenizer)} if name == "causal" else {}
        return joined | collated | {"model": tiny_llama(), "processing_class": tokenizer}
    known = {"four": "task", "multitask": "multitask", "behavioral": "behavioral"}
    return example_of(known[name]).setting() if name in known else {}


def run(folder, name, pieces, *, plain=False, **changes):
    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.testing import tiny_model

    setting = changes.pop("setting", None) or setting_for(name)
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


def loaded(folder, *specs, setting="", cut_up=True, **changes):
    from transformers.distributed import DistributedConfig

    from hf_ft_plugins import with_plugins

    cut = {"distributed_config": DistributedConfig(fsdp_size=2)} if cut_up else {}
    given = setting_for(setting)
    given["trainer_class"] = with_plugins(given.get("trainer_class", host_class()))
    given["model"] = type(model_of(setting)).from_pretrained(folder.parent / "model", **cut)
    return build(folder, *specs, **({"max_steps": 8, "gradient_accumulation_steps": 1} | given | changes))


def model_of(setting):
    from hf_ft_plugins.testing import tiny_model

    model = setting_for(setting).get("model")
    return tiny_model() if model is None else model


def save_model(rank, folder, setting=""):
    import torch.distributed as dist

    dist.init_process_group("gloo")
    if rank == 0:
        model_of(setting).save_pretrained(folder / "model")
    dist.barrier()


def loaded_in_pieces(rank, folder, specs, setting):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    save_model(rank, folder, setting)
    best = {"setting": setting, "load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_steps": 2}
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
    "multitask": SPECS["multitask"],
    "text2text": SPECS["text2text"],
    "behavioral": SPECS["behavioral"],
    "peft, no head": ["peft:r=4"],
}


@pytest.mark.slow
@resumes_on_two_ranks
@pytest.mark.parametrize("name", LOADED)
def test_a_model_that_from_pretrained_has_cut_up_resumes_exactly(name, on_both_ranks, tmp_path):
    setting = "causal" if name == "peft, no head" else name
    for result in on_both_ranks(loaded_in_pieces, LOADED[name], setting):
        assert result == {"resumed": 0.0, "whole": True, "control": False}
    if "peft" not in name:
        assert type(model_of(setting)).from_pretrained(tmp_path / "saved")


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


# ---- other numbers of ranks ----


def run_dealt(folder, name, **changes):
    """As many rows a step, in the same order, on whatever number of ranks; a model without dropout, whose loss is by
    token: stock's of a classifier is twice as large on two ranks.
    """
    dealt = {"per_device_train_batch_size": 4 // int(os.environ["WORLD_SIZE"]), "train_sampling_strategy": "sequential"}
    return run(folder, name, True, plain=True, setting=setting_for("causal"), **dealt, **changes)


def trained_straight_and_cut(rank, folder, name):
    import torch

    from hf_ft_plugins.testing import InterruptAt, Interruption

    shard_on_cpus()
    straight = run_dealt(folder / "straight", name)
    straight.train()
    with contextlib.suppress(Interruption):
        run_dealt(folder / "cut", name, callbacks=[InterruptAt(5)]).train()
    kept = weights_of(straight)
    if rank == 0:
        torch.save(kept, folder / "weights.pt")
    return {"steps": straight.state.global_step}


def goes_on(rank, folder, name):
    import torch

    shard_on_cpus()
    again = run_dealt(folder / "cut", name)
    again.train(resume_from_checkpoint=True)
    control = run_dealt(folder / "control", name, learning_rate=0.2)
    control.train()
    expected = torch.load(folder / "weights.pt", weights_only=True)
    return {
        "steps": again.state.global_step,
        "apart": apart(expected, weights_of(again)),
        "control": apart(expected, weights_of(control)),
    }


@pytest.mark.slow
@resumes_on_two_ranks
@pytest.mark.parametrize("name", ["transfer, gradual", "peft", "layer-removal", "adaptive-lr"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_with_pieces_goes_on_alike(before, after, name, on_ranks):
    on_ranks(before, trained_straight_and_cut, name)
    for result in on_ranks(after, goes_on, name):
        assert result["steps"] == 8
        assert result["apart"] < CLOSE
        assert result["control"] > 100 * CLOSE


def cut_off_whole(rank, folder):
    from hf_ft_plugins.testing import InterruptAt, Interruption, tiny_model

    whole = {"model": tiny_model(), "max_steps": 8}
    with contextlib.suppress(Interruption):
        build(folder / "cut", callbacks=[InterruptAt(5)], **whole).train()
    return {"done": True}


def refused_to_go_on(rank, folder):
    from hf_ft_plugins.errors import CheckpointError
    from hf_ft_plugins.testing import tiny_model

    shard_on_cpus()
    model = tiny_model()
    try:
        build(folder / "cut", model=model, max_steps=8, **sharded_as(model)).train(resume_from_checkpoint=True)
    except CheckpointError as error:
        return str(error)


@pytest.mark.slow
@resumes_on_two_ranks
def test_a_checkpoint_of_whole_weights_is_refused_on_each_rank_with_the_reason(on_both_ranks):
    on_both_ranks(cut_off_whole)
    for message in on_both_ranks(refused_to_go_on):
        assert "was saved without FSDP" in message


def test_a_checkpoint_of_deepspeed_is_not_loaded_without_its_optimizer(tmp_path):
    from hf_ft_plugins.errors import CheckpointError
    from hf_ft_plugins.testing import tiny_trainer

    trainer = tiny_trainer(tmp_path, trainer_class=host_class())
    checkpoint = tmp_path / "checkpoint-8"
    (checkpoint / "global_step8").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="was saved by DeepSpeed, and this run is without it"):
        trainer._load_from_checkpoint(str(checkpoint))
    # As stock Trainer writes it, whatever else lies there.
    (checkpoint / "optimizer.pt").touch()
    trainer._refuse_of_another_kind(checkpoint)


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
