"""A Trainer script that seeds nothing: its weights, its rows and their order are drawn anew in every process."""

import os  # noqa: F401
import random

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

random_rows = np.random.default_rng()
rows = [{"input_ids": torch.tensor(random_rows.integers(0, 32, 8)), "labels": random.randrange(2)} for _ in range(24)]
np.random.shuffle(rows)
# The weights of a new model.
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
)
arguments = TrainingArguments(
    output_dir="runs",
    learning_rate=1e-2,
    per_device_train_batch_size=4,
    max_steps=6,
    eval_strategy="steps",
    eval_steps=2,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
trainer = Trainer(
    model=model,
    args=arguments,
    train_dataset=rows[:16],
    eval_dataset=rows[16:],
    compute_metrics=lambda prediction: {
        "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
    },
)
trainer.train()
