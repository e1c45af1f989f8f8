"""Instructions and answers with a standard Seq2SeqTrainer script and a causal model: built-in questions, or your own.

Nothing here knows of any plug-in. By default it trains a small new Llama over bytes to name languages, countries and
currencies in French, German and Spanish (Unicode's CLDR data, shipped with Babel; no download); `--data_folder` or
`--dataset_name` train on other pairs, and `--model_name` starts from a pretrained causal model.

    python examples/instruct_causal.py
    hf-ft compare --with text2text examples/instruct_causal.py
    hf-ft run --with text2text examples/instruct_causal.py --data_folder medquad --source question --target answer
"""

from dataclasses import dataclass, field

import numpy as np
from babel import Locale
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish"}
KINDS = {"languages": "language", "territories": "country or region", "currencies": "currency"}


@dataclass
class ScriptArguments:
    data_folder: str | None = field(default=None, metadata={"help": "folder with train, dev and test .jsonl(.gz)"})
    dataset_name: str | None = field(default=None, metadata={"help": "data set on the Hugging Face hub"})
    source: str = field(default="instruction", metadata={"help": "column of the instruction"})
    target: str = field(default="answer", metadata={"help": "column of the answer"})
    model_name: str | None = field(default=None, metadata={"help": "pretrained model; default a small new Llama"})
    max_train_examples: int | None = field(default=None, metadata={"help": "train on so many pairs"})
    max_eval_examples: int | None = field(default=None, metadata={"help": "evaluate on so many pairs"})
    max_length: int = field(default=256, metadata={"help": "longest instruction and longest answer in tokens"})
    max_new_tokens: int = field(default=48, metadata={"help": "longest generated answer in tokens"})


@dataclass
class InstructTrainingArguments(Seq2SeqTrainingArguments):
    output_dir: str = "runs/instruct"
    learning_rate: float = 5e-3
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    num_train_epochs: float = 8
    eval_strategy: str = "epoch"
    logging_steps: float = 20
    save_strategy: str = "no"
    warmup_steps: float = 40
    predict_with_generate: bool = True
    report_to: str = "none"


def questions() -> Dataset:
    """What languages, countries and currencies, named in English, are called in another language."""
    english, rows = Locale("en"), {}
    for code, language in LANGUAGES.items():
        for attribute, kind in KINDS.items():
            names = getattr(Locale(code), attribute)
            for key, name in getattr(english, attribute).items():
                if key in names:
                    rows[f"What is the {kind} {name} called in {language}?"] = names[key]
    return Dataset.from_dict({"instruction": list(rows), "answer": list(rows.values())})


def load_pairs(script: ScriptArguments, seed: int) -> DatasetDict:
    if script.data_folder:
        files = {split: f"{script.data_folder}/{split}.jsonl*" for split in ("train", "dev", "test")}
        return load_dataset("json", data_files=files)
    if script.dataset_name:
        return load_dataset(script.dataset_name)
    pairs = questions().shuffle(seed=seed)
    return DatasetDict(
        dev=pairs.select(range(300)), test=pairs.select(range(300, 600)), train=pairs.select(range(600, len(pairs)))
    )


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, InstructTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    pairs = load_pairs(script, args.data_seed or 0)
    for split, most in (
        ("train", script.max_train_examples),
        ("dev", script.max_eval_examples),
        ("test", script.max_eval_examples),
    ):
        pairs[split] = pairs[split].select(range(min(most or len(pairs[split]), len(pairs[split]))))

    if script.model_name:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(script.model_name)
    else:
        tokenizer = ByT5Tokenizer()
        size = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
        tokens = {"vocab_size": 384, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(**size, **tokens, max_position_embeddings=1024))
    model.generation_config.max_new_tokens = script.max_new_tokens

    def tokenize(rows):
        prompts = tokenizer([f"{text}\n" for text in rows[script.source]], add_special_tokens=False)["input_ids"]
        answers = tokenizer(list(rows[script.target]), add_special_tokens=False)["input_ids"]
        prompts = [ids[-script.max_length :] for ids in prompts]
        answers = [[*ids[: script.max_length - 1], tokenizer.eos_token_id] for ids in answers]
        both = list(zip(prompts, answers, strict=True))
        return {
            "input_ids": [prompt + answer for prompt, answer in both],
            "attention_mask": [[1] * len(prompt + answer) for prompt, answer in both],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in both],
        }

    tokenized = pairs.map(tokenize, batched=True, remove_columns=pairs["train"].column_names)

    def exact(prediction):
        predicted, labels = (
            np.where(ids < 0, tokenizer.pad_token_id, ids) for ids in (prediction.predictions, prediction.label_ids)
        )
        texts, references = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (predicted, labels))
        return {"exact": float(np.mean([text == reference for text, reference in zip(texts, references, strict=True)]))}

    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["dev"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
        compute_metrics=exact,
    )
    trainer.train()
    trainer.evaluate(tokenized["test"], metric_key_prefix="test")


if __name__ == "__main__":
    main()
