"""A standard Trainer script, seconds long, that resumes; rank 1 kills itself at step 5, once, where `--killed` stands.

Rank 0 writes the sum of the weights' squares and the steps taken in this process to `ended.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

torch.set_num_threads(1)
torch.manual_seed(0)
shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=8, **shape))
rows = [{"input_ids": torch.arange(i, i + 8), "labels": i % 2} for i in range(20)]


class KilledOnce(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        mark = Path("killed")
        if "--killed" in sys.argv and args.process_index == 1 and state.global_step == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


counted = KilledOnce()
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        max_steps=10,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
    ),
    train_dataset=rows,
    eval_dataset=rows[:4],
    callbacks=[counted],
)
trainer.train()
if trainer.args.process_index == 0:
    total = sum(float(weight.detach().double().square().sum()) for weight in trainer.model.parameters())
    Path("ended.json").write_text(json.dumps({"weights": total, "steps": counted.steps}))
