"""Three small stages of the kit's classifier, by `run_stages` or one by one, and what two equal sequences have in
common.
"""

import json

from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, Trainer

from hf_ft_plugins.techniques.sequential import Stage, run_stages
from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer

NAMES = ("general", "medical", "answers")
CHANGES = {"max_steps": 6, "eval_strategy": "no", "save_steps": 2, "gradient_accumulation_steps": 1}


def stage_rows(number):
    rows = {"train_dataset": tiny_dataset(20, seed=number), "eval_dataset": tiny_dataset(8, seed=10 + number)}
    return {name: Dataset.from_list(some).with_format("torch") for name, some in rows.items()}


def stages(names=NAMES, **overrides):
    """`overrides` are by stage."""
    return [Stage(name=name, **stage_rows(at), overrides=overrides.get(name, {})) for at, name in enumerate(names)]


def model_from(start):
    return tiny_model() if start is None else BertForSequenceClassification.from_pretrained(start)


def build(run, **changes):
    """What a factory of `run_stages` does; `changes` are as `tiny_trainer` takes them."""
    given = {name: getattr(run.stage, name) for name in ("train_dataset", "eval_dataset")}
    settings = {"model": model_from(run.start), **given, **CHANGES, **run.stage.overrides, **changes}
    return tiny_trainer(run.output_dir, trainer_class=run.hosted(Trainer), **settings)


def run_all(folder, options="replay=0.25", factory=build, given=None):
    return run_stages(factory, given or stages(), f"sequential:folder={folder},{options}")


def left_in(folder, names=NAMES):
    """What finished stages have left: weights of each model, the matrix, and what was recorded of each."""
    weights = {name: load_file(folder / name / "model" / "model.safetensors") for name in names}
    recorded = json.loads((folder / "hf_ft_stages.json").read_text())["stages"]
    for stage in recorded:
        del stage["options"]["folder"]
    return {"weights": weights, "matrix": json.loads((folder / "hf_ft_forgetting.json").read_text()), "all": recorded}
