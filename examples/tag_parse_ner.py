"""One model that tags parts of speech, finds named entities and parses, with a standard Trainer script on CoNLL-U data.

`--train_file`, `--dev_file` and `--test_file` name CoNLL-U files (`.xz` and `.gz` too); a word's entity tag stands in
the MISC column as `NER=B-PER`, or in `--..._ner_file`s of the same sentences in IOB2. `--model_name_or_path` names an
encoder on the Hugging Face hub. Without them: where the folder `$FT_DATA` (default ../shared/data) holds them, the
English Web Treebank with the entities of Universal NER, and a small pretrained encoder; otherwise sentences by
a small grammar, with ambiguous and unknown words, and a small new network.

    python examples/tag_parse_ner.py
    hf-ft run --with multitask examples/tag_parse_ner.py
    hf-ft compare --with multitask examples/tag_parse_ner.py
"""

import gzip
import lzma
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_ft_plugins.techniques.multitask import MultiTaskCollator, MultiTaskMetrics, MultiTaskModel, TaskSpec

DATA = Path(os.environ.get("FT_DATA", "../shared/data"))
TREEBANK = {
    "train_file": "en_ewt-ud-train.conllu.xz",
    "dev_file": "en_ewt-ud-dev.conllu.xz",
    "test_file": "en_ewt-ud-test.conllu.xz",
    "train_ner_file": "uner_en_ewt-ud-train.PRERELEASE-0c7ce0d.iob2.xz",
    "dev_ner_file": "uner_en_ewt-ud-dev.iob2.xz",
    "test_ner_file": "uner_en_ewt-ud-test.iob2.xz",
}
TASKS = {
    "upos": TaskSpec(kind="token"),
    "ner": TaskSpec(kind="crf"),
    "parse": TaskSpec(kind="dependency", columns=("head", "deprel")),
}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "pretrained encoder; default see above"})
    train_file: str | None = field(default=None, metadata={"help": "CoNLL-U file to train on; default see above"})
    dev_file: str | None = field(default=None, metadata={"help": "CoNLL-U file to evaluate on while training"})
    test_file: str | None = field(default=None, metadata={"help": "CoNLL-U file to evaluate on at the end"})
    train_ner_file: str | None = field(default=None, metadata={"help": "entity tags of train_file, in IOB2"})
    dev_ner_file: str | None = field(default=None, metadata={"help": "entity tags of dev_file, in IOB2"})
    test_ner_file: str | None = field(default=None, metadata={"help": "entity tags of test_file, in IOB2"})
    max_train_examples: int | None = field(default=2000, metadata={"help": "sentences to train on; 0 for all"})
    max_eval_examples: int | None = field(default=300, metadata={"help": "sentences to evaluate on; 0 for all"})


@dataclass
class TaggingTrainingArguments(TrainingArguments):
    output_dir: str = "runs/tag_parse_ner"
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 16
    per_device_eval_batch_size: int = 64
    num_train_epochs: float = 2
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 20
    eval_strategy: str = "steps"
    eval_steps: float = 50
    save_strategy: str = "steps"
    save_steps: float = 50
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "multitask_score"
    logging_steps: float = 25
    # The collator reads the columns of words and labels.
    remove_unused_columns: bool = False


def lines_of(file: str) -> list[str]:
    opened = {".xz": lzma.open, ".gz": gzip.open}.get(Path(file).suffix, open)
    with opened(file, "rt", encoding="utf-8") as stream:
        return stream.read().splitlines()


def blocks_of(file: str, columns: int) -> list[list[list[str]]]:
    """The sentences of a file of columns: for each the fields of its lines, comments left out."""
    blocks: list[list[list[str]]] = [[]]
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip():
            blocks.append([])
        elif not line.startswith("#"):
            fields = line.split("\t")
            if len(fields) < columns:
                raise ValueError(
                    f"{file}, line {number}: {len(fields)} columns between tabs, and {columns} are wanted."
                )
            if columns == 10 and fields[0].isdigit() and not fields[6].isdecimal():
                raise ValueError(f"{file}, line {number}: the head is {fields[6]!r}, and must be a word's number or 0.")
            blocks[-1].append(fields)
    return [block for block in blocks if block]


def read_conllu(file: str, ner_file: str | None) -> list[dict]:
    """Sentences with words, tags, heads and relations; entity tags are None where the files' words differ."""
    rows = []
    for block in blocks_of(file, columns=10):
        # 1-2 is a word written as one and analysed as two; 1.1 is a word that is not written.
        words = [fields for fields in block if fields[0].isdigit()]
        rows.append(
            {
                "tokens": [fields[1] for fields in words],
                "upos": [fields[3] for fields in words],
                "head": [int(fields[6]) for fields in words],
                "deprel": [fields[7] for fields in words],
                "ner": [dict(pair.partition("=")[::2] for pair in fields[9].split("|")).get("NER") for fields in words],
            }
        )
    entities = {}
    for block in blocks_of(ner_file, columns=3) if ner_file else []:
        entities.setdefault(tuple(fields[1] for fields in block), [fields[2] for fields in block])
    for row in rows:
        tags = entities.get(tuple(row["tokens"]), row["ner"])
        row["ner"] = iob2(tags) if all(tag is not None for tag in tags) else None
    return rows


def iob2(tags: list[str]) -> list[str]:
    """Entity tags of persons, places and organizations alone, each entity's first tag a B-."""
    kept: list[str] = []
    for tag in tags:
        kind = tag[2:] if tag[2:] in ("PER", "LOC", "ORG") else ""
        goes_on = bool(kind) and tag.startswith("I-") and bool(kept) and kept[-1][2:] == kind
        kept.append((f"I-{kind}" if goes_on else f"B-{kind}") if kind else "O")
    return kept


# In training, and in dev and test sets alone. Some names are a person's, a place's and a firm's, and some forms are
# both nouns and verbs.
MADE_UP_WORDS = {
    "PER": (["Anna", "Karim", "Mei", "Tom", "Paris", "Jordan", "Austin"], ["Ines", "Olu", "Sydney"]),
    "LOC": (["Rome", "Kyoto", "Lima", "Paris", "Jordan", "Austin"], ["Oslo", "Quito", "Sydney"]),
    "ORG": (["Acme", "Orbis", "Paris", "Jordan", "Austin"], ["Valda", "Nexo"]),
    "ADJ": (["old", "red", "quiet", "light", "square"], ["round", "strange"]),
    "NOUN": (["cat", "river", "teacher", "letter", "light", "square"], ["judge", "garden"]),
    "plural": (["cooks", "watches", "trains", "cats", "letters"], ["judges", "gardens"]),
    "tool": (["brush", "lens", "light"], ["ladder"]),
    "VERB": (["sees", "likes", "cooks", "watches", "trains", "draws"], ["judges", "paints"]),
}


def made_up(size: int, seed: int, unknown: float = 0.0) -> list[dict]:
    """Sentences such as 'the old cook sees Jordan Acme with a lens', with their trees; nobody can be sure of all of it.

    `unknown` is the share of words from the lists of those that the training set does not have.
    """
    draw = random.Random(seed)

    def sentence() -> list[list]:
        words: list[list] = []

        def add(form: str, tag: str, head: int | None, relation: str, entity: str = "O") -> int:
            """The number of the word, from 1; head None is the verb."""
            words.append([form, tag, head, relation, entity])
            return len(words)

        def drawn(kind: str) -> str:
            return draw.choice(MADE_UP_WORDS[kind][draw.random() < unknown])

        def name(kind: str, head: int | None, relation: str) -> None:
            first = add(drawn(kind), "PROPN", head, relation, f"B-{kind}")
            if kind != "LOC" and draw.random() < 0.3:
                add(drawn(kind), "PROPN", first, "flat", f"I-{kind}")

        def phrase(head: int | None, relation: str, noun: str = "NOUN") -> int:
            """A noun with what stands before it; where its number is given away, the noun's."""
            noun = "plural" if noun == "NOUN" and draw.random() < 0.3 else noun
            before = [("the", "DET", "det")] if noun != "plural" else []
            before += [(drawn("ADJ"), "ADJ", "amod")] if draw.random() < 0.4 else []
            number = len(words) + len(before) + 1
            for form, tag, role in before:
                add(form, tag, number, role)
            return add(drawn(noun), "NOUN", head, relation)

        def who(relation: str) -> int | None:
            if draw.random() < 0.5:
                return phrase(None, relation)
            name("PER" if draw.random() < 0.7 else "ORG", None, relation)
            return None

        who("nsubj")
        verb = add(drawn("VERB"), "VERB", 0, "root")
        noun = who("obj")
        if draw.random() < 0.5:
            # Tools mostly go with what is done, other things mostly with what it is done to.
            tool = draw.random() < 0.5
            of_noun = noun is not None and draw.random() < (0.15 if tool else 0.85)
            preposition = len(words)
            add("with", "ADP", None, "case")
            thing = phrase(noun if of_noun else None, "nmod" if of_noun else "obl", "tool" if tool else "NOUN")
            words[preposition][2] = thing
        if draw.random() < 0.5:
            add(draw.choice(["in", "for"]), "ADP", len(words) + 2, "case")
            place = draw.random() < (0.9 if words[-1][0] == "in" else 0.2)
            name("LOC" if place else "ORG", None, "obl")
        for word in words:
            word[2] = verb if word[2] is None else word[2]
        return words

    columns = ("tokens", "upos", "head", "deprel", "ner")
    return [dict(zip(columns, map(list, zip(*sentence(), strict=True)), strict=True)) for _ in range(size)]


def small_network(rows: list[dict]) -> tuple[PreTrainedTokenizerFast, BertModel]:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for row in rows for word in row["tokens"]})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **size))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"), model


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, TaggingTrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    at_hand = script.train_file is None and (DATA / "ud_ewt_ner").is_dir()
    if at_hand:
        for name, file in TREEBANK.items():
            setattr(script, name, str(DATA / "ud_ewt_ner" / file))
    if script.train_file:
        train = read_conllu(script.train_file, script.train_ner_file)
        dev = read_conllu(script.dev_file or script.train_file, script.dev_ner_file or script.train_ner_file)
        test = read_conllu(script.test_file, script.test_ner_file) if script.test_file else dev
    else:
        train = made_up(1000, seed=1)
        dev, test = made_up(200, seed=2, unknown=0.15), made_up(200, seed=3, unknown=0.15)
    # Relations that occur in the dev or test set alone are labels, too.
    every = [*train, *dev, *test]
    tasks = {name: spec for name, spec in TASKS.items() if name != "ner" or any(row["ner"] for row in every)}
    random.Random(args.seed).shuffle(train)
    train, dev, test = (
        rows[: limit or None]
        for rows, limit in (
            (train, script.max_train_examples),
            (dev, script.max_eval_examples),
            (test, script.max_eval_examples),
        )
    )

    checkpoint = script.model_name_or_path
    if checkpoint is None and script.train_file and (DATA / "ckpt_minilm_l6").is_dir():
        checkpoint = str(DATA / "ckpt_minilm_l6")
    if checkpoint is not None:
        tokenizer, encoder = AutoTokenizer.from_pretrained(checkpoint), checkpoint
    else:
        tokenizer, encoder = small_network(train)
        args.learning_rate *= 10
    model = MultiTaskModel.from_encoder(encoder, tasks, every, seed=args.seed)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=MultiTaskCollator(tokenizer, model),
        compute_metrics=MultiTaskMetrics(model.specs),
        processing_class=tokenizer,
    )
    trainer.train()
    print(trainer.evaluate(test, metric_key_prefix="test"))
    trainer.save_model()


if __name__ == "__main__":
    main()
