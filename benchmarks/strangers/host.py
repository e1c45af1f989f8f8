"""The host alone: arguments and trainers of all sorts end as stock does, and checkpoints survive what befalls them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import AdaptiveLR, with_plugins
from hf_ft_plugins.host.manifest import MANIFEST_FILE, STATE_FILE, UNFINISHED_MARKER
from hf_ft_plugins.testing import difference, outcome, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples.behavioral import tiny_setting

CUTTING = {"patience": 1, "min_delta": 1e9, "max_cuts": 2, "stop": False}
FILES = (
    *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"),
    *("training_args.bin", STATE_FILE, MANIFEST_FILE),
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "a worker that reads": {"dataloader_num_workers": 1},
    "sorted by length": {"train_sampling_strategy": "group_by_length"},
    "save_only_model": {"save_only_model": True},
    "the best model at the end": {"load_best_model_at_end": True, "save_steps": 3},
    "save the best": {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": False},
    "evaluate at the start": {"eval_on_start": True},
    "noise in the embeddings": {"neftune_noise_alpha": 5.0},
    "smoothed labels": {"label_smoothing_factor": 0.1},
    "bfloat16": {"bf16": True},
    "no clipping": {"max_grad_norm": 0.0},
    "losses alone": {"prediction_loss_only": True},
    "everything in epochs": {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"},
    "epochs, not steps": {"max_steps": -1, "num_train_epochs": 2},
    "one checkpoint kept": {"save_total_limit": 1},
    "no last batch": {"dataloader_drop_last": True, "per_device_train_batch_size": 5},
    "a schedule by the metric": {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"},
    "restarts": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    "warm-up": {"warmup_steps": 5, "lr_scheduler_type": "cosine"},
    "Adafactor": {"optim": "adafactor"},
    "SGD": {"optim": "sgd"},
    "no evaluation": {"eval_strategy": "no"},
    "metrics batch by batch": {"batch_eval_metrics": True, "compute_metrics": lambda _, compute_result: {"m": 1.0}},
}


class OwnArguments(Trainer):
    def __init__(self, *args: Any, extra: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = extra


class OwnLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)


class OwnLog(Trainer):
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({**logs, "theirs": 1.0}, *args, **kwargs)


class OwnEvaluation(Trainer):
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **kwargs), "eval_theirs": 0.5}


class OwnOptimizer(Trainer):
    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate, momentum=0.9)
        return self.optimizer


class OwnSaving(Trainer):
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        Path(self.args.output_dir, f"checkpoint-{self.state.global_step}", "README.md").write_text("a card")


class OwnSteps(Trainer):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().training_step(*args, **kwargs)


def as_stock(trainer_class: type = Trainer, make_setting: Callable[[], dict[str, Any]] = dict, **changes: Any) -> None:
    """The same run with and without a host ends bit-equal, log included; each is made with a setting of its own."""
    ends = []
    for hosted in (False, True):
        setting = {"trainer_class": trainer_class, **make_setting(), **changes}
        if hosted:
            setting["trainer_class"] = with_plugins(setting["trainer_class"])
        trainer = tiny_trainer(Path(f"hosted-{hosted}"), **setting)
        trainer.train()
        ends.append(outcome(trainer))
    found = difference(*ends)
    if found:
        raise Wrong(f"with a host it differs at {found}")


# ---- checkpoints ----


@cache
def interrupted() -> tuple[Path, dict[str, Any]]:
    """Checkpoints at steps 2, 4, ... 8 of a run of 14, and how the run that was not interrupted ended."""
    folder = Path(mkdtemp())
    trainer = tiny_trainer(folder, AdaptiveLR(controller="plateau", **CUTTING))
    trainer.train()
    for step in (10, 12, 14):
        shutil.rmtree(folder / f"checkpoint-{step}")
    return folder, outcome(trainer)


def survives(name: str, harm: Callable[[Path], None]) -> None:
    """The run goes on from a whole checkpoint and ends as if nothing had been."""
    source, expected = interrupted()
    shutil.copytree(source, "run")
    harm(Path("run/checkpoint-8") / name)
    trainer = tiny_trainer(Path("run"), AdaptiveLR(controller="plateau", **CUTTING))
    trainer.train(resume_from_checkpoint=True)
    found = difference(expected, outcome(trainer))
    if found:
        raise Wrong(f"the resumed run differs at {found}")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def of_an_older_one(file: Path) -> None:
    shutil.copy(file.parents[1] / "checkpoint-4" / file.name, file)


def other_json(file: Path) -> None:
    file.write_text(json.dumps({"format": 1, "files": {"model.safetensors": {"size": 1}}}))


HARMS: dict[str, Callable[[Path], None]] = {
    "gone": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "a bit flipped": flip,
    "of an older checkpoint": of_an_older_one,
    "JSON of another shape": other_json,
}


class Signal(TrainerCallback):
    def __init__(self, event: str, step: int) -> None:
        self.step, self.manager = step, None
        setattr(self, event, self._come)

    def _come(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.manager is not None and state.global_step == self.step:
            self.manager.is_checkpoint_requested = True


def preempted(event: str, step: int) -> None:
    signal = Signal(event, step)
    settings = {"enable_jit_checkpoint": True, "save_strategy": "no"}
    trainer = tiny_trainer(Path("run"), AdaptiveLR(controller="plateau", **CUTTING), callbacks=[signal], **settings)
    signal.manager = trainer._jit_manager
    trainer.train()
    again = tiny_trainer(Path("run"), AdaptiveLR(controller="plateau", **CUTTING), save_strategy="no")
    again.train(resume_from_checkpoint=True)
    expected = {**interrupted()[1]}
    found = difference(expected, outcome(again))
    if found:
        raise Wrong(f"the resumed run differs at {found}")


def preempted_in_epochs(step: int) -> None:
    """All in epochs, and the signal within one: the end of the run is no end of an epoch."""
    signal = Signal("on_step_end", step)
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 4}
    straight = tiny_trainer(Path("straight"), AdaptiveLR(controller="plateau", **CUTTING), **settings)
    straight.train()
    first = tiny_trainer(
        Path("run"),
        AdaptiveLR(controller="plateau", **CUTTING),
        callbacks=[signal],
        enable_jit_checkpoint=True,
        **settings,
    )
    signal.manager = first._jit_manager
    first.train()
    again = tiny_trainer(Path("run"), AdaptiveLR(controller="plateau", **CUTTING), **settings)
    again.train(resume_from_checkpoint=True)
    found = difference(outcome(straight), outcome(again))
    if found:
        raise Wrong(f"the resumed run differs at {found}")


class Changes(TrainerCallback):
    """Adds to every checkpoint, changes one file of it and takes one away."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self._change)

    def _change(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            if (folder / "trainer_state.json").is_file():
                (folder / "training_args.bin").unlink(missing_ok=True)
                (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
                (folder / "notes").write_text(str(state.global_step))


def changed_by_callback(event: str) -> None:
    """Stock resumes from the newest checkpoint, whatever a callback did to it; so does the host."""
    for steps in (6, 9):
        trainer = tiny_trainer(
            Path("run"),
            AdaptiveLR(controller="plateau", **CUTTING),
            callbacks=[Changes(event)],
            max_steps=steps,
            save_steps=3,
        )
        trainer.train(resume_from_checkpoint=steps == 9)
    left = sorted(folder.name for folder in Path("run").iterdir())
    if left != ["checkpoint-3", "checkpoint-6", "checkpoint-9"]:
        raise Wrong(f"the run left {left}")


class Rounds(Trainer):
    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log({key: round(value, 3) for key, value in logs.items()}, *args, **kwargs)


def rounded() -> None:
    trainer = tiny_trainer(Path("run"), AdaptiveLR(controller="plateau", **CUTTING), trainer_class=Rounds)
    trainer.train()
    if not any(entry.get("adaptive_lr/action") == "cut" for entry in trainer.state.log_history):
        raise Wrong("no decision stands in the log")


def situations() -> list[Situation]:
    quick_arguments = (
        "auto_find_batch_size",
        "the best model at the end",
        "noise in the embeddings",
        "epochs, not steps",
    )
    found = [
        Situation("arguments as stock", name, partial(as_stock, **changes), quick=name in quick_arguments)
        for name, changes in ARGUMENTS.items()
    ]
    own = (OwnArguments, OwnLoss, OwnLog, OwnEvaluation, OwnOptimizer, OwnSaving, OwnSteps)
    found += [
        Situation("trainers as stock", cls.__name__, partial(as_stock, cls), quick=cls in (OwnLog, OwnSaving))
        for cls in own
    ]
    sequences = partial(as_stock, Seq2SeqTrainer, args_class=Seq2SeqTrainingArguments)
    found.append(Situation("trainers as stock", "Seq2SeqTrainer", sequences))
    found.append(Situation("trainers as stock", "model_init", partial(as_stock, model_init=lambda: tiny_model())))
    found += [
        Situation(
            "trainers as stock",
            f"TRL's {kind}",
            partial(as_stock, make_setting=partial(tiny_setting, kind), max_steps=4),
        )
        for kind in ("dpo", "kto", "reward")
    ]
    found += [
        Situation("checkpoints", f"{name} {what}", partial(survives, name, harm), quick=what == "a bit flipped")
        for name in FILES
        for what, harm in HARMS.items()
        if not (what == "JSON of another shape" and not name.endswith(".json"))
    ]
    marker = partial(survives, UNFINISHED_MARKER, lambda file: file.write_text("in progress"))
    found.append(Situation("checkpoints", "Trainer's marker of an unfinished one", marker))
    events = (
        "on_step_begin",
        "on_substep_end",
        "on_pre_optimizer_step",
        "on_optimizer_step",
        "on_step_end",
        "on_epoch_end",
    )
    found += [
        Situation("SIGTERM", f"{event} of step {step}", partial(preempted, event, step), quick=step == 5)
        for event in events
        for step in ((6,) if event == "on_epoch_end" else (4, 5, 6))
    ]
    found += [
        Situation("SIGTERM", f"all in epochs, step {step}", partial(preempted_in_epochs, step), quick=False)
        for step in (4, 6, 7)
    ]
    found += [
        Situation("checkpoints", f"changed in {event}", partial(changed_by_callback, event), quick=False)
        for event in (
            "on_step_begin",
            "on_step_end",
            "on_log",
            "on_evaluate",
            "on_save",
            "on_epoch_end",
            "on_train_end",
        )
    ]
    found.append(Situation("trainers as stock", "log() that rounds", rounded))
    return found
