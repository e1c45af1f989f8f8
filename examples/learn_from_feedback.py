"""What people did with a chatbot improves the chatbot: a standard DPO script, fed a log.

The log becomes pairs of answers (`load_feedback`); the rest is TRL's. By default a small new Llama over bytes learns
from a built-in log which answers people liked (no download); `--log` reads your own, in any format that
`hf-ft behavioral inspect` knows, and `--model_name` starts from a pretrained chat model.

    python examples/learn_from_feedback.py
    hf-ft compare --with behavioral examples/learn_from_feedback.py
    hf-ft run --with behavioral examples/learn_from_feedback.py --log export.json --model_name your/chat-model
"""

import copy
import json
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)
from trl import DPOConfig, DPOTrainer

from hf_ft_plugins.techniques.behavioral import load_feedback

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HELPFUL = ("Gladly. {} {} for you: {}.", "Here you are, {} {}: {}.", "Of course! {} {}, say {}.")
CURT = ("No {} {} today. {}.", "{} {}? Ask somebody else. {}.", "I do not do {} {}. {}.")
SYLLABLES = ("ba", "co", "di", "fu", "ga", "hi", "jo", "ku", "la", "me", "no", "pi", "ro", "su", "ta", "ve")
FLIPPED = 0.3


@dataclass
class ScriptArguments:
    log: str | None = field(default=None, metadata={"help": "the chatbot's log, a file or folder; default: built-in"})
    model_name: str | None = field(default=None, metadata={"help": "pretrained chat model; default a small new Llama"})


@dataclass
class FeedbackArguments(DPOConfig):
    output_dir: str = "runs/feedback"
    learning_rate: float = 2e-3
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    num_train_epochs: float = 3
    max_length: int | None = 256
    eval_strategy: str = "epoch"
    logging_steps: float = 10
    save_strategy: str = "no"
    bf16: bool = torch.cuda.is_available()
    gradient_checkpointing: bool = False
    report_to: str = "none"


def write_log(path: Path, conversations: int = 800) -> None:
    """Questions, two answers to each, one helpful, and what people did: few votes, many that asked again.

    To ask again, and copy the second answer, is the weaker sign: three times in ten it was the curt one.
    """
    generator = random.Random(0)

    def word() -> str:
        return "".join(generator.choices(SYLLABLES, k=4))

    lines = []
    for number in range(conversations):
        words = (word(), word(), word())
        asked, first, second = (f"{number}-{part}" for part in ("asked", "first", "second"))
        votes = number % 4 == 0
        liked, other = generator.choice(HELPFUL).format(*words), generator.choice(CURT).format(*words)
        if not votes and generator.random() < FLIPPED:
            liked, other = other, liked
        texts = [(asked, None, "user", f"Please find me {words[0]} {words[1]}.")]
        texts += [(first, asked, "assistant", other), (second, asked, "assistant", liked)]
        lines += [
            {"table": "message", "id": name, "parent_id": parent, "role": role, "content": text}
            for name, parent, role, text in texts
        ]
        user = f"user-{generator.randrange(conversations // 4)}"
        event = {"table": "event", "id": f"{number}", "ts": number, "user": user, "message_id": first}
        if votes:
            lines.append(event | {"type": "choice", "value": second, "candidates": [first, second]})
        else:
            lines.append(event | {"type": "regenerate", "value": second})
            lines.append(event | {"id": f"{number}-copy", "ts": number + 1, "type": "copy", "message_id": second})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, FeedbackArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    if script.model_name is None:
        tokenizer = ByT5Tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=384,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=256,
            )
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name)
        model = AutoModelForCausalLM.from_pretrained(script.model_name)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(script.log) if script.log else Path(folder, "log.jsonl")
        if script.log is None:
            write_log(log)
        train, held_out = (load_feedback(log, "pairs", split=split) for split in ("train", "eval"))
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    main()
