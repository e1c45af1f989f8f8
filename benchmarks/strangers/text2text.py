"""text2text: rows that scripts padded and masked, every encoder-decoder, forms of data, collators, evaluation.

Reference: `DataCollatorForSeq2Seq` and `model(**batch).loss` of stock for the same rows, or a count by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
)

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import with_plugins
from hf_ft_plugins.testing.examples.text2text import tiny_pairs, tiny_t5

TOKENIZER = ByT5Tokenizer()
VOCABULARY = 384
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": VOCABULARY}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
BART |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 2, "dropout": 0.0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "dropout_rate": 0.0}
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
PROPHETNET = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "hidden_size": 16}
PROPHETNET |= {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "dropout": 0.0}
PROPHETNET |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 2}
SEAMLESS = {"vocab_size": VOCABULARY, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
SEAMLESS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
SEAMLESS |= {"speech_encoder_layers": 1, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 16}
SEAMLESS |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 3}
SEAMLESS |= {"activation_dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 64}
EXPERTS = {"num_experts": 2, "output_router_logits": True, "router_jitter_noise": 0.0}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5ForConditionalGeneration": ("T5Config", T5),
    "MT5ForConditionalGeneration": ("MT5Config", T5),
    "UMT5ForConditionalGeneration": ("UMT5Config", T5),
    "LongT5ForConditionalGeneration": ("LongT5Config", T5),
    "SwitchTransformersForConditionalGeneration": ("SwitchTransformersConfig", {**T5, **EXPERTS}),
    "BartForConditionalGeneration": ("BartConfig", BART),
    "MBartForConditionalGeneration": ("MBartConfig", {**BART, "decoder_start_token_id": None}),
    "PLBartForConditionalGeneration": ("PLBartConfig", {**BART, "decoder_start_token_id": None}),
    "M2M100ForConditionalGeneration": ("M2M100Config", BART),
    "NllbMoeForConditionalGeneration": (
        "NllbMoeConfig",
        {**BART, **EXPERTS, "encoder_sparse_step": 1, "decoder_sparse_step": 1},
    ),
    "MarianMTModel": ("MarianConfig", BART),
    "PegasusForConditionalGeneration": ("PegasusConfig", BART),
    "PegasusXForConditionalGeneration": ("PegasusXConfig", {**BART, "block_size": 16, "num_global_tokens": 4}),
    "BigBirdPegasusForConditionalGeneration": ("BigBirdPegasusConfig", {**BART, "attention_type": "original_full"}),
    "BlenderbotForConditionalGeneration": ("BlenderbotConfig", BART),
    "BlenderbotSmallForConditionalGeneration": ("BlenderbotSmallConfig", BART),
    "LEDForConditionalGeneration": (
        "LEDConfig",
        {name: value for name, value in BART.items() if name != "max_position_embeddings"}
        | {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": [4]},
    ),
    "MvpForConditionalGeneration": ("MvpConfig", BART),
    "ProphetNetForConditionalGeneration": ("ProphetNetConfig", PROPHETNET),
    "FSMTForConditionalGeneration": (
        "FSMTConfig",
        {**BART, "langs": ["en", "de"], "src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    ),
    "SeamlessM4TForTextToText": ("SeamlessM4TConfig", {**SEAMLESS, "t2u_vocab_size": 20}),
    "SeamlessM4Tv2ForTextToText": ("SeamlessM4Tv2Config", {**SEAMLESS, "t2u_vocab_size": 20}),
}
DECODERS = {
    f"{name}ForCausalLM": f"{name}Config"
    for name in ("Bart", "MBart", "Marian", "Pegasus", "PLBart", "Blenderbot", "BlenderbotSmall", "Mvp")
}


def model_of(name: str, config: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    known = {key: value for key, value in settings.items() if (config, key) != ("FSMTConfig", "vocab_size")}
    return getattr(transformers, name)(getattr(transformers, config)(**known))


def composed(kind: str) -> Any:
    """BERT to BERT, and T5Gemma, whose configs hold two."""
    torch.manual_seed(0)
    if kind == "EncoderDecoderModel":
        bert = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        bert |= {"intermediate_size": 16, "max_position_embeddings": 64, "pad_token_id": 0}
        bert |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        decoder = transformers.BertConfig(**bert, is_decoder=True, add_cross_attention=True)
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**bert), decoder
        )
        config.pad_token_id, config.decoder_start_token_id = 0, 2
        return transformers.EncoderDecoderModel(config)
    part = transformers.T5GemmaModuleConfig(**LLAMA | {"head_dim": 8, "sliding_window": 32, "num_hidden_layers": 2})
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    config = transformers.T5GemmaConfig(encoder=part, decoder=part, dropout_rate=0.0, **tokens)
    return transformers.T5GemmaForConditionalGeneration(config)


def trainer_of(model: Any, rows: Any, spec: str = "text2text", collator: Any = None, **changes: Any) -> Any:
    own = {name: changes.pop(name) for name in ("eval_dataset", "trainer_class") if name in changes}
    settings = {"output_dir": "run", "max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"save_strategy": "no", "logging_steps": 1, "learning_rate": 0.0, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 100, "per_device_eval_batch_size": 100}
    return with_plugins(own.pop("trainer_class", Seq2SeqTrainer), spec)(
        model=model,
        args=Seq2SeqTrainingArguments(**(settings | changes)),
        train_dataset=rows,
        eval_dataset=own.get("eval_dataset"),
        data_collator=collator,
        processing_class=TOKENIZER,
    )


def hold(found: Any, reference: Any, what: str) -> None:
    """Raise `Wrong` where a number, list or tensor is another than the reference."""
    one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (found, reference))
    if one.shape != other.shape or not torch.allclose(one, other, rtol=2e-5, atol=1e-7):
        raise Wrong(f"{what}: {found} against {reference}")


def stock_loss(model: Any, batch: dict[str, Any]) -> float:
    model.train(False)
    with torch.no_grad():
        return float(model(**batch).loss)


def copies(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: list(value) for name, value in row.items()} for row in rows]


# ---- encoder-decoders and decoders ----


def check_model(make: Callable[[], Any]) -> None:
    """Decoder inputs and the loss of training equal stock's, for targets that end in codes of several languages."""
    model = make()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Of one length, since FSMT's way of making decoder inputs writes over the labels' padding.
    rows = [row for row in tiny_pairs(90) if len(row["labels"]) == 6][:6]
    rows = [{**row, "labels": [*row["labels"], 300 + place % 3]} for place, row in enumerate(rows)]
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    collator = DataCollatorForSeq2Seq(TOKENIZER, model)
    stock = collator(copies(rows))
    trainer = trainer_of(model, rows, collator=collator)
    ours = trainer.data_collator(rows)
    if "decoder_input_ids" in stock:
        hold(ours["decoder_input_ids"], stock["decoder_input_ids"], "decoder_input_ids")
    reference = stock_loss(model, stock)
    hold(stock_loss(model, ours), reference, "loss of our batch")
    trainer.train()
    if "FSMT" in type(model).__name__ or trainer.compute_loss_func.asked.own:
        reference = by_parts(trainer, rows)
    hold(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), reference, "loss in training")


def by_parts(trainer: Any, rows: list[dict[str, Any]]) -> float:
    """The model's own loss of each batch of the step, by its share of the tokens: routers' losses are no sums."""
    total, tokens = 0.0, 0
    for places in trainer.train_batches.plan(0):
        batch = trainer.data_collator([rows[place] for place in places])
        scored = int((batch["labels"] != -100).sum())
        total, tokens = total + scored * stock_loss(trainer.model, batch), tokens + scored
    return total / tokens


def check_decoder(name: str, config: str, *, says: bool) -> None:
    """A decoder alone is a causal model: its loss is that of the next token, by hand."""
    model = model_of(name, config, BART)
    model.config.is_encoder_decoder = says
    rows = causal_rows()
    trainer = trainer_of(model, rows)
    batch = trainer.data_collator(rows)
    model.train(False)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    for module in model.modules():
        for attribute in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    trainer.train()
    hold(next(one["loss"] for one in trainer.state.log_history if "loss" in one), float(by_hand), "loss")


# ---- rows ----


def causal_rows() -> list[dict[str, Any]]:
    return [
        {
            "input_ids": row["input_ids"] + row["labels"],
            "attention_mask": [1] * len(row["input_ids"] + row["labels"]),
            "labels": [-100] * len(row["input_ids"]) + row["labels"],
        }
        for row in tiny_pairs(8)
    ]


def padded(rows: list[dict[str, Any]], side: str, fills: dict[str, int], width: int = 22) -> list[dict[str, Any]]:
    """Rows of one width, padded as `fills` says, on one side."""
    result = []
    for row in rows:
        row = {"attention_mask": [1] * len(row["input_ids"])} | row
        empty = {name: [fills.get(name, 0)] * (width - len(ids)) for name, ids in row.items()}
        result.append({name: empty[name] + ids if side == "left" else ids + empty[name] for name, ids in row.items()})
    return result


def check_rows(model: Any, rows: list[dict[str, Any]], real: list[int], multiple: int | None = None) -> None:
    """The batch is stock's, tensor by tensor; the sampler counts the real target tokens."""
    stock = DataCollatorForSeq2Seq(TOKENIZER, model, pad_to_multiple_of=multiple)
    trainer = trainer_of(model, copies(rows), collator=stock)
    ours, reference = trainer.data_collator(copies(rows)), stock(copies(rows))
    if set(ours) != set(reference):
        raise Wrong(f"{sorted(ours)} against {sorted(reference)}")
    for name in reference:
        hold(ours[name], reference[name], name)
    trainer.train()
    hold(trainer.train_batches.target_lengths, real, "target tokens that the sampler counts")


def rows_situations() -> Iterator[Situation]:
    pairs, causal = tiny_pairs(8), causal_rows()
    real = [len(row["labels"]) for row in pairs]
    for side in ("left", "right"):
        for fill in (-100, 0):
            given = padded(pairs, side, {"labels": fill})
            counted = real if fill == -100 else [22] * len(pairs)
            run = partial(check_rows, tiny_t5(), given, counted)
            yield Situation("rows that the script padded", f"pairs, {side}, labels with {fill}", run)
        given = padded(causal, side, {"labels": -100})
        run = partial(check_rows, model_of("LlamaForCausalLM", "LlamaConfig", LLAMA), given, real)
        yield Situation("rows that the script padded", f"prompt and target in one, {side}", run)
    holes = [{**row, "attention_mask": [1, 0] + [1] * (len(row["input_ids"]) - 2)} for row in pairs]
    yield Situation("rows that the script padded", "holes in the mask", partial(check_rows, tiny_t5(), holes, real))
    unmasked = [
        {name: row[name] for name in ("input_ids", "labels")} for row in padded(pairs, "right", {"labels": -100})
    ]
    yield Situation("rows that the script padded", "no mask", partial(check_rows, tiny_t5(), unmasked, real))
    multiple = partial(check_rows, tiny_t5(), padded(pairs, "left", {"labels": -100}), real, 8)
    yield Situation("rows that the script padded", "a multiple of 8", multiple)
    decoder = [{**row, "decoder_attention_mask": [1] * 22} for row in padded(pairs, "right", {"labels": -100})]
    yield Situation("rows' columns", "decoder_attention_mask", partial(check_rows, tiny_t5(), decoder, real))
    started = [{**row, "decoder_input_ids": [7] * 22} for row in padded(pairs, "right", {"labels": -100})]
    m2m100 = model_of("M2M100ForConditionalGeneration", "M2M100Config", BART)
    yield Situation("rows' columns", "decoder_input_ids, kept", partial(check_rows, m2m100, started, real))
    yield Situation("rows' columns", "decoder_input_ids, made anew", partial(check_rows, tiny_t5(), started, real))
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "eos_token_id": 1}
    typed = [
        {**row, "token_type_ids": [1] * 22, "position_ids": list(range(22))}
        for row in padded(causal, "right", {"labels": -100})
    ]
    run = partial(check_rows, model_of("GPT2LMHeadModel", "GPT2Config", gpt2), typed, real)
    yield Situation("rows' columns", "token_type_ids and position_ids", run)


# ---- forms of data, collators, batch sizes ----


def check_form(make: Callable[[Dataset], Any]) -> None:
    """Any form of the same rows trains to the loss of the plain list."""
    model, rows, losses = model_of("BartForConditionalGeneration", "BartConfig", BART), tiny_pairs(12), []
    for data in (rows, make(Dataset.from_list(rows))):
        trainer = trainer_of(model, data, remove_unused_columns=False)
        trainer.train()
        losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    hold(losses[1], losses[0], "loss")


def decoded_rows(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
    names = {"source": "input_ids", "target": "labels"}
    return {name: TOKENIZER.batch_decode(rows[ids], skip_special_tokens=True) for name, ids in names.items()}


FORMS: dict[str, Callable[[Dataset], Any]] = {
    "a transform that makes ids": lambda data: data.with_transform(lambda rows: dict(rows)),
    "a transform that makes texts": lambda data: data.with_transform(decoded_rows),
    "tensors": lambda data: data.with_format("torch"),
    "arrays": lambda data: data.with_format("numpy"),
    "some columns": lambda data: data.with_format("torch", columns=["input_ids", "labels"]),
    "a list of texts": lambda data: Dataset.from_dict(decoded_rows(data[:])).to_list(),
    "a torch subset": lambda data: torch.utils.data.Subset(data, range(len(data))),
    "shuffled twice": lambda data: data.shuffle(seed=0).shuffle(seed=1),
}


def check_plain_collator(make: Callable[[], Any], smoothing: float) -> None:
    """`default_data_collator` gives no decoder inputs; the loss is that of stock's batch with them."""
    model, rows = make(), padded(tiny_pairs(8), "right", {"labels": -100})
    trainer = trainer_of(
        model, rows, collator=default_data_collator, eval_dataset=rows, label_smoothing_factor=smoothing
    )
    trainer.train()
    batch = DataCollatorForSeq2Seq(TOKENIZER, model)(copies(rows))
    model.train(False)
    with torch.no_grad():
        logits = model(**batch).logits.flatten(0, 1)
    reference = torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=smoothing)
    hold(trainer.evaluate()["eval_loss"], float(reference), "eval_loss")


def check_batch_size_search(spec: str) -> None:
    """A try whose batch does not fit is followed by smaller batches, until they do."""

    class Small(Seq2SeqTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if int((inputs["labels"] != -100).sum()) > 75:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            return super().training_step(model, inputs, *args, **kwargs)

    size = {"per_device_train_batch_size": 16, "auto_find_batch_size": True, "max_steps": 3}
    trainer = trainer_of(tiny_t5(), tiny_pairs(96), spec, trainer_class=Small, **size)
    trainer.train()
    hold(trainer.state.global_step, 3, "steps")


# ---- evaluation ----


def check_predictions(references: list[str | None] | None) -> None:
    """One prediction a row, in order, each that of the row alone."""
    texts = ["ab", "cdefg", "h", "ij", "klm"]
    columns = {"source": texts} | ({} if references is None else {"target": references})
    changes = {"predict_with_generate": True, "generation_max_length": 6, "per_device_eval_batch_size": 2}
    model = model_of("BartForConditionalGeneration", "BartConfig", {**BART, "init_std": 0.5})
    train = Dataset.from_dict({"source": texts, "target": texts})
    spec = "text2text:examples=0,metrics=false"
    trainer = trainer_of(model, train, spec, eval_dataset=Dataset.from_dict(columns), **changes)
    found = trainer.predict(trainer.eval_dataset).predictions
    hold(len(found), len(texts), "predictions")
    for row, text in zip(found, texts, strict=True):
        alone = model.generate(**TOKENIZER(text, return_tensors="pt"), max_length=6)[0]
        hold(np.asarray(row)[: len(alone)], alone, f"prediction of {text!r}")


REFERENCES: dict[str, list[str | None] | None] = {
    "one is blank": ["ba", " ", "h", "ji", "m"],
    "all are blank": [" ", "", " ", "", "  "],
    "some are None": ["ba", None, "h", None, None],
    "all are None": [None] * 5,
    "no column": None,
}


def situations() -> list[Situation]:
    models = [
        Situation("encoder-decoders", name, partial(check_model, partial(model_of, name, *made)), quick=place % 4 == 0)
        for place, (name, made) in enumerate(ENCODER_DECODERS.items())
    ]
    models += [
        Situation("encoder-decoders", name, partial(check_model, partial(composed, name)), quick=False)
        for name in ("EncoderDecoderModel", "T5GemmaForConditionalGeneration")
    ]
    models += [
        Situation(
            "decoders",
            f"{name}, is_encoder_decoder={says}",
            partial(check_decoder, name, config, says=says),
            quick=name == "BartForCausalLM",
        )
        for name, config in DECODERS.items()
        for says in (False, True)
    ]
    data = [
        Situation("forms of data", name, partial(check_form, make), quick="transform" in name)
        for name, make in FORMS.items()
    ]
    mbart = partial(model_of, "MBartForConditionalGeneration", *ENCODER_DECODERS["MBartForConditionalGeneration"])
    collators = [
        Situation(
            "a collator without decoder inputs", f"{name}, smoothing {share}", partial(check_plain_collator, *made)
        )
        for name, make in (("T5", tiny_t5), ("mBART", mbart))
        for share in (0.0, 0.1)
        for made in [(make, share)]
    ]
    searches = [
        Situation("auto_find_batch_size", spec, partial(check_batch_size_search, spec), quick=False)
        for spec in ("text2text", "text2text:target_tokens=90", "text2text:max_tokens=150")
    ]
    references = [
        Situation("references", name, partial(check_predictions, given)) for name, given in REFERENCES.items()
    ]
    return [*models, *rows_situations(), *data, *collators, *searches, *references]
