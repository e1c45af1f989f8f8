"""Imports and builds a Trainer in each of the usual ways, each in a process of its own, and says what happened."""

import json
import os
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers.modeling_utils  # noqa: F401
from transformers import Seq2SeqTrainingArguments, logging

assert "transformers.trainer" not in sys.modules
FOLDER = Path(sys.argv[1])


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - labels) ** 2).mean(), "logits": self.weight * x}


def by_attribute():
    import transformers

    return transformers.Trainer


def from_the_package():
    from transformers import Trainer

    return Trainer


def from_the_module():
    from transformers.trainer import Trainer

    return Trainer


def for_sequences():
    from transformers import Seq2SeqTrainer

    return Seq2SeqTrainer


def of_their_own():
    from transformers import Trainer

    class Their(Trainer):
        def log(self, logs, *args, **kwargs):
            # Without super(): stock Trainer's own history is not kept.
            self.state.log_history.append({**logs, "step": self.state.global_step, "theirs": True})

    return Their


def report(way):
    data = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 4
    trainer = way()(
        model=Line(),
        args=Seq2SeqTrainingArguments(
            output_dir=str(FOLDER / way.__name__),
            max_steps=6,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    seen = {
        "class": type(trainer).__name__,
        "cuts": sum(entry.get("adaptive_lr/action") == "cut" for entry in trainer.state.log_history),
        "theirs": any("theirs" in entry for entry in trainer.state.log_history),
        "verbosity": logging.get_verbosity(),
    }
    (FOLDER / f"{way.__name__}.json").write_text(json.dumps(seen))


for way in (by_attribute, from_the_package, from_the_module, for_sequences):
    child = os.fork()
    if child == 0:
        report(way)
        os._exit(0)
    os.waitpid(child, 0)
report(of_their_own)
