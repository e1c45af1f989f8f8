"""A causal language model with a standard Trainer script: it learns to continue text, and writes a line at the end.

Nothing here knows of any plug-in. By default a small new Llama over bytes reads the reference pages that come with
Python (`pydoc`'s topics; no download); `--model_name` starts from a pretrained model, `--train_file` reads other text.

    python examples/continue_text.py
    hf-ft layer-removal curve runs/text --data README.md
    hf-ft run --with layer-removal:number=2,distill=1 examples/continue_text.py --model_name runs/text \\
        --output_dir runs/shorter --num_train_epochs 0.25 --learning_rate 1e-3
    hf-ft run --with peft:r=8,export=merged examples/continue_text.py --model_name runs/text --output_dir runs/adapted
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class ScriptArguments:
    model_name: str | None = field(default=None, metadata={"help": "pretrained model; default a small new Llama"})
    train_file: str | None = field(default=None, metadata={"help": "text; default Python's reference pages"})
    block_size: int = field(default=128, metadata={"help": "tokens of a row"})
    max_train_rows: int | None = field(default=None, metadata={"help": "train on so many rows"})
    prompt: str = field(default="The statement is", metadata={"help": "what the model continues at the end"})


@dataclass
class TextTrainingArguments(TrainingArguments):
    output_dir: str = "runs/text"
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 20
    per_device_train_batch_size: int = 16
    num_train_epochs: float = 4
    eval_strategy: str = "epoch"
    save_strategy: str = "no"
    logging_steps: float = 20
    report_to: str = "none"


def rows_of(tokenizer, text, block_size):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    blocks = [ids[start : start + block_size] for start in range(0, len(ids) - block_size + 1, block_size)]
    return [{"input_ids": block, "attention_mask": [1] * block_size, "labels": block} for block in blocks]


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, TextTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    if script.model_name:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name)
        model = AutoModelForCausalLM.from_pretrained(script.model_name)
    else:
        tokenizer = ByT5Tokenizer(extra_ids=0)
        size = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4}
        tokens = {"vocab_size": 384, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(**size, **tokens, max_position_embeddings=1024))
    text = Path(script.train_file).read_text(encoding="utf-8") if script.train_file else "\n".join(topics.values())
    rows = rows_of(tokenizer, text, script.block_size)
    # Every twentieth row is held out.
    train = [row for number, row in enumerate(rows) if number % 20][: script.max_train_rows]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=rows[::20],
        processing_class=tokenizer,
    )
    trainer.train()
    print(f"held-out perplexity: {math.exp(trainer.evaluate()['eval_loss']):.3f}")
    trainer.save_model()
    prompt = tokenizer(script.prompt, add_special_tokens=False, return_tensors="pt").to(trainer.model.device)
    with torch.no_grad():
        written = trainer.model.generate(**prompt, max_new_tokens=80, do_sample=False, pad_token_id=0)
    print(tokenizer.decode(written[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
