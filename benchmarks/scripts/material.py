"""Tiny checkpoints with tokenizers, and tiny files of data, for the example scripts.

Models have four layers of width 16 and random weights; texts are of sixty words, and what is to be predicted follows
from them, so a run of a few steps has something to learn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NAMES, PLACES = WORDS[:8], WORDS[8:16]
TURN = (
    "{% for turn in messages %}{{ turn['role'] + ' ' + turn['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def make(folder: Path) -> None:
    """Write everything into `folder`."""
    torch.manual_seed(0)
    drawn = random.Random(0)
    checkpoints(folder)
    for name, rows in tables(drawn).items():
        (folder / f"{name}.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for split in ("train", "validation", "test"):
        wrapped = {"version": "1", "data": list(answers(drawn, 24))}
        (folder / f"qa_{split}.json").write_text(json.dumps(wrapped))
        (folder / f"text_{split}.txt").write_text("\n".join(sentence(drawn, 9) for _ in range(60)) + "\n")
    for kind, rows in conversations(drawn).items():
        (folder / kind).mkdir()
        for split in ("train", "test"):
            text = "\n".join(json.dumps(row) for row in rows[: 24 if split == "train" else 8])
            (folder / kind / f"{split}.jsonl").write_text(text + "\n")
    pictures(folder / "pictures")


def checkpoints(folder: Path) -> None:
    words = {"vocab_size": len(SPECIAL) + len(WORDS) + 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 4, "intermediate_size": 32}
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 4), ("ffn_dim", 32))}
    sides |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    start = {"decoder_start_token_id": 3, "forced_eos_token_id": 3}
    bert = BertForMaskedLM(BertConfig(**words, **heads, max_position_embeddings=64))
    llama = LlamaForCausalLM(LlamaConfig(**words, **heads, **ends, max_position_embeddings=64, num_key_value_heads=2))
    bart = BartForConditionalGeneration(BartConfig(**words, **sides, **ends, **start, max_position_embeddings=64))
    t5 = T5ForConditionalGeneration(
        T5Config(
            **words, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, eos_token_id=3, decoder_start_token_id=0
        )
    )
    for name, model in {"bert": bert, "llama": llama, "bart": bart, "t5": t5}.items():
        model.save_pretrained(folder / name)
        tokenizer(causal=name == "llama").save_pretrained(folder / name)
    vit = ViTForImageClassification(ViTConfig(**heads, image_size=16, patch_size=8, num_labels=2))
    vit.save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")


def tokenizer(*, causal: bool) -> PreTrainedTokenizerFast:
    vocabulary = [*SPECIAL, "user", "assistant", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not causal:
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    ends = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **names, **ends)
    if causal:
        fast.chat_template = TURN
    return fast


def sentence(drawn: random.Random, length: int) -> str:
    return " ".join(drawn.choices(WORDS, k=length))


def tables(drawn: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Rows of each file that holds one row a line, by its name: KIND_SPLIT."""
    found: dict[str, list[dict[str, Any]]] = {}
    for split, number in (("train", 60), ("validation", 16), ("test", 10)):
        classes = [pair(drawn) for _ in range(number)]
        found[f"classes_{split}"] = [{**row, "label": label} for row, label in classes]
        found[f"numbers_{split}"] = [{**row, "label": label + 0.5} for row, label in classes]
        found[f"tags_{split}"] = [tagged(drawn) for _ in range(number)]
        found[f"choices_{split}"] = [choice(drawn) for _ in range(number)]
        texts = [sentence(drawn, drawn.randint(3, 9)) for _ in range(number)]
        found[f"pairs_{split}"] = [{"translation": {"en": one, "fr": " ".join(one.split()[::-1])}} for one in texts]
        found[f"summaries_{split}"] = [{"text": one, "summary": " ".join(one.split()[:2])} for one in texts]
    # A test set whose labels nobody knows, as GLUE's are.
    found["unlabelled_test"] = [{**row, "label": -1} for row in found["classes_test"]]
    return found


def pair(drawn: random.Random) -> tuple[dict[str, str], int]:
    label = drawn.randrange(2)
    first = sentence(drawn, 3) + " " + (NAMES if label else PLACES)[drawn.randrange(8)]
    return {"sentence1": first, "sentence2": sentence(drawn, drawn.randint(2, 6))}, label


def tagged(drawn: random.Random) -> dict[str, list[str]]:
    tokens = drawn.choices(WORDS, k=drawn.randint(4, 9))
    kinds = {**dict.fromkeys(NAMES, "B-PER"), **dict.fromkeys(PLACES, "B-LOC")}
    return {"tokens": tokens, "ner_tags": [kinds.get(token, "O") for token in tokens]}


def choice(drawn: random.Random) -> dict[str, Any]:
    right = drawn.randrange(4)
    endings = {f"ending{i}": sentence(drawn, 2) + " " + (NAMES if i == right else PLACES)[0] for i in range(4)}
    return {"sent1": sentence(drawn, 4), "sent2": sentence(drawn, 2), **endings, "label": right}


def answers(drawn: random.Random, number: int) -> Iterable[dict[str, Any]]:
    for i in range(number):
        context = sentence(drawn, 12)
        text = context.split()[drawn.randrange(12)]
        place = {"text": [text], "answer_start": [context.index(text)]}
        yield {"id": str(i), "question": f"{text} {sentence(drawn, 2)}", "context": context, "answers": place}


def conversations(drawn: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Rows of TRL's layouts, by the folder that they go into."""

    def turn(role: str, length: int) -> list[dict[str, str]]:
        return [{"role": role, "content": sentence(drawn, length)}]

    asked = [turn("user", 4) for _ in range(24)]
    return {
        "chats": [{"messages": one + turn("assistant", 5)} for one in asked],
        "preferences": [
            {"prompt": one, "chosen": turn("assistant", 4), "rejected": turn("assistant", 5)} for one in asked
        ],
        "votes": [
            {"prompt": one, "completion": turn("assistant", 4), "label": i % 2 == 0} for i, one in enumerate(asked)
        ],
    }


def pictures(folder: Path) -> None:
    drawn = np.random.default_rng(0)
    for split, number in (("train", 24), ("validation", 8)):
        for label, shade in (("dark", 40), ("light", 200)):
            (folder / split / label).mkdir(parents=True)
            for i in range(number // 2):
                dots = drawn.integers(shade - 40, shade + 40, (20, 20, 3)).astype("uint8")
                Image.fromarray(dots).save(folder / split / label / f"{i}.png")
