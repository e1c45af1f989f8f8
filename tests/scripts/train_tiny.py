"""A standard Trainer script, on a tiny classifier and made-up sentences; it knows of no plug-in.

Each process writes `result-RANK.json` into its output_dir: a digest of its weights, its log, the examples that it saw.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)


@dataclass
class TinyTrainingArguments(TrainingArguments):
    output_dir: str = "runs/tiny"
    learning_rate: float = 1e-2
    per_device_train_batch_size: int = 4
    max_steps: int = 12
    eval_strategy: str = "steps"
    eval_steps: float = 3
    logging_steps: float = 1
    save_strategy: str = "no"
    report_to: str = "none"
    disable_tqdm: bool = True
    use_cpu: bool = True
    remove_unused_columns: bool = False


def sentences(size, seed):
    tokens = torch.randint(32, (size, 8), generator=torch.Generator().manual_seed(seed))
    return [{"example": i, "input_ids": row, "labels": int(row[0] >= 16)} for i, row in enumerate(tokens)]


def digest(model):
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().contiguous().numpy().tobytes())
    return content.hexdigest()


def train(argv=None, trainer_class=Trainer, callbacks=()):
    (args,) = HfArgumentParser(TinyTrainingArguments).parse_args_into_dataclasses(argv)
    # A different number of threads changes the last bits of a sum.
    torch.set_num_threads(1)
    set_seed(args.seed)
    config = BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    seen = []

    def collate(examples):
        seen.extend(example["example"] for example in examples if "example" in example)
        return {
            "input_ids": torch.stack([example["input_ids"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    trainer = trainer_class(
        model=BertForSequenceClassification(config),
        args=args,
        train_dataset=sentences(32, seed=0),
        eval_dataset=[{**row, "example": -1} for row in sentences(16, seed=1)],
        data_collator=collate,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    result = {
        "rank": args.process_index,
        "world_size": args.world_size,
        "weights": digest(trainer.model),
        "log": trainer.state.log_history,
        "seen": [example for example in seen if example >= 0],
    }
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / f"result-{args.process_index}.json").write_text(json.dumps(result))
    print("weights", result["weights"])
    return result


if __name__ == "__main__":
    train()
