"""Two stages of one technique beside `sequential`, in folders of their own: built, trained, cut off, counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer, DataCollatorForSeq2Seq

from hf_ft_plugins.techniques.sequential import Sequential
from hf_ft_plugins.testing import InterruptAt, Interruption, tiny_dataset, tiny_model, tiny_trainer
from hf_ft_plugins.testing.examples import behavioral, task, text2text

STAGES = ("first", "second")
# Four steps, evaluated and saved in the middle.
SHORT = {"max_steps": 4, "eval_steps": 2, "save_steps": 2}
Setting = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Pair:
    """What two stages are run with.

    Attributes:
        technique: the other, as `with_plugins` takes it; None: none.
        setting: of `tiny_trainer`, by the stage's number; its model is that of the first stage.
        options: of `sequential`.
        changes: of the setting.
    """

    technique: str | None
    setting: Setting
    options: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


def stage_trainer(pair: Pair, folder: Path, stage: int, *, swapped: bool = False, **changes: Any) -> Any:
    """The trainer of stage 0 or 1; the folder of the stages is `folder/stages`."""
    own = Sequential(folder=str(folder / "stages"), stage=STAGES[stage], **({"replay": 0.3} | pair.options))
    listed = [own] if pair.technique is None else [own, pair.technique]
    setting = {**SHORT, **pair.setting(stage), **pair.changes, **changes}
    if stage:
        setting["model"] = type(setting["model"]).from_pretrained(model_of(folder, 0))
        if "ref_model" in setting:
            setting["ref_model"] = copy.deepcopy(setting["model"])
    return tiny_trainer(folder / f"run{stage}", *(listed[::-1] if swapped else listed), **setting)


def trained(pair: Pair, folder: Path, *, swapped: bool = False, cut_off: bool = False) -> Any:
    """The trainer of the second stage when both have ended, the second cut off in its middle and resumed or not."""
    stage_trainer(pair, folder, 0, swapped=swapped).train()
    if cut_off:
        with pytest.raises(Interruption):
            stage_trainer(pair, folder, 1, swapped=swapped, callbacks=[InterruptAt(3)]).train()
    trainer = stage_trainer(pair, folder, 1, swapped=swapped)
    trainer.train(resume_from_checkpoint=True if cut_off else None)
    return trainer


def model_of(folder: Path, stage: int) -> Path:
    return folder / "stages" / STAGES[stage] / "model"


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The finished stages of `folder/stages`, as they are in the file."""
    return json.loads((folder / "stages" / "hf_ft_stages.json").read_text())["stages"]


def replayed_share(trainer: Any) -> float:
    """The share of rows of earlier stages in an epoch of the trainer's batches."""
    trainer.get_train_dataloader()
    order = trainer.train_order
    drawn = list(order) if trainer.train_batches is None else [at for batch in trainer.train_batches for at in batch]
    return sum(position >= order.new for position in drawn) / len(drawn)


# ---- settings ----


def classifying(stage: int) -> dict[str, Any]:
    return {
        "model": tiny_model(),
        "train_dataset": tiny_dataset(24, seed=10 + stage),
        "eval_dataset": tiny_dataset(12, seed=20 + stage),
    }


def with_class_names(stage: int) -> dict[str, Any]:
    rows = {"train_dataset": task.tiny_rows(24, seed=10 + stage), "eval_dataset": task.tiny_rows(40, seed=20 + stage)}
    return {"model": tiny_model(), **rows}


def of_pairs(model: Any, train: Any, evaluation: Any) -> dict[str, Any]:
    tokenizer = ByT5Tokenizer()
    return {
        "model": model,
        "train_dataset": train,
        "eval_dataset": evaluation,
        "processing_class": tokenizer,
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
    }


def translating(stage: int) -> dict[str, Any]:
    rows = text2text.tiny_pairs(24, seed=10 + stage), text2text.tiny_pairs(8, seed=20 + stage)
    return of_pairs(text2text.tiny_t5(), *rows)


def continuing(stage: int) -> dict[str, Any]:
    rows = text2text.tiny_pairs(24, seed=10 + stage), text2text.tiny_pairs(8, seed=20 + stage)
    return of_pairs(behavioral.tiny_llama(), *rows)


def of_texts(stage: int) -> dict[str, Any]:
    """Texts that text2text tokenizes."""
    from datasets import Dataset

    def texts(size: int, seed: int) -> Any:
        words = [bytes(byte - 3 for byte in row["input_ids"][:-1]).decode() for row in text2text.tiny_pairs(size, seed)]
        return Dataset.from_dict({"source": words, "target": [word[::-1] for word in words]})

    return of_pairs(text2text.tiny_t5(), texts(24, 10 + stage), texts(8, 20 + stage))


def preferring(stage: int) -> dict[str, Any]:
    rows = behavioral.tiny_preferences(16, seed=10 + stage), behavioral.tiny_preferences(6, seed=20 + stage)
    return {**behavioral.tiny_setting("dpo"), "train_dataset": rows[0], "eval_dataset": rows[1]}


def answering(stage: int) -> dict[str, Any]:
    """TRL's SFT on prompts and completions."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    words = behavioral.WORDS[4 * stage : 4 * stage + 4]
    rows = Dataset.from_list([{"prompt": f"say {word} ", "completion": f"it is {word}"} for word in words * 4])
    return {
        "trainer_class": SFTTrainer,
        "args_class": SFTConfig,
        "model": behavioral.tiny_llama(),
        "train_dataset": rows,
        "eval_dataset": rows.select(range(6)),
        "processing_class": behavioral.tiny_tokenizer(),
        "max_length": 64,
        "bf16": False,
        "gradient_checkpointing": False,
    }
