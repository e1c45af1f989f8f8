"""`multitask` on a BERT of two layers that tags, parses and classifies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ...techniques.multitask import MultiTask
from ...techniques.multitask.collator import MultiTaskCollator
from ...techniques.multitask.data import multitask_dataset
from ...techniques.multitask.heads.model import MultiTaskModel
from ...techniques.multitask.tasks import TaskSpec
from ..example import Example

WORDS = ("red", "old", "cat", "dog", "sees", "likes", "Anna", "Rome", "the", "a", "gladly", "sadly")
TAGS = ("ADJ", "ADJ", "NOUN", "NOUN", "VERB", "VERB", "NAME", "NAME", "DET", "DET", "ADV", "ADV")
TASKS = {
    "tag": TaskSpec(kind="token", labels=("ADJ", "ADV", "DET", "NAME", "NOUN", "VERB")),
    "parse": TaskSpec(kind="dependency", labels=("dep", "root"), options={"arc_dim": 8, "label_dim": 4}),
    "mood": TaskSpec(kind="sequence", labels=("glad", "sad")),
}


def tiny_tagged(size: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 3 to 6 random words with tags (`tag`) and a chain as tree (`head`, `deprel`)."""
    draw = random.Random(seed)
    rows = []
    for _ in range(size):
        places = [draw.randrange(len(WORDS)) for _ in range(draw.randint(3, 6))]
        rows.append(
            {
                "tokens": [WORDS[place] for place in places],
                "tag": [TAGS[place] for place in places],
                "head": list(range(len(places))),
                "deprel": ["root"] + ["dep"] * (len(places) - 1),
            }
        )
    return rows


def tiny_moods(size: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of words with a class (`mood`): whether the last word is 'gladly'."""
    draw = random.Random(seed)
    rows = []
    for _ in range(size):
        mood = draw.choice(["glad", "sad"])
        rows.append({"tokens": [*draw.choices(WORDS[:10], k=3), f"{mood}ly"], "mood": mood})
    return rows


def tiny_tokenizer() -> Any:
    """A word-level fast tokenizer of `WORDS`, with [CLS] and [SEP]; `cat` and `dog` have two tokens."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "c",
        "##at",
        "d",
        "##og",
        *(w for w in WORDS if w not in ("cat", "dog")),
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )


def tiny_multitask_model(names: Sequence[str] = tuple(TASKS), seed: int = 0) -> MultiTaskModel:
    """A BERT of two layers, hidden size 16, with dropout, and heads for these of `TASKS`."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return MultiTaskModel.from_encoder(BertModel(config), {name: TASKS[name] for name in names}, seed=seed)


def tiny_setting() -> dict[str, Any]:
    """What `tiny_trainer` is to be made with: two data sets, one of them, and the one to evaluate on, of two tasks."""
    tokenizer = tiny_tokenizer()
    model = tiny_multitask_model()
    return {
        "model": model,
        "train_dataset": multitask_dataset({"trees": tiny_tagged(), "moods": tiny_moods()}, TASKS),
        "eval_dataset": multitask_dataset(tiny_tagged(8, seed=1), TASKS, "eval", need_all=False),
        "processing_class": tokenizer,
        "data_collator": MultiTaskCollator(tokenizer, model),
    }


def acted(technique: MultiTask, trainer: Any) -> bool:
    """Batches are drawn by our sampler, and each task's loss and the score of all are in the log."""
    from ...techniques.multitask.mixing.sampler import MultiTaskSampler

    entries = trainer.state.log_history
    drawn = isinstance(getattr(trainer, "train_batches", None), MultiTaskSampler)
    logged = any("loss_tag" in entry and "share_mood" in entry for entry in entries)
    return drawn and logged and any("eval_multitask_score" in entry for entry in entries)


EXAMPLE = Example(MultiTask(mix="uniform"), acted, tiny_setting)
