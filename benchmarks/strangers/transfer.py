"""Transfer: all kinds of heads that `AutoModelFor...` gives, heads that read the padding mask, labels as they come."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from datasets import ClassLabel, Dataset
from transformers import Trainer, TrainingArguments

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import with_plugins

SIZE, TOKENS, WORDS = 12, 6, 32
BERT = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
T5 = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
BART = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32}
BART |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
BART |= {"max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 2}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT |= {"image_size": 16, "patch_size": 8}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
SEGFORMER |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
SEGFORMER |= {"decoder_hidden_size": 16}
WAV2VEC2 = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WAV2VEC2 |= {"conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 4], "num_conv_pos_embeddings": 4}
WAV2VEC2 |= {
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": WORDS,
    "classifier_proj_size": 16,
    "num_feat_extract_layers": 2,
}
WAV2VEC2 |= {"tdnn_dim": [16, 16], "tdnn_kernel": [3, 1], "tdnn_dilation": [1, 1], "xvector_output_dim": 16}
# SpecAugment masks at random; two runs are compared here.
WAV2VEC2 |= {"apply_spec_augment": False, "layerdrop": 0.0}
WHISPER = BART | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16, "num_hidden_layers": 2}
VIDEO = VIT | {"num_frames": 2, "tubelet_size": 1}


def drawn(*shape: int, top: int = 0, seed: int = 0) -> list[Any]:
    """Whole numbers of 3 to `top`, without it; without `top`, of the normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    many = torch.randint(3, top, shape, generator=generator) if top else torch.randn(shape, generator=generator)
    return many.tolist()


def text(*inner: int, **labels: list[Any]) -> dict[str, list[Any]]:
    ids = drawn(SIZE, *(inner or (TOKENS,)), top=WORDS)
    return {"input_ids": ids, "attention_mask": torch.ones(SIZE, *(inner or (TOKENS,)), dtype=int).tolist(), **labels}


def classes(number: int) -> list[int]:
    return [row % number for row in range(SIZE)]


def pictures(*shape: int, **labels: list[Any]) -> dict[str, list[Any]]:
    return {"pixel_values": drawn(SIZE, *(shape or (3, 16, 16))), **labels}


TEXTS = partial(text, labels=classes(2))
IMAGES = partial(pictures, labels=classes(2))
SOUND = {"input_values": drawn(SIZE, 400)}
# By class: of the config, and columns. An `AutoModelFor...` for each, and what is peculiar in one of its kind.
HEADS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, list[Any]]]]] = {
    "BertForSequenceClassification": (BERT, TEXTS),
    "RobertaForSequenceClassification": (BERT | {"max_position_embeddings": 20}, TEXTS),
    "DebertaV2ForSequenceClassification": (BERT, TEXTS),
    "ModernBertForSequenceClassification": (BERT | {"cls_token_id": 1, "sep_token_id": 2}, TEXTS),
    "GPT2ForSequenceClassification": (GPT2, TEXTS),
    "T5ForSequenceClassification": (
        T5,
        lambda: text(labels=classes(2)) | {"input_ids": [[*r, 1] for r in drawn(SIZE, 5, top=WORDS)]},
    ),
    "BartForSequenceClassification": (
        BART,
        lambda: text(labels=classes(2)) | {"input_ids": [[*r, 2] for r in drawn(SIZE, 5, top=WORDS)]},
    ),
    "BertForTokenClassification": (BERT, lambda: text(labels=[[0, 1, -100, 1, 0, -100]] * SIZE)),
    "GPT2ForTokenClassification": (GPT2, lambda: text(labels=[[0, 1, -100, 1, 0, -100]] * SIZE)),
    "BertForMultipleChoice": (BERT, lambda: text(4, TOKENS, labels=classes(4))),
    "RobertaForMultipleChoice": (BERT | {"max_position_embeddings": 20}, lambda: text(3, TOKENS, labels=classes(3))),
    "BertForQuestionAnswering": (BERT, lambda: text(start_positions=classes(3), end_positions=classes(5))),
    "BertForNextSentencePrediction": (BERT, TEXTS),
    "BertForPreTraining": (BERT, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS), next_sentence_label=classes(2))),
    "BertForMaskedLM": (BERT, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS))),
    "GPT2LMHeadModel": (GPT2, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS))),
    "LlamaForCausalLM": (BERT, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS))),
    "T5ForConditionalGeneration": (T5, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS))),
    "BartForConditionalGeneration": (BART, lambda: text(labels=drawn(SIZE, TOKENS, top=WORDS))),
    "ViTForImageClassification": (VIT, IMAGES),
    "ResNetForImageClassification": (RESNET, IMAGES),
    "DeiTForImageClassification": (VIT, IMAGES),
    "SegformerForSemanticSegmentation": (SEGFORMER, lambda: pictures(3, 32, 32, labels=[[[0, 1] * 16] * 32] * SIZE)),
    "VideoMAEForVideoClassification": (VIDEO, lambda: pictures(2, 3, 16, 16, labels=classes(2))),
    "Wav2Vec2ForSequenceClassification": (WAV2VEC2, lambda: SOUND | {"labels": classes(2)}),
    "HubertForSequenceClassification": (WAV2VEC2, lambda: SOUND | {"labels": classes(2)}),
    "WavLMForSequenceClassification": (WAV2VEC2, lambda: SOUND | {"labels": classes(2)}),
    "WhisperForAudioClassification": (WHISPER, lambda: {"input_features": drawn(SIZE, 8, 32), "labels": classes(2)}),
    "Wav2Vec2ForCTC": (WAV2VEC2, lambda: SOUND | {"labels": drawn(SIZE, 3, top=WORDS)}),
    "Wav2Vec2ForXVector": (WAV2VEC2, lambda: SOUND | {"labels": classes(2)}),
    "WhisperForConditionalGeneration": (
        WHISPER,
        lambda: {"input_features": drawn(SIZE, 8, 32), "labels": drawn(SIZE, TOKENS, top=WORDS)},
    ),
}
# The head, where it is none of its own, or tied: so it says.
TIED = r"none outside its backbone, or one that is tied.*strategy=full or gradual"


def model_of(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**(HEADS[name][0] | changes)))


def trainer_of(spec: str | None, model: Any, data: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    settings |= {"learning_rate": 1e-3, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    own = {name: changes.pop(name) for name in ("data_collator", "eval_dataset") if name in changes}
    args = TrainingArguments("run", use_cpu=True, logging_strategy="no", **(settings | changes))
    cls = Trainer if spec is None else with_plugins(Trainer, spec)
    return cls(model=model, args=args, train_dataset=data, **own)


def trained(spec: str | None, model: Any, data: Any, **changes: Any) -> Any:
    trainer = trainer_of(spec, model, data, **changes)
    trainer.train()
    return trainer.model


def differing(one: Any, other: Any) -> list[str]:
    others = dict(other.named_parameters())
    return [name for name, weight in one.named_parameters() if not torch.equal(weight, others[name])]


def as_stock_does(name: str) -> None:
    """Everything at one rate from the start, with a head that fits already, is what stock does, bit for bit."""
    data = Dataset.from_dict(HEADS[name][1]())
    stock, ours = (
        trained(None, model_of(name), data),
        trained("transfer:strategy=full,layer_decay=1", model_of(name), data),
    )
    if different := differing(stock, ours):
        raise Wrong(f"{different[:3]} are not stock's")
    if not differing(model_of(name), stock):
        raise Wrong("the control: stock trains nothing")


def head_first(name: str) -> None:
    """With nothing but the head learning, the backbone stays and the head moves."""
    from hf_ft_plugins.models.heads import head_names

    data, before = Dataset.from_dict(HEADS[name][1]()), model_of(name)
    after = trained("transfer:strategy=probe,layer_decay=1,probe_steps=5", copy.deepcopy(before), data)
    moved, head = set(differing(before, after)), set(head_names(after))
    if not moved or moved - head:
        raise Wrong(f"moved: {sorted(moved)[:4]}; the head: {sorted(head)[:4]}")


# ---- probes ----

MASKED = {
    "ModernBertForSequenceClassification": {"classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": 2},
    "Wav2Vec2ForSequenceClassification": {},
    "HubertForSequenceClassification": {},
    "WavLMForSequenceClassification": {},
    "GPT2ForSequenceClassification": {},
}


def mask_in_a_later_batch(name: str) -> None:
    """The first batch is full, later rows are padded: the probe on features is refused, or gives the model's logits."""
    from hf_ft_plugins.techniques.transfer.probe import NotCacheable, fit_probe

    key, length = (
        ("input_values", 400)
        if ("Bert" not in name and "GPT2" not in name) or "Hubert" in name
        else ("input_ids", TOKENS)
    )
    rows = torch.tensor(drawn(SIZE, length, top=WORDS if key == "input_ids" else 0))
    mask = torch.ones(SIZE, length, dtype=torch.long)
    mask[SIZE // 2 :, length // 2 :] = 0
    rows = rows.masked_fill(mask == 0, 0)
    whole = {key: rows, "attention_mask": mask, "labels": torch.arange(SIZE) % 2}
    batches = [{name: value[first : first + 4] for name, value in whole.items()} for first in range(0, SIZE, 4)]
    model = model_of(name, **MASKED[name]).eval()
    try:
        losses = fit_probe(copy.deepcopy(model), batches, steps=1)
    except NotCacheable:
        return
    with torch.no_grad():
        expected = float(model(**whole).loss)
    if abs(losses[0] - expected) > 1e-3:
        raise Wrong(f"the head was trained on a loss of {losses[0]:.4f}, the model's is {expected:.4f}")


def head_of_zeros() -> None:
    """A head that begins at zero shows nothing of what it reads: its features are those of all positions."""
    from hf_ft_plugins.techniques.transfer.probe import NotCacheable, fit_probe

    model = model_of("ModernBertForSequenceClassification", **MASKED["ModernBertForSequenceClassification"]).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
    mask = torch.ones(4, TOKENS, dtype=torch.long)
    mask[1:, 3:] = 0
    batch = {
        "input_ids": torch.tensor(drawn(4, TOKENS, top=WORDS)),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    try:
        fit_probe(model, [batch], steps=1)
    except NotCacheable:
        return
    raise Wrong("a head that reads the mask was taken for one that reads the first position")


def tokens_of_any_length() -> None:
    """Sentences of different lengths: the probe's first loss is the model's own over all tokens."""
    from hf_ft_plugins.techniques.transfer import fit_probe

    model, batches = model_of("BertForTokenClassification").eval(), []
    for length in (6, 4, 5):
        ids = torch.tensor(drawn(4, length, top=WORDS, seed=length))
        labels = torch.arange(4 * length).reshape(4, length) % 2
        labels[:, -1] = -100
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    with torch.no_grad():
        sums = [model(**batch).loss * (batch["labels"] != -100).sum() for batch in batches]
    expected = float(sum(sums)) / sum(int((batch["labels"] != -100).sum()) for batch in batches)
    model.dropout.p = 0.0
    first = fit_probe(model, batches, steps=1)[0]
    if abs(first - expected) > 1e-4:
        raise Wrong(f"first loss {first:.5f}, by hand {expected:.5f}")


# ---- labels ----


def labelled(form: str) -> None:
    """The same classes in another form: the head for three classes, and the loss, are the same."""
    rows, labels = text(), classes(3)
    names = ["a", "b", "c"]
    plain = Dataset.from_dict({**rows, "labels": labels}).cast_column("labels", ClassLabel(names=names))
    changes: dict[str, Any] = {}
    data = plain
    if form == "set_transform":
        stored = Dataset.from_dict({**rows, "kind": [names[label] for label in labels]})
        data = stored.with_transform(lambda rows: {**rows, "labels": [names.index(kind) for kind in rows["kind"]]})
        changes = {"remove_unused_columns": False, "data_collator": tensors}
    elif form == "another column":
        data = plain.rename_column("labels", "species")
        changes = {"remove_unused_columns": False, "data_collator": partial(tensors, labels="species")}
    elif form == "label_names":
        data = plain.rename_column("labels", "species")
        changes = {"label_names": ["species"], "data_collator": partial(tensors, labels="species")}
    elif form == "numbers by the collator":
        stored = Dataset.from_dict({**rows, "labels": [label + 1 for label in labels]})
        data, changes = stored, {"data_collator": partial(tensors, less=1)}
    elif form == "a test set without labels":
        changes = {"eval_dataset": Dataset.from_dict(rows)}
    new = partial(model_of, "BertForSequenceClassification", num_labels=3)
    trainer = trainer_of("transfer:strategy=full,layer_decay=1", new(), data, **changes)
    trainer.train()
    stock = trained(None, new(), plain)
    if different := differing(stock, trainer.model):
        raise Wrong(f"{different[:3]} are not stock's with plain labels")
    if trainer.predict(Dataset.from_dict(rows)).predictions.shape != (SIZE, 3):
        raise Wrong("no prediction a row")


def tensors(rows: list[dict[str, Any]], labels: str = "labels", less: int = 0) -> dict[str, torch.Tensor]:
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    return batch | ({"labels": torch.tensor([row[labels] - less for row in rows])} if labels in rows[0] else {})


FORMS = ("ClassLabel", "set_transform", "another column", "label_names", "numbers by the collator")
FORMS += ("a test set without labels",)
NO_HEAD = {
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "WhisperForConditionalGeneration",
}
SLOW = {"BertForPreTraining", "DebertaV2ForSequenceClassification", "WavLMForSequenceClassification"}


def situations() -> list[Situation]:
    """All of transfer's."""
    made = [
        Situation("heads, all at once", name, partial(as_stock_does, name), quick=name not in SLOW) for name in HEADS
    ]
    for name in HEADS:
        made.append(
            Situation(
                "heads, alone", name, partial(head_first, name), TIED if name in NO_HEAD else None, name not in SLOW
            )
        )
    made += [Situation("heads that read the mask", name, partial(mask_in_a_later_batch, name)) for name in MASKED]
    made.append(Situation("heads that read the mask", "a head of zeros", head_of_zeros))
    made.append(Situation("heads that read the mask", "tokens of any length", tokens_of_any_length))
    return made + [Situation("labels", form, partial(labelled, form)) for form in FORMS]
