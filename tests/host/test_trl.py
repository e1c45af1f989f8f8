"""TRL's trainers and TRL's own scripts, unedited, under the adaptive learning rate: they train, and log as before."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from hf_ft_plugins import with_plugins  # noqa: E402

CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"
TIMED = ("_runtime", "_per_second")
STORIES = [
    "Once upon a time there was a little cat.",
    "Tom had a red ball. He was happy.",
    "Lily went to the park with her mom.",
    "The dog saw a big bird in the tree.",
]
PAIRS = [{"prompt": story[:12], "chosen": story[12:], "rejected": " no no no."} for story in STORIES]
DATA = {
    "SFT": [{"text": story} for story in STORIES],
    "DPO": PAIRS,
    "Reward": [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in PAIRS],
    "KTO": [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in PAIRS
        for side in ("chosen", "rejected")
    ],
}


@pytest.fixture(scope="module")
def checkpoint(data_folder):
    """A pretrained language model of 260,000 parameters."""
    folder = data_folder / "ckpt_stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}; set FT_DATA")
    return str(folder)


def train(kind, checkpoint, folder, *techniques, **changes):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 32,
    }
    if kind == "Reward":
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
    trainer_class = getattr(trl, f"{kind}Trainer")
    rows = datasets.Dataset.from_list(DATA[kind])
    trainer = (with_plugins(trainer_class, *techniques) if techniques else trainer_class)(
        model=model,
        args=getattr(trl, f"{kind}Config")(**(settings | changes)),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.train()
    return trainer


def decisions(log):
    return [entry for entry in log if "adaptive_lr/action" in entry]


def without_times(log):
    return [
        {
            key: value
            for key, value in entry.items()
            if not key.endswith(TIMED) and not key.startswith(("adaptive_lr/", "run/"))
        }
        for entry in log
    ]


@pytest.mark.parametrize("kind", DATA)
def test_trainer_trains_with_the_rate_that_was_decided(kind, checkpoint, tmp_path):
    hosted = train(kind, checkpoint, tmp_path / "hosted", CUTTING)
    stock = train(kind, checkpoint, tmp_path / "stock")
    log = hosted.state.log_history
    assert type(hosted).__name__ == f"{kind}Trainer"
    assert [(entry["adaptive_lr/action"], entry["adaptive_lr/step"]) for entry in decisions(log)] == [
        ("cut", 4),
        ("cut", 6),
    ]
    rates, stock_rates = (
        [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
        for trainer in (hosted, stock)
    )
    assert rates[:4] == stock_rates[:4]
    assert rates[4:] == pytest.approx([0.3 * rate for rate in stock_rates[4:]])
    assert any(
        not (one == other).all() for one, other in zip(hosted.model.parameters(), stock.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", DATA)
def test_trainers_own_metrics_are_untouched_by_our_log_entries(kind, checkpoint, tmp_path):
    # With a rate of zero a cut changes nothing but the log, so that all other entries must equal the stock run's.
    hosted = train(kind, checkpoint, tmp_path / "hosted", CUTTING, learning_rate=0.0)
    stock = train(kind, checkpoint, tmp_path / "stock", learning_rate=0.0)
    assert len(decisions(hosted.state.log_history)) == 2
    assert without_times(hosted.state.log_history) == without_times(stock.state.log_history)
    assert not decisions(stock.state.log_history)
    allowed = {"adaptive_lr/action", "adaptive_lr/scale", "adaptive_lr/reason", "adaptive_lr/step"}
    told = [{key for key in entry if key.startswith("adaptive_lr/")} for entry in decisions(hosted.state.log_history)]
    assert all(keys == allowed for keys in told)


# ---- TRL's own scripts ----


@pytest.fixture(scope="module")
def scripts(checkpoint, tmp_path_factory):
    """Processes that ran TRL's scripts under `hf-ft run`, on local files, and the folder of their outputs."""
    folder = tmp_path_factory.mktemp("scripts")
    for kind in ("SFT", "DPO"):
        (folder / kind).mkdir()
        for split in ("train", "test"):
            rows = "\n".join(json.dumps(row) for row in DATA[kind])
            (folder / kind / f"{split}.jsonl").write_text(rows)

    def run(name, kind, script, *options):
        command = [
            *("-m", "hf_ft_plugins", "run", "--with", CUTTING, *script),
            *("--model_name_or_path", checkpoint, "--dataset_name", folder / kind, "--output_dir", folder / name),
            *("--max_steps", 6, "--per_device_train_batch_size", 4, "--max_length", 32, "--learning_rate", 1e-3),
            *("--eval_strategy", "steps", "--eval_steps", 2, "--logging_steps", 1, "--save_steps", 6),
            *("--use_cpu", "--bf16", "false", "--report_to", "none", "--gradient_checkpointing", "false", *options),
        ]
        return subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / f"cache-{name}")},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    by_path = Path(trl.__file__).parent / "scripts" / "dpo.py"
    lora = ("--use_peft", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj")
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs = {
            "sft": pool.submit(run, "sft", "SFT", ["-m", "trl.scripts.sft"]),
            "dpo": pool.submit(run, "dpo", "DPO", [by_path]),
            "lora": pool.submit(run, "lora", "SFT", ["-m", "trl.scripts.sft"], *lora),
        }
        return folder, {name: process.result() for name, process in runs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "lora"])
def test_trls_own_script_runs_unedited(scripts, name):
    folder, processes = scripts
    assert processes[name].returncode == 0, processes[name].stderr[-4000:]
    state = json.loads((folder / name / "checkpoint-6" / "trainer_state.json").read_text())
    # The last cut is to stand in the next entry, the summary's, which comes after this checkpoint.
    (waiting,) = json.loads((folder / name / "checkpoint-6" / "hf_ft_plugins.json").read_text())["states"].values()
    told = [*decisions(state["log_history"]), waiting["log_notes"]]
    assert [(entry["adaptive_lr/action"], entry["adaptive_lr/step"]) for entry in told] == [("cut", 4), ("cut", 6)]
    assert (folder / name / "adapter_config.json").is_file() == (name == "lora")
