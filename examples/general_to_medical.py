"""A causal language model learns one of three stages with a standard Trainer script: general text, medical text, and
medical questions with their answers.

Nothing here knows of any plug-in, or of the other stages. By default a small new Llama over bytes reads the reference
pages that come with Python (`pydoc`'s topics), sentences that are made from a table of illnesses, and questions about
that table (no download). `--train_file` and `--eval_file` name other data: text, or JSON lines with `text`, or
`question` and `answer`; `--data_dir` is a folder with `ckpt_books_lm`, `wikitext2` and `medquad`.

    hf-ft stages examples/general_to_medical.yaml

is, without its recipe,

    hf-ft run --with sequential:folder=stages,stage=general examples/general_to_medical.py --stage general
    hf-ft run --with sequential:folder=stages,stage=medical examples/general_to_medical.py --stage medical \\
        --model_name_or_path stages/general/model
    hf-ft run --with sequential:folder=stages,stage=answers examples/general_to_medical.py --stage answers \\
        --model_name_or_path stages/medical/model --max_steps 250
"""

import gzip
import json
import math
import random
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

# Name, what it is, signs, cause, treatment.
ILLNESSES = [
    ("asthma", "a disease of the airways", "wheezing and a tight chest", "swollen airways", "an inhaler"),
    ("measles", "an infection of the whole body", "fever and a red rash", "a virus in the air", "rest and fluids"),
    ("gout", "a disease of the joints", "a hot and painful toe", "crystals of uric acid", "drugs against swelling"),
    ("migraine", "a disease of the nerves", "a throbbing headache", "nerves that react too strongly", "a dark room"),
    ("anemia", "a disease of the blood", "tiredness and pale skin", "too little iron", "tablets of iron"),
    ("malaria", "an infection of the blood", "chills and high fever", "the bite of a mosquito", "tablets"),
    ("glaucoma", "a disease of the eye", "a narrow field of view", "high pressure in the eye", "drops that lower it"),
    ("pneumonia", "an infection of the lungs", "a cough and short breath", "bacteria or a virus", "an antibiotic"),
    ("epilepsy", "a disease of the brain", "seizures", "bursts of signals in the brain", "drugs taken each day"),
    ("diabetes", "a disease of the blood sugar", "thirst and weight loss", "too little insulin", "diet and insulin"),
    ("tonsillitis", "an infection of the throat", "pain when swallowing", "a virus or bacteria", "warm drinks"),
]
STATEMENTS = [
    "{name} is {kind}.",
    "the signs of {name} are {signs}.",
    "{name} is caused by {cause}.",
    "{name} is treated with {treatment}.",
]
REMARKS = ["see a doctor if it lasts.", "most people get well.", "it is found in all ages.", "an early test helps."]
QUESTIONS = [
    ("what is {name}?", "can you explain {name}?", "what do doctors call {name}?"),
    ("what are the signs of {name}?", "how do I notice {name}?", "which signs does {name} have?"),
    ("what causes {name}?", "where does {name} come from?", "why do people get {name}?"),
    ("how is {name} treated?", "what helps against {name}?", "what does a doctor do about {name}?"),
]
TEXTS = ("wikitext2/wiki.train.tokens.txt.gz", "wikitext2/wiki.validation.tokens.txt.gz")
ANSWERS = ("medquad/train.jsonl.gz", "medquad/dev.jsonl.gz")
FILES = {"general": TEXTS, "medical": ANSWERS, "answers": ANSWERS}
PROMPTS = {"general": "The statement is", "medical": "Asthma is", "answers": "Question: What causes asthma?\nAnswer:"}


@dataclass
class ScriptArguments:
    stage: str = field(default="general", metadata={"help": "what is learned", "choices": list(FILES)})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "model to start from; default data_dir's, or a small new Llama"}
    )
    train_file: str | None = field(default=None, metadata={"help": "text or JSON lines, which may be gzipped"})
    eval_file: str | None = field(default=None, metadata={"help": "the same; default every twentieth training row"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with ckpt_books_lm, wikitext2 and medquad"})
    block_size: int = field(default=128, metadata={"help": "tokens of a row at most"})
    max_texts: int | None = field(default=None, metadata={"help": "read so many lines of a file"})


@dataclass
class StageTrainingArguments(TrainingArguments):
    output_dir: str = "runs/stage"
    learning_rate: float = 3e-3
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 10
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 32
    max_steps: int = 140
    eval_strategy: str = "steps"
    eval_steps: float = 70
    save_strategy: str = "steps"
    save_steps: float = 20
    save_total_limit: int = 2
    logging_steps: float = 20
    report_to: str = "none"


def sentence(template, illness):
    text = template.format(**dict(zip(("name", "kind", "signs", "cause", "treatment"), illness, strict=True)))
    return text[0].upper() + text[1:]


def made_up_texts(count, seed=0):
    """Texts of some statements about one illness each, in any order."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        illness = chance.choice(ILLNESSES)
        chosen = [*chance.sample(STATEMENTS, 3), chance.choice(REMARKS)]
        texts.append(" ".join(sentence(one, illness) for one in chosen))
    return [{"text": text} for text in texts]


def made_up_questions(seed=0):
    """Questions about each illness; those to evaluate by ask in other words what the others ask."""
    chance = random.Random(seed)
    train, held_out = [], []
    for illness in ILLNESSES:
        for statement, wordings in zip(STATEMENTS, QUESTIONS, strict=True):
            rows = [{"question": sentence(one, illness), "answer": sentence(statement, illness)} for one in wordings]
            held_out.append(rows.pop(chance.randrange(len(rows))))
            train += rows
    return train, held_out


def read(file, most):
    opener, is_json = gzip.open if str(file).endswith(".gz") else open, ".json" in Path(file).name
    with opener(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) if is_json else {"text": line.rstrip("\n")} for line in islice(lines, most)]


def texts_of(script):
    """What is trained on and what is evaluated by; None: a share of the former."""
    if script.train_file or script.data_dir:
        given = (script.train_file, script.eval_file)
        named = given if script.train_file else [Path(script.data_dir) / file for file in FILES[script.stage]]
        return tuple(file and read(file, script.max_texts) for file in named)
    if script.stage == "general":
        return [{"text": text} for text in topics.values()], None
    return made_up_questions() if script.stage == "answers" else (made_up_texts(1500), None)


def blocks(tokenizer, texts, size):
    """Rows of `size` tokens, of one text behind the other."""
    joined = "\n".join(one["text"] if "text" in one else one["answer"] for one in texts)
    ids = tokenizer(joined, add_special_tokens=False)["input_ids"]
    rows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return [{"input_ids": row, "labels": row} for row in rows]


def answered(tokenizer, texts, size):
    """A row for each question; only the answer is learned."""
    rows = []
    for one in texts:
        prompt = tokenizer(f"Question: {one['question']}\nAnswer:", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f" {one['answer']}", add_special_tokens=False)["input_ids"]
        ids = [*prompt, *answer, tokenizer.eos_token_id][:size]
        if len(ids) > len(prompt):
            rows.append({"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]})
    return rows


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, StageTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    start = script.model_name_or_path or (script.data_dir and Path(script.data_dir) / "ckpt_books_lm")
    if start:
        tokenizer = AutoTokenizer.from_pretrained(start)
        model = AutoModelForCausalLM.from_pretrained(start)
    else:
        tokenizer = ByT5Tokenizer(extra_ids=0)
        size = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        tokens = {"vocab_size": 384, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(**size, **tokens, max_position_embeddings=512))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows_of = answered if script.stage == "answers" else blocks
    train, held_out = (texts and rows_of(tokenizer, texts, script.block_size) for texts in texts_of(script))
    if held_out is None:
        held_out, train = train[::20], [row for number, row in enumerate(train) if number % 20]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    print(f"held-out perplexity: {math.exp(trainer.evaluate()['eval_loss']):.3f}")
    trainer.save_model()
    prompt = tokenizer(PROMPTS[script.stage], add_special_tokens=False, return_tensors="pt").to(trainer.model.device)
    with torch.no_grad():
        written = trainer.model.generate(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=80,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    print(tokenizer.decode(written[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
