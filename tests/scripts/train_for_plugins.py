"""A standard Trainer script, seconds long; `--own_scheduler` makes it bring its own learning-rate scheduler.

Prints one line of JSON: the logged learning rates and the sum of the weights.
"""

import json
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, get_constant_schedule

torch.set_num_threads(1)
torch.manual_seed(0)
shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
model = BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=8, **shape))
rows = [{"input_ids": torch.arange(i, i + 8), "labels": i % 2} for i in range(20)]

optimizers = (None, None)
if "--own_scheduler" in sys.argv:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizers = (optimizer, get_constant_schedule(optimizer))

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        "out",
        max_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    ),
    train_dataset=rows,
    eval_dataset=rows[:4],
    optimizers=optimizers,
)
trainer.train()
rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
weights = sum(parameter.double().sum().item() for parameter in model.parameters())
print(json.dumps({"rates": rates, "weights": weights}))
