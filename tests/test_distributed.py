"""Two processes train one model: they hold the same weights, make the same decisions, and never wait for each other.

The launchers run a script on two gloo processes; everything else runs on two processes forked from one that has
already imported transformers, since importing it takes longer than the training.
"""

import contextlib
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import transformers

SCRIPT = Path(__file__).parent / "scripts" / "train_tiny.py"
CUTTING = "adaptive-lr:patience=1,min_delta=1e9,max_cuts=2,stop=false"
RANKS = 2
PATIENCE = 60  # seconds; a run takes about three


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- launchers ----

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", RANKS, "--master_port"],
    # The option is called after GPUs but starts as many processes on a machine without one; `--cpu` starts only one.
    "accelerate": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        RANKS,
        "--num_machines",
        1,
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
    ],
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What both ranks of each launcher left behind, and those of a launch without a technique."""
    folder = tmp_path_factory.mktemp("launched")

    def launch(name, launcher, command):
        options = ["--output_dir", folder / name, "--ddp_backend", "gloo", "--max_steps", "8"]
        process = subprocess.run(
            [sys.executable, "-m", *map(str, [*LAUNCHERS[launcher], free_port(), *command, SCRIPT, *options])],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-4000:]
        results = [json.loads(file.read_text()) for file in sorted((folder / name).glob("result-*.json"))]
        assert [(result["rank"], result["world_size"]) for result in results] == [(0, RANKS), (1, RANKS)]
        return results

    hosted = ["-m", "hf_ft_plugins", "run", "--with", CUTTING]
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {
            "torchrun": pool.submit(launch, "torchrun", "torchrun", hosted),
            "accelerate": pool.submit(launch, "accelerate", "accelerate", hosted),
            "stock": pool.submit(launch, "stock", "torchrun", []),
        }
        return {name: run.result() for name, run in runs.items()}


def decisions(log):
    told = [{key: value for key, value in entry.items() if key.startswith("adaptive_lr/")} for entry in log]
    return [entry for entry in told if entry]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_ranks_hold_equal_weights_by_equal_decisions(launched, launcher):
    first, second = launched[launcher]
    assert first["weights"] == second["weights"]
    assert decisions(first["log"]) == decisions(second["log"])
    assert [entry["adaptive_lr/action"] for entry in decisions(first["log"])] == ["cut", "cut"]
    assert first["weights"] != launched["stock"][0]["weights"], "the technique does nothing in this run"


@pytest.mark.slow
def test_both_launchers_train_the_same(launched):
    assert launched["torchrun"][0]["weights"] == launched["accelerate"][0]["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_ranks_see_all_examples_once_an_epoch_and_share_none(launched, launcher):
    # The loader reads ahead, so only the first of the two epochs has a known end.
    first, second = (result["seen"][:16] for result in launched[launcher])
    assert sorted(first + second) == list(range(32))
    assert not set(first) & set(second)


# ---- two forked ranks ----


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_ft_plugins.testing"])
    return context


@pytest.fixture
def on_both_ranks(processes, tmp_path):
    """Runs `scenario(rank, folder, *arguments)` on two ranks and returns both results; fails where one never ends."""

    def run(scenario, *arguments):
        port = free_port()
        ranks = [
            processes.Process(target=_be_rank, args=(rank, port, tmp_path, scenario, arguments), daemon=True)
            for rank in range(RANKS)
        ]
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + PATIENCE
        for rank in ranks:
            rank.join(max(0, deadline - time.monotonic()))
        waiting = [number for number, rank in enumerate(ranks) if rank.is_alive()]
        for rank in ranks:
            rank.kill()
        files = [tmp_path / f"rank-{number}.json" for number in range(RANKS)]
        results = [json.loads(file.read_text()) if file.exists() else None for file in files]
        assert not waiting, f"rank {waiting} still waits after {PATIENCE} s; results: {results}"
        errors = [result["error"] if result else "it died" for result in results if not result or "error" in result]
        assert not errors, "\n".join(errors)
        return results

    return run


def _be_rank(rank, port, folder, scenario, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        result = scenario(rank, folder, *arguments)
    except Exception:
        result = {"error": traceback.format_exc()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(result))
    # Without the interpreter's own end, which can wait for a rank that is gone.
    os._exit(0)


def trained(trainer):
    import hashlib

    import torch

    weights = torch.cat([tensor.flatten().double() for tensor in trainer.model.state_dict().values()])
    return {
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "finite": bool(weights.isfinite().all()),
        "steps": trainer.state.global_step,
        "decisions": decisions(trainer.state.log_history),
        "evaluations": [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "saved": sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*")),
    }


def host_class():
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    return with_plugins(Trainer)


def build(folder, *techniques, **changes):
    from hf_ft_plugins.testing import tiny_trainer

    host = changes.pop("trainer_class", host_class())
    return tiny_trainer(folder, *techniques, trainer_class=host, ddp_backend="gloo", **changes)


def sets_flag(event, flag, step):
    """A callback that sets a control flag at one event of one step, as a user's own callback might."""
    from transformers import TrainerCallback

    def act(self, args, state, control, **kwargs):
        if state.global_step >= step and not getattr(self, "done", False):
            self.done = True
            setattr(control, flag, True)
            return control
        return None

    return type("SetsFlag", (TrainerCallback,), {event: act})()


def set_on_one_rank(rank, folder, event, flag):
    callbacks = [sets_flag(event, flag, 0 if event == "on_train_begin" else 5)] if rank == 1 else []
    trainer = build(folder / "run", CUTTING, callbacks=callbacks, save_strategy="steps", save_steps=4)
    trainer.train()
    return trained(trainer)


STOP_EVENTS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
)


@pytest.mark.parametrize("event", STOP_EVENTS)
def test_stop_that_one_rank_decides_stops_both_at_the_same_step(on_both_ranks, event):
    first, second = on_both_ranks(set_on_one_rank, event, "should_training_stop")
    assert first == second
    assert first["steps"] < 14, "nothing was stopped"


@pytest.mark.parametrize("event", ["on_substep_end", "on_step_end"])
def test_end_of_epoch_that_one_rank_decides_ends_it_on_both(on_both_ranks, event):
    first, second = on_both_ranks(set_on_one_rank, event, "should_epoch_stop")
    assert first == second


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_evaluation_that_one_rank_asks_for_happens_on_both(on_both_ranks, event):
    first, second = on_both_ranks(set_on_one_rank, event, "should_evaluate")
    assert first == second
    assert set(first["evaluations"]) > {3, 6, 9, 12}, "nobody evaluated more than planned"


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_save_that_one_rank_asks_for_happens_on_both(on_both_ranks, event):
    first, second = on_both_ranks(set_on_one_rank, event, "should_save")
    assert first == second
    assert len(first["saved"]) > len({4, 8, 12, 14}), "nobody saved more than planned"


# ---- what differs between ranks ----


def own_metric_on_each_rank(rank, folder, changes):
    values = iter([0.5, 0.6, 0.4, 0.3, 0.2] if rank == 0 else [0.5, 0.1, 0.9, 0.95, 0.99])
    trainer = build(
        folder / "run",
        "adaptive-lr:patience=1,metric=score,max_cuts=1",
        compute_metrics=lambda prediction: {"score": next(values)},
        metric_for_best_model="score",
        greater_is_better=True,
        **changes,
    )
    trainer.train()
    scores = [entry["eval_score"] for entry in trainer.state.log_history if "eval_score" in entry]
    return trained(trainer) | {"scores": scores}


@pytest.mark.parametrize(
    "changes", [{}, {"save_strategy": "best"}, {"load_best_model_at_end": True, "save_steps": 3}], ids=str
)
def test_metric_that_differs_between_ranks_leads_to_one_decision(on_both_ranks, changes):
    first, second = on_both_ranks(own_metric_on_each_rank, changes)
    assert first.pop("scores") != second.pop("scores"), "the ranks saw the same metric"
    assert first == second
    assert [entry["adaptive_lr/action"] for entry in first["decisions"]] == ["cut", "stop"]


def nan_loss_on_one_rank(rank, folder, technique):
    from transformers import Trainer

    from hf_ft_plugins import with_plugins

    class Unlucky(Trainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * math.nan if rank == 1 and self.state.global_step == 5 and self.model.training else loss

    trainer = build(folder / "run", *technique, trainer_class=with_plugins(Unlucky), save_strategy="no")
    trainer.train()
    return trained(trainer)


def test_gradients_that_one_ranks_loss_spoils_are_dropped_on_both(on_both_ranks):
    first, second = on_both_ranks(nan_loss_on_one_rank, ["adaptive-lr"])
    assert first == second
    assert first["finite"]
    assert [entry["adaptive_lr/step"] for entry in first["decisions"] if entry["adaptive_lr/action"] == "drop"] == [5]
    without, _ = on_both_ranks(nan_loss_on_one_rank, [])
    assert not without["finite"], "this run has nothing to guard against"


def nan_shard_on_one_rank(rank, folder):
    from transformers import Trainer, TrainerCallback

    from hf_ft_plugins import AdaptiveLRCallback

    class SpoilsItsShard(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            if rank == 1 and state.global_step == 5:
                next(model.parameters()).grad.fill_(math.nan)

    # Without the host, where the callback looks at the gradients itself, not at the norm of them all.
    callbacks = [SpoilsItsShard(), AdaptiveLRCallback()]
    trainer = build(folder / "run", trainer_class=Trainer, callbacks=callbacks, save_strategy="no")
    trainer.train()
    return trained(trainer)


def test_gradients_that_are_bad_on_one_rank_only_are_dropped_on_both(on_both_ranks):
    first, second = on_both_ranks(nan_shard_on_one_rank)
    assert first == second
    assert first["finite"]
    assert [entry["adaptive_lr/step"] for entry in first["decisions"] if entry["adaptive_lr/action"] == "drop"] == [5]


# ---- resume ----


def resumed_and_straight(rank, folder, controller):
    from transformers import Trainer

    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.testing import difference, outcome, resumed

    technique = f"adaptive-lr:controller={controller},patience=1,min_delta=1e9,max_cuts=2,stop=false"
    straight = build(folder / "straight", technique)
    straight.train()
    without = build(folder / "without")
    without.train()
    again = resumed(folder / "resumed", technique, trainer_class=with_plugins(Trainer), ddp_backend="gloo")
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(without)["weights"]),
        "trained": trained(again) | {"saved": None},
    }


def can_resume_on_two_ranks():
    return tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)


@pytest.mark.skipif(
    not can_resume_on_two_ranks(),
    reason="this transformers cannot resume on two ranks without a GPU: it loads the optimizer to cpu:0",
)
@pytest.mark.parametrize("controller", ["plateau", "rollback"])
def test_resumed_run_on_two_ranks_equals_uninterrupted_run(on_both_ranks, controller):
    first, second = on_both_ranks(resumed_and_straight, controller)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["control"], "the technique does nothing in this run"
    assert first["trained"] == second["trained"]
    assert first["trained"]["decisions"]


# ---- batches of unequal size ----


def budgeted_batches(rank, folder):
    from hf_ft_plugins.techniques.text2text import Text2Text
    from hf_ft_plugins.testing import difference, outcome, resumed

    technique = Text2Text.example()
    trainer = build(folder / "run", technique, **Text2Text.example_setting())
    trainer.train()
    again = None
    if can_resume_on_two_ranks():
        again = difference(
            outcome(trainer),
            outcome(
                resumed(
                    folder / "resumed",
                    technique,
                    make_setting=Text2Text.example_setting,
                    trainer_class=host_class(),
                    ddp_backend="gloo",
                )
            ),
        )
    loader = trainer.get_train_dataloader()
    seen = [sorted(ids[ids > 1].tolist()) for batch in loader for ids in batch["input_ids"]]
    rows = [sorted(token for token in row["input_ids"] if token > 1) for row in trainer.train_dataset]
    return trained(trainer) | {"seen": seen, "rows": rows, "resumed": again, "batches": len(loader)}


def test_batches_of_unequal_size_are_dealt_out_complete_and_resume_exactly(on_both_ranks):
    first, second = on_both_ranks(budgeted_batches)
    assert sorted(first["seen"] + second["seen"]) == sorted(first["rows"])
    assert first["seen"] != second["seen"]
    assert first["batches"] == second["batches"]
    assert first["weights"] == second["weights"]
    assert (first["resumed"], second["resumed"]) == (None, None)


def packed_and_padded(rank, folder):
    import torch

    from hf_ft_plugins.techniques.text2text import Text2Text

    def trained_with(packing):
        setting = Text2Text.example_setting()
        for module in setting["model"].modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        trainer = build(folder / packing, Text2Text(target_tokens=24, packing=packing), **setting, save_strategy="no")
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return trained(trainer) | {"losses": losses, "rows": len(next(iter(trainer.get_train_dataloader()))["labels"])}

    return {packing: trained_with(packing) for packing in ("pairs", "none")}


def test_packed_rows_train_both_ranks_as_padded_ones_do(on_both_ranks):
    first, second = on_both_ranks(packed_and_padded)
    assert first["pairs"]["weights"] == second["pairs"]["weights"]
    assert first["pairs"]["losses"] == pytest.approx(first["none"]["losses"], rel=1e-5)
    assert first["pairs"]["rows"] < first["none"]["rows"]


# ---- unfreezing ----


def unfrozen(folder, strategy, **changes):
    import torch

    from hf_ft_plugins.testing import tiny_model, tiny_trainer

    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    technique = f"transfer:strategy={strategy},cache_features=never,probe_learning_rate=0.02"
    changes |= {"model": model, "save_strategy": "no", "eval_strategy": "no", "train_sampling_strategy": "sequential"}
    trainer = tiny_trainer(folder, technique, **changes)
    # Else Trainer takes BERT's mean for one over all micro-batches and ranks, and scales it up with their number.
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return trained(trainer) | {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def unfrozen_on_ranks(rank, folder, strategy):
    return unfrozen(folder / "run", strategy, ddp_backend="gloo")


@pytest.mark.parametrize("strategy", ["gradual", "lpft", "full"])
def test_unfreezing_trains_two_ranks_as_one(on_both_ranks, tmp_path, strategy):
    first, second = on_both_ranks(unfrozen_on_ranks, strategy)
    assert first == second
    alone = unfrozen(tmp_path / "alone", strategy, per_device_train_batch_size=4)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)


def probed_on_ranks(rank, folder):
    trainer = build(folder / "run", "transfer:probe_steps=30", save_strategy="no", eval_strategy="no")
    trainer.train()
    return trained(trainer) | {"probe": trainer.state.log_history[0]["transfer/probe_loss"]}


def test_a_cached_probe_leaves_both_ranks_with_one_head(on_both_ranks):
    first, second = on_both_ranks(probed_on_ranks)
    assert first == second


# ---- streaming data ----


def stream_on_each_rank(rank, folder):
    import torch
    from transformers import Trainer

    from hf_ft_plugins import with_plugins
    from hf_ft_plugins.techniques.text2text import Text2Text

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter({"input_ids": [3 + row] * (1 + row % 7), "labels": [9] * (1 + row % 5)} for row in range(50))

    seen = []

    class Watching(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            if self.state.epoch < 1:
                seen.extend(inputs["input_ids"][:, 0].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    setting = {**Text2Text.example_setting(), "train_dataset": Stream()}
    technique = Text2Text(target_tokens=12, pool=20)
    trainer = build(folder / "run", technique, trainer_class=with_plugins(Watching), save_strategy="no", **setting)
    trainer.train()
    return trained(trainer) | {"seen": seen, "epoch": trainer.state.epoch}


def test_ranks_share_out_a_stream_and_pass_it_together(on_both_ranks):
    first, second = on_both_ranks(stream_on_each_rank)
    assert sorted(first.pop("seen") + second.pop("seen")) == list(range(3, 53))
    assert first == second
    assert first["epoch"] > 1


# ---- labels ----


def classifier(folder, ranks):
    from hf_ft_plugins.techniques.task import Task
    from hf_ft_plugins.testing import tiny_model, tiny_trainer

    model = tiny_model()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    setting = Task.example_setting() | {"model": model, "max_steps": 4, "per_device_train_batch_size": 4 // ranks}
    backend = {"ddp_backend": "gloo"} if ranks > 1 else {}
    trainer = tiny_trainer(folder / f"run-{ranks}", Task(imbalance="weights"), **setting, **backend)
    trainer.train()
    return trainer


def weighted_classes(rank, folder):
    trainer = classifier(folder, RANKS)
    return trained(trainer) | {
        "calibration": trainer.model.config.hf_ft_task,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "report": (folder / "run-2" / "task" / "report.json").is_file() if rank == 0 else None,
    }


def test_the_loss_of_weighted_classes_and_the_calibration_are_those_of_one_process(on_both_ranks, tmp_path):
    first, second = on_both_ranks(weighted_classes)
    assert (first.pop("report"), second.pop("report")) == (True, None)
    assert first == second
    alone = classifier(tmp_path, ranks=1)
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert first["losses"] == pytest.approx(losses, rel=1e-4)


# ---- several tasks ----


def tasks_trainer(folder, ranks, option, **changes):
    import torch

    from hf_ft_plugins.techniques.multitask import MultiTask
    from hf_ft_plugins.techniques.multitask.tiny import tiny_setting
    from hf_ft_plugins.testing import tiny_trainer

    setting = tiny_setting()
    for module in setting["model"].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    backend = {"ddp_backend": "gloo"} if ranks > 1 else {}
    setting |= {"per_device_train_batch_size": 4 // ranks, **backend, **changes}
    return tiny_trainer(folder / f"run-{ranks}", MultiTask(update_every=2, **option), **setting)


def tasks_learned(rank, folder, option, changes):
    trainer = tasks_trainer(folder, RANKS, option, **changes)
    trainer.train()
    return trained(trainer) | {"losses": losses_of_tasks(trainer)}


def losses_of_tasks(trainer):
    names = ("loss", "loss_tag", "loss_parse", "loss_mood")
    return [entry.get(name, 0.0) for entry in trainer.state.log_history if "loss_tag" in entry for name in names]


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ({"mix": "uniform"}, {}),
        ({"mix": "uniform"}, {"gradient_checkpointing": True}),
        ({"mix": "uniform", "batches": "mixed"}, {}),
        ({"mix": "loss_ratio"}, {}),
        ({"mix": "round_robin", "balance": "pcgrad"}, {}),
        ({"mix": "round_robin", "balance": "gradnorm"}, {}),
    ],
    ids=str,
)
def test_several_tasks_on_two_ranks_have_the_losses_of_one(on_both_ranks, tmp_path, option, changes):
    first, second = on_both_ranks(tasks_learned, option, changes)
    assert first == second
    alone = tasks_trainer(tmp_path, 1, option, **changes)
    alone.train()
    assert first["losses"] == pytest.approx(losses_of_tasks(alone), rel=1e-4)


def resumed_tasks(rank, folder, option):
    from hf_ft_plugins.testing import InterruptAt, Interruption

    small = {"max_steps": 12, "save_steps": 1}
    straight = tasks_trainer(folder / "straight", RANKS, option, **small)
    straight.train()
    cut = tasks_trainer(folder / "cut", RANKS, option, callbacks=[InterruptAt(7)], **small)
    with contextlib.suppress(Interruption):
        cut.train()
    again = tasks_trainer(folder / "cut", RANKS, option, **small)
    again.train(resume_from_checkpoint=True)
    return {
        "straight": trained(straight)["weights"],
        "again": trained(again)["weights"],
        "epoch": 7 / (straight.state.max_steps / straight.state.num_train_epochs),
        "losses": losses_of_tasks(again) == losses_of_tasks(straight),
    }


@pytest.mark.parametrize("option", [{"mix": "uniform"}, {"mix": "progress"}], ids=str)
def test_several_tasks_resume_in_the_middle_of_a_later_epoch_on_two_ranks(on_both_ranks, option):
    first, second = on_both_ranks(resumed_tasks, option)
    assert first == second
    assert first["again"] == first["straight"]
    assert first["losses"]


# ---- preferences ----


def preferences_trainer(folder, technique, contract, **changes):
    from hf_ft_plugins.techniques.behavioral.tiny import tiny_preferences, tiny_setting
    from hf_ft_plugins.testing import tiny_trainer

    setting = tiny_setting(contract, ddp_backend="gloo", eval_strategy="no", save_steps=1, **changes)
    # Of several turns, one of which does not fit; as many that two ranks have unequal last batches.
    setting |= {"train_dataset": tiny_preferences(21, turns=3), "eval_dataset": None, "max_length": 48}
    return tiny_trainer(folder, *technique, **setting)


def resumed_preferences(rank, folder, contract):
    from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome

    technique = ["behavioral:share_prefixes=on" if contract == "dpo" else "behavioral"]
    straight = preferences_trainer(folder / "straight", technique, contract)
    straight.train()
    cut = preferences_trainer(folder / "cut", technique, contract, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = preferences_trainer(folder / "cut", technique, contract)
    again.train(resume_from_checkpoint=True)
    without = preferences_trainer(folder / "without", ["behavioral:weights=false,noise=off"], contract)
    without.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(without)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
    }


@pytest.mark.skipif(
    not can_resume_on_two_ranks(),
    reason="this transformers cannot resume on two ranks without a GPU: it loads the optimizer to cpu:0",
)
@pytest.mark.parametrize("contract", ["dpo", "kto"])
def test_preferences_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, contract):
    pytest.importorskip("trl")
    first, second = on_both_ranks(resumed_preferences, contract)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert first["trained"]["finite"]
    assert not first["control"]


# ---- adapters ----


def resumed_adapter(rank, folder, options):
    from hf_ft_plugins.techniques.peft import Peft
    from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome

    technique = Peft(r=4, export="both", **options)
    straight = build(folder / "straight", technique)
    straight.train()
    cut = build(folder / "cut", technique, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = build(folder / "cut", technique)
    again.train(resume_from_checkpoint=True)
    other = build(folder / "other", technique, seed=1)
    other.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(other)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
        "exported": sorted(path.name for path in (folder / "cut").glob("[am]*/*.safetensors")),
    }


@pytest.mark.skipif(
    not can_resume_on_two_ranks(),
    reason="this transformers cannot resume on two ranks without a GPU: it loads the optimizer to cpu:0",
)
@pytest.mark.parametrize("options", [{"method": "adalora"}, {"method": "eva"}, {"quant": "nf4"}], ids=str)
def test_adapters_on_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, options):
    pytest.importorskip("bitsandbytes")
    first, second = on_both_ranks(resumed_adapter, options)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert first["exported"] == ["adapter_model.safetensors", "model.safetensors"]
    assert not first["control"]


# ---- removed layers ----


def language_trainer(folder, technique, make=build, **changes):
    import torch

    from hf_ft_plugins.techniques.behavioral.tiny import tiny_llama

    ids = torch.randint(3, 380, (24, 16), generator=torch.Generator().manual_seed(1))
    # As many scored tokens as the row's number says, so that a mean of the ranks' means is another.
    rows = [
        {"input_ids": row, "labels": row.masked_fill(torch.arange(16) >= 4 + number % 9, -100)}
        for number, row in enumerate(ids)
    ]
    data = {"train_dataset": rows, "eval_dataset": rows[:6]}
    return make(folder, technique, model=tiny_llama(num_hidden_layers=5), **data, **changes)


def resumed_without_layers(rank, folder, options):
    from hf_ft_plugins.testing import InterruptAt, Interruption, difference, outcome

    technique = f"layer-removal:number=2,max_degradation=none,{options}"
    straight = language_trainer(folder / "straight", technique)
    straight.train()
    cut = language_trainer(folder / "cut", technique, callbacks=[InterruptAt(9)])
    with contextlib.suppress(Interruption):
        cut.train()
    again = language_trainer(folder / "cut", technique)
    again.train(resume_from_checkpoint=True)
    other = language_trainer(folder / "other", technique, seed=1)
    other.train()
    return {
        "difference": difference(outcome(straight), outcome(again)),
        "control": difference(outcome(straight)["weights"], outcome(other)["weights"]) is None,
        "trained": trained(again) | {"saved": None},
        "removed": again.model.config.removed_layers[""],
        "report": json.loads((folder / "cut" / "layer_removal_report.json").read_text()),
    }


@pytest.mark.skipif(
    not can_resume_on_two_ranks(),
    reason="this transformers cannot resume on two ranks without a GPU: it loads the optimizer to cpu:0",
)
@pytest.mark.parametrize("options", ["method=perplexity", "method=taylor,distill=0.5"])
def test_without_layers_two_ranks_resume_in_the_middle_of_an_epoch(on_both_ranks, options):
    first, second = on_both_ranks(resumed_without_layers, options)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["trained"] == second["trained"]
    assert len(first["removed"]) == 2
    assert first["removed"] == second["removed"] == first["report"]["removed"]
    assert not first["control"]


def healed(rank, folder, per_device, weight):
    import torch

    from hf_ft_plugins.testing import tiny_trainer

    technique = f"layer-removal:layers=2,max_degradation=none,distill={weight}"
    trainer = language_trainer(
        folder / f"{weight}",
        technique,
        make=tiny_trainer if rank is None else build,
        per_device_train_batch_size=per_device,
        optim="sgd",
        learning_rate=0.1,
        max_steps=4,
        eval_strategy="no",
    )
    trainer.train()
    return torch.cat([tensor.flatten() for tensor in trainer.model.state_dict().values()]).tolist()


def test_two_ranks_learn_from_the_original_as_one(on_both_ranks, tmp_path):
    import torch

    first, second = (torch.tensor(weights) for weights in on_both_ranks(healed, 2, 2.0))
    assert torch.equal(first, second)
    alone = torch.tensor(healed(None, tmp_path / "alone", 4, 2.0))
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-6)
    undistilled = torch.tensor(healed(None, tmp_path / "alone", 4, 0.0))
    assert not torch.allclose(first, undistilled, rtol=1e-4, atol=1e-6)


def a_gate_fails(rank, folder):
    from hf_ft_plugins.errors import PluginError

    trainer = language_trainer(folder / "run", "layer-removal:number=1", learning_rate=3.0, optim="sgd")
    try:
        trainer.train()
    except PluginError as error:
        return {"raised": str(error), "layers": len(trainer.model.model.layers), "trained": trained(trainer)}
    return {"raised": None}


def test_both_ranks_end_when_the_gate_fails(on_both_ranks):
    first, second = on_both_ranks(a_gate_fails)
    assert "original again" in first["raised"]
    assert first == second
    assert first["layers"] == 5
