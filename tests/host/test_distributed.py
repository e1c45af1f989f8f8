"""Two processes train one model: they hold the same weights, make the same decisions, and never wait for each other."""

import json
import math
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.two_processes import RANKS, build, decisions, free_port, resumes_on_two_ranks, run_on_both_ranks, trained

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_tiny.py"
CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"


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
def launched(processes, tmp_path_factory):
    """What both ranks of each launcher left behind, and those of two ranks without a technique."""
    folder = tmp_path_factory.mktemp("launched")

    def launch(name):
        command = ["-m", "hf_ft_plugins", "run", "--with", CUTTING, SCRIPT, *options(folder / name)]
        process = subprocess.run(
            [sys.executable, "-m", *map(str, [*LAUNCHERS[name], free_port(), *command])],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-4000:]
        return [result_of(rank, folder / name) for rank in range(RANKS)]

    with ThreadPoolExecutor(max_workers=2) as pool:
        hosted = dict(zip(LAUNCHERS, pool.map(launch, LAUNCHERS), strict=True))
    return {**hosted, "stock": run_on_both_ranks(processes, folder, run_script)}


def options(folder):
    return ["--output_dir", str(folder), "--ddp_backend", "gloo", "--max_steps", "8"]


def run_script(rank, folder):
    sys.argv = [str(SCRIPT), *options(folder / "stock")]
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return result_of(rank, folder / "stock")


def result_of(rank, folder):
    result = json.loads((folder / f"result-{rank}.json").read_text())
    assert (result["rank"], result["world_size"]) == (rank, RANKS)
    return result


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


# ---- what one rank decides ----


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
        "adaptive-lr:controller=plateau,patience=1,metric=score,max_cuts=1",
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


@resumes_on_two_ranks
@pytest.mark.parametrize("controller", ["plateau", "rollback"])
def test_resumed_run_on_two_ranks_equals_uninterrupted_run(on_both_ranks, controller):
    first, second = on_both_ranks(resumed_and_straight, controller)
    assert first["difference"] is None
    assert second["difference"] is None
    assert first["control"], "the technique does nothing in this run"
    assert first["trained"] == second["trained"]
    assert first["trained"]["decisions"]
