"""Text classification with a standard Trainer script: are these sentences positive or negative, where positive is rare?

Nothing here knows of any plug-in. `--dataset_name` and `--model_name_or_path` name a data set and a model on the
Hugging Face hub. Without them: where the folder `$FT_DATA` (default ../shared/data) holds them, film reviews (MR, Pang
and Lee 2005) and a small pretrained encoder; otherwise sentences made from a few dozen words, and a small new network.
Of these positive training and dev texts one in twenty is kept; the test set has as many of each class.

    python examples/sentiment.py
    hf-ft compare --seeds 3 --with task:imbalance=logit_adjust,frequencies=equal examples/sentiment.py

With `--keep_positive 1` the classes are balanced and `task` trains as Trainer does: what it adds is a report and
calibrated probabilities, and the comparison shows no difference beyond the noise.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

DATA = Path(os.environ.get("FT_DATA", "../shared/data"))
NAMES = ["negative", "positive"]


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "pretrained model; default see above"})
    dataset_name: str | None = field(default=None, metadata={"help": "data set with text and label; default see above"})
    max_length: int = field(default=48, metadata={"help": "tokens, longer texts are cut"})
    max_train_examples: int | None = field(default=1000, metadata={"help": "texts to train on; 0 for all"})
    keep_positive: float | None = field(
        default=None, metadata={"help": "share of the positive training and dev texts kept; default see above"}
    )


@dataclass
class SentimentTrainingArguments(TrainingArguments):
    output_dir: str = "runs/sentiment"
    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 64
    num_train_epochs: float = 3
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "macro_f1"
    logging_steps: float = 10
    warmup_steps: float = 10


def made_up(size: int, seed: int) -> Dataset:
    """Sentences by a template. One word in five is of the other mood, so that nobody can be sure."""
    words = {
        0: ["dull", "clumsy", "tiresome", "hollow", "bland", "lifeless", "muddled", "shallow", "stale", "grating"],
        1: ["warm", "witty", "graceful", "gripping", "tender", "fresh", "lively", "charming", "sharp", "moving"],
    }
    things = ["film", "story", "cast", "script", "ending", "music", "camera", "dialogue"]
    frames = ["the {0} is {1}", "a {1} {0} with a {3} {2}", "what a {1} {0}", "its {0} feels {1} and its {2} {3}"]
    draw = random.Random(seed)

    def sentence(label: int) -> str:
        def mood() -> str:
            return draw.choice(words[label if draw.random() < 0.8 else 1 - label])

        return draw.choice(frames).format(draw.choice(things), mood(), draw.choice(things), mood())

    labels = [draw.randrange(2) for _ in range(size)]
    return Dataset.from_dict({"text": [sentence(label) for label in labels], "label": labels})


def load_texts(script: ScriptArguments) -> DatasetDict:
    if script.dataset_name:
        texts = load_dataset(script.dataset_name)
        if "validation" in texts:
            texts["dev"] = texts.pop("validation")
        return texts
    if (DATA / "sentiment_mr").is_dir():
        files = {part: str(DATA / "sentiment_mr" / f"{part}.jsonl.gz") for part in ("train", "dev", "test")}
        texts = load_dataset("json", data_files=files)
    else:
        texts = DatasetDict(train=made_up(2000, seed=1), dev=made_up(500, seed=2), test=made_up(500, seed=3))
    return texts.cast_column("label", ClassLabel(names=NAMES))


def small_network(texts: Dataset) -> tuple[PreTrainedTokenizerFast, BertForSequenceClassification]:
    """A BERT of two layers, and a tokenizer of the training set's words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in texts["text"] for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), max_position_embeddings=64, **size))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"), model


def compute_metrics(prediction) -> dict[str, float]:
    labels, chosen = prediction.label_ids, prediction.predictions.argmax(-1)
    return {"accuracy": accuracy_score(labels, chosen), "macro_f1": f1_score(labels, chosen, average="macro")}


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, SentimentTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    texts = load_texts(script)
    texts["train"] = texts["train"].shuffle(seed=args.seed)
    kept = script.keep_positive if script.keep_positive is not None else 1.0 if script.dataset_name else 0.05
    if kept < 1:
        draw = random.Random(args.seed)
        for part in ("train", "dev"):
            texts[part] = texts[part].filter(lambda row: row["label"] != 1 or draw.random() < kept)
    if script.max_train_examples:
        texts["train"] = texts["train"].select(range(min(script.max_train_examples, len(texts["train"]))))

    checkpoint = script.model_name_or_path
    if checkpoint is None and not script.dataset_name and (DATA / "ckpt_minilm_l6").is_dir():
        checkpoint = str(DATA / "ckpt_minilm_l6")
    if checkpoint is not None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        names = texts["train"].features["label"].names
        labels = {"num_labels": len(names), "id2label": dict(enumerate(names))}
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, **labels)
    else:
        tokenizer, model = small_network(texts["train"])
        args.learning_rate *= 20

    def tokenize(rows):
        return tokenizer(rows["text"], truncation=True, max_length=script.max_length)

    tokenized = texts.map(tokenize, batched=True)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["dev"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.evaluate(tokenized["test"], metric_key_prefix="test")
    trainer.save_model()


if __name__ == "__main__":
    main()
