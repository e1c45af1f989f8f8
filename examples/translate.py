"""Translation with a standard Seq2SeqTrainer script: English to French, or any two columns you name.

Nothing here knows of any plug-in. By default it trains a small new T5 over bytes on the names of languages, countries
and currencies in both languages (Unicode's CLDR data, shipped with Babel; no download); `--data_folder` or
`--dataset_name` train on other pairs, and `--model_name` starts from a pretrained encoder-decoder.

    python examples/translate.py
    hf-ft compare --with text2text examples/translate.py
    hf-ft run --with text2text examples/translate.py --data_folder tatoeba_eng_fra --source en --target fr
"""

from dataclasses import dataclass, field

import numpy as np
from babel import Locale
from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)


@dataclass
class ScriptArguments:
    data_folder: str | None = field(default=None, metadata={"help": "folder with train, dev and test .jsonl(.gz)"})
    dataset_name: str | None = field(default=None, metadata={"help": "data set on the Hugging Face hub"})
    source: str = field(default="en", metadata={"help": "column of the input text"})
    target: str = field(default="fr", metadata={"help": "column of the output text"})
    model_name: str | None = field(default=None, metadata={"help": "pretrained model; default a small new T5"})
    max_train_examples: int | None = field(default=None, metadata={"help": "train on so many pairs"})
    max_length: int = field(default=128, metadata={"help": "longest source and target in tokens"})


@dataclass
class TranslateTrainingArguments(Seq2SeqTrainingArguments):
    output_dir: str = "runs/translate"
    learning_rate: float = 2e-3
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    num_train_epochs: float = 20
    eval_strategy: str = "epoch"
    logging_steps: float = 20
    save_strategy: str = "no"
    warmup_steps: float = 40
    predict_with_generate: bool = True
    generation_max_length: int = 48
    report_to: str = "none"


def names_in_both_languages() -> Dataset:
    """What English and French call the same language, country or currency."""
    english, french = Locale("en"), Locale("fr")
    pairs = {
        (names[code], getattr(french, kind)[code])
        for kind in ("languages", "territories", "currencies", "scripts", "variants")
        for names in [getattr(english, kind)]
        for code in names
        if code in getattr(french, kind)
    }
    return Dataset.from_list([{"en": source, "fr": target} for source, target in sorted(pairs)])


def load_pairs(script: ScriptArguments, seed: int) -> DatasetDict:
    if script.data_folder:
        files = {split: f"{script.data_folder}/{split}.jsonl*" for split in ("train", "dev", "test")}
        return load_dataset("json", data_files=files)
    if script.dataset_name:
        return load_dataset(script.dataset_name)
    pairs = names_in_both_languages().shuffle(seed=seed)
    # Full batches: Seq2SeqTrainer counts a last one that is not as if it were.
    size = 128
    return DatasetDict(
        dev=pairs.select(range(size)),
        test=pairs.select(range(size, 2 * size)),
        train=pairs.select(range(2 * size, len(pairs))),
    )


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, TranslateTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    pairs = load_pairs(script, args.seed)
    if script.max_train_examples:
        pairs["train"] = pairs["train"].select(range(min(script.max_train_examples, len(pairs["train"]))))

    if script.model_name:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name)
        model = AutoModelForSeq2SeqLM.from_pretrained(script.model_name)
    else:
        tokenizer = ByT5Tokenizer()
        size = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(vocab_size=384, decoder_start_token_id=0, pad_token_id=0, **size))

    def tokenize(rows):
        limits = {"max_length": script.max_length, "truncation": True}
        return tokenizer(rows[script.source], text_target=rows[script.target], **limits)

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
    trainer.log(trainer.evaluate(tokenized["test"], metric_key_prefix="test"))


if __name__ == "__main__":
    main()
