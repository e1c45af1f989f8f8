"""Which scripts run, with which arguments and which techniques."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEALS = "layer-removal:number=1,max_degradation=none,max_repetition=none"
# What a technique may say where it has nothing to do with a script: its name, and what the message must hold.
REASONS = (
    ("multitask", "has one task"),
    ("text2text", "no column 'labels'|is TRL's|where they are classes, leave out"),
    ("behavioral", "which learn from preferences|prefer"),
    ("task", "neither classifies nor regresses|learns from pairs"),
    ("transfer", "one output|position|strategy=full or gradual"),
    ("peft", "peft_config|use_peft|a PeftModel"),
    ("layer-removal", "no training data to choose by|has adapters already"),
)
CLASSIFY = ("adaptive-lr", "transfer", "peft", "peft:export=merged", HEALS)


@dataclass(frozen=True)
class Run:
    """One command line.

    Attributes:
        script: the script's name, or the module's for TRL's.
        variant: what is unlike the script's first run, in words; empty for that one.
        techniques: as `--with` takes them; none: the script alone.
        arguments: of the script; `{data}` is the folder that `material` filled, `{again}` the output of the same
            techniques' first run.
        steps: of the optimizer.
        learns: whether the run is long enough to compare what it reaches with what the script alone reaches.
    """

    script: str
    variant: str
    techniques: tuple[str, ...]
    arguments: str
    steps: int = 6
    learns: bool = False


def files(kind: str, ending: str = "json") -> str:
    return f"--train_file {{data}}/{kind}_train.{ending} --validation_file {{data}}/{kind}_validation.{ending}"


def group(script: str, variant: str, arguments: str, *sets: str, steps: int = 6, learns: bool = False) -> list[Run]:
    """The script alone, then with each set of techniques (names with blanks between)."""
    return [Run(script, variant, tuple(names.split()), arguments, steps, learns) for names in ("", *sets)]


def runs() -> list[Run]:
    return [*classifiers(), *language(), *sequences(), *preferences()]


def classifiers() -> list[Run]:
    glue = f"--model_name_or_path {{data}}/bert {files('classes')} --max_seq_length 32 --do_train --do_eval"
    tags = f"--model_name_or_path {{data}}/bert {files('tags')} --do_train --do_eval"
    qa = f"--model_name_or_path {{data}}/bert {files('qa')} --max_seq_length 32 --doc_stride 8 --do_train --do_eval"
    swag = f"--model_name_or_path {{data}}/bert {files('choices')} --do_train --do_eval"
    image = "--model_name_or_path {data}/vit --train_dir {data}/pictures/train --remove_unused_columns False"
    image += " --validation_dir {data}/pictures/validation --do_train --do_eval"
    regression = glue.replace("classes_", "numbers_")
    unlabelled = f"{glue} --do_predict --test_file {{data}}/unlabelled_test.json"
    predict = f"{tags} --do_predict --test_file {{data}}/tags_test.json --pad_to_max_length --max_seq_length 24"
    answer = f"{qa} --do_predict --test_file {{data}}/qa_test.json --max_predict_samples 6"
    plain, unheld = "--eval_strategy no --save_strategy no", glue.replace(" --do_eval", "")
    eval_only = glue.replace(" --do_train", "")
    epochs = "--max_steps -1 --num_train_epochs 1 --gradient_checkpointing"
    other = {name: glue.replace("/bert", f"/{name}") for name in ("llama", "bart", "t5")}
    chosen = "--load_best_model_at_end --metric_for_best_model accuracy --label_smoothing_factor 0.1"
    best = "--load_best_model_at_end --metric_for_best_model f1"
    return [
        *group("run_glue.py", "", glue, *CLASSIFY, "task", "multitask", "text2text", "behavioral"),
        *group("run_glue.py", "", glue, "task transfer", "task peft adaptive-lr", f"{HEALS} peft")[1:],
        *group("run_glue.py", "regression", regression, "task", "transfer"),
        *group("run_glue.py", "a test set without labels", unlabelled, "task", "peft adaptive-lr"),
        *group("run_glue.py", "padded by batch", f"{glue} --pad_to_max_length False --label_names labels", "task"),
        *group("run_glue.py", "a size of batch that fits", f"{glue} --auto_find_batch_size", "task", "peft"),
        *group("run_glue.py", "accumulating", f"{glue} --gradient_accumulation_steps 2", "task adaptive-lr"),
        *group("run_glue.py", "resumed", f"{glue} --resume_from_checkpoint {{again}}/checkpoint-4", *CLASSIFY, "task"),
        *group("run_glue.py", "without evaluation", f"{unheld} {plain}", *CLASSIFY, "task"),
        *group("run_glue.py", "evaluation alone", f"{eval_only} {plain}", *CLASSIFY, "task"),
        *group("run_glue.py", "by epochs, the best kept", f"{glue} {epochs} {chosen}", "task adaptive-lr", "transfer"),
        *group("run_glue.py", "a Llama", other["llama"], *CLASSIFY, "task"),
        *group("run_glue.py", "a BART", other["bart"], *CLASSIFY, "task"),
        *group("run_glue.py", "a T5", other["t5"], "transfer", "peft", "task"),
        *group("run_ner.py", "", tags, *CLASSIFY, "task", "multitask", "transfer adaptive-lr"),
        *group("run_ner.py", "predicting, padded", predict, "transfer", "peft"),
        *group("run_ner.py", "learning", f"{tags} --learning_rate 1e-2", "transfer", steps=30, learns=True),
        *group("run_qa.py", "", qa, *CLASSIFY, "task"),
        *group("run_qa.py", "predicting", f"{answer} {best} --version_2_with_negative", "adaptive-lr peft"),
        *group("run_swag.py", "", swag, *CLASSIFY, "task"),
        *group("run_swag.py", "padded", f"{swag} --pad_to_max_length --max_seq_length 24", "transfer", "peft"),
        *group("run_image_classification.py", "", image, *CLASSIFY, "task", "task transfer"),
    ]


def language() -> list[Run]:
    causal = f"--model_name_or_path {{data}}/llama {files('text', 'txt')} --block_size 16 --do_train --do_eval"
    unheld = f"{causal.replace(' --do_eval', '')} --eval_strategy no --num_train_epochs 1 --max_steps -1"
    masked = f"--model_name_or_path {{data}}/bert {files('text', 'txt')} --max_seq_length 16 --do_train --do_eval"
    return [
        *group("run_clm.py", "", causal, *CLASSIFY, "text2text", "peft adaptive-lr", f"{HEALS} peft"),
        *group("run_clm.py", "resumed", f"{causal} --resume_from_checkpoint {{again}}/checkpoint-4", "peft"),
        *group("run_clm.py", "from a stream", f"{causal} --streaming", "peft adaptive-lr", "text2text"),
        *group("run_clm.py", "without evaluation", unheld, "adaptive-lr", "text2text", HEALS),
        *group("run_mlm.py", "", masked, *CLASSIFY, "text2text"),
        *group("run_mlm.py", "by lines, padded", f"{masked} --line_by_line --pad_to_max_length", "adaptive-lr peft"),
    ]


def sequences() -> list[Run]:
    lengths = "--max_source_length 24 --max_target_length 24 --do_train --do_eval"
    translate = f"{files('pairs')} --source_lang en --target_lang fr {lengths}"
    bart, t5 = (f"--model_name_or_path {{data}}/{name} {translate}" for name in ("bart", "t5"))
    padded = f"{t5} --pad_to_max_length"
    writing = (
        f"{bart} --predict_with_generate --do_predict --test_file {{data}}/pairs_test.json --max_predict_samples 5"
    )
    summary = f"--model_name_or_path {{data}}/bart {files('summaries')} {lengths} --predict_with_generate"
    smoothed = f"{t5} --label_smoothing_factor 0.1"
    unheld = f"{bart.replace(' --do_eval', '')} --eval_strategy no"
    predict = f"{writing.replace(' --do_train --do_eval', '')} --eval_strategy no"
    together = "text2text peft adaptive-lr"
    return [
        *group("run_translation.py", "", t5, "adaptive-lr", "text2text", "peft", HEALS, "transfer", together),
        *group("run_translation.py", "padded", padded, "text2text", "adaptive-lr", "text2text peft"),
        *group("run_translation.py", "writing", writing, "text2text", "peft:export=merged", together),
        *group("run_translation.py", "smoothed", smoothed, "text2text"),
        *group("run_translation.py", "a size of batch that fits", f"{t5} --auto_find_batch_size", "text2text"),
        *group("run_translation.py", "by epochs", f"{bart} --max_steps -1 --num_train_epochs 1", "text2text", together),
        *group("run_translation.py", "without evaluation", unheld, "text2text", HEALS),
        *group("run_translation.py", "prediction alone", predict, "text2text", "peft"),
        *group("run_summarization.py", "", summary, "adaptive-lr", "text2text", "peft:export=both", HEALS, together),
    ]


def preferences() -> list[Run]:
    llama = "--model_name_or_path {data}/llama --max_length 32 --dataset_name {data}"
    sft, dpo, kto = (f"{llama}/{kind}" for kind in ("chats", "preferences", "votes"))
    own, other = "--use_peft", f"{dpo} --loss_type ipo --precompute_ref_log_probs"
    merged = "peft:export=merged"
    together = f"behavioral {merged} adaptive-lr"
    common = ("adaptive-lr", merged, HEALS, "behavioral")
    return [
        *group("trl.scripts.sft", "", sft, *common, "text2text", "peft adaptive-lr"),
        *group("trl.scripts.sft", "packed", f"{sft} --packing", "adaptive-lr", "peft", "text2text"),
        *group("trl.scripts.sft", "an adapter of its own", f"{sft} {own}", "adaptive-lr", "peft", HEALS),
        *group("trl.scripts.dpo", "", dpo, *common, "peft", together, "task"),
        *group("trl.scripts.dpo", "an adapter of its own", f"{dpo} {own}", "behavioral", "adaptive-lr"),
        *group("trl.scripts.dpo", "without evaluation", f"{dpo} --eval_strategy no", "behavioral peft", "adaptive-lr"),
        *group("trl.scripts.dpo", "another loss", other, "behavioral"),
        *group("trl.scripts.kto", "", kto, *common, "behavioral peft"),
        *group("trl.scripts.kto", "a size of batch that fits", f"{kto} --auto_find_batch_size", "behavioral"),
        *group("trl.scripts.reward", "", dpo, *common, "transfer", "task"),
    ]


def shared(run: Run) -> Sequence[str]:
    """The arguments that every run has."""
    every = str(max(2, run.steps // 3))
    # TRL's defaults ask for a GPU.
    trl = ("--bf16", "False", "--gradient_checkpointing", "False") if run.script.startswith("trl.") else ()
    return (
        *("--max_steps", str(run.steps), "--eval_strategy", "steps", "--eval_steps", every),
        *("--save_strategy", "steps", "--save_steps", every, "--logging_steps", "1", "--log_level", "info"),
        *(
            "--per_device_train_batch_size",
            "4",
            "--per_device_eval_batch_size",
            "4",
            "--use_cpu",
            "--report_to",
            "none",
        ),
        *trl,
    )
