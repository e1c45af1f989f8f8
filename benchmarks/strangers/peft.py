"""peft on models, heads, tokens, data and failures as strangers bring them.

The reference is the trained model in memory: what it says to rows, its loss, against the saved adapter on the base anew
and the merged model read from disk. Each situation also checks that training moved the model at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, PeftModel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.peft_models import FAMILIES, vision_encoder_decoder
from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.peft import quantize

SAME = 1e-3
ROWS, STEPS = 8, 3
# One of each kind of input, and what failed once.
QUICK = (
    *("BertForSequenceClassification", "T5ForConditionalGeneration", "WhisperForConditionalGeneration", "CLIPModel"),
    *("Wav2Vec2ForSequenceClassification", "ViTForImageClassification", "PatchTSTForPrediction"),
)
Rows = list[dict[str, Any]]


def collate(rows: Rows) -> dict[str, Any]:
    batch = default_data_collator([{key: row[key] for key in row if key != "return_loss"} for row in rows])
    return batch | ({"return_loss": True} if "return_loss" in rows[0] else {})


def train(spec: str, model: Any, rows: Any, trainer_class: type = Trainer, **changes: Any) -> Any:
    arguments = {
        **{"output_dir": "out", "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 2e-2},
        **{"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True},
    }
    own = {key: changes.pop(key) for key in ("data_collator", "processing_class") if key in changes}
    own.setdefault("data_collator", collate)
    args = TrainingArguments(**(arguments | changes))
    trainer = with_plugins(trainer_class, spec)(model=model, train_dataset=rows, args=args, **own)
    trainer.train()
    return trainer


def said(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Everything that the model puts out for a batch, in one row."""
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    model.train(False)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = model(**batch)
    parts = [one.float().flatten() for one in outputs.values() if isinstance(one, torch.Tensor)]
    return torch.cat(parts)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def same(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if found.shape != wanted.shape or not off(found, wanted) <= SAME:
        raise Wrong(f"{name} is {off(found, wanted):.1e} off the trained model")


def check_exports(base: Any, trained: Any, batch: dict[str, Any], quant: str | None = None) -> None:
    """The adapter on a copy of the base, the adapter on the base that it names, and the merged model."""
    wanted = said(trained, batch)
    if off(said(base, batch), wanted) < 1e-6:
        raise Wrong("training moved nothing")
    fresh = copy.deepcopy(base)
    if quant:
        quantize(fresh, quant)
    same("the adapter, loaded anew,", said(PeftModel.from_pretrained(fresh, "out/adapter"), batch), wanted)
    same("the merged model", said(type(base).from_pretrained("out/merged"), batch), wanted)


def check_family(name: str) -> None:
    family, draw = FAMILIES[name], torch.Generator().manual_seed(0)
    rows = [family.row(draw) for _ in range(ROWS)]
    base = family.model(name)
    base.save_pretrained("base")
    model = type(base).from_pretrained("base")
    trainer = train("peft:r=4,export=both", model, rows)
    batch = collate(rows)
    check_exports(base, trainer.model, batch)
    task = trainer.model.peft_config["default"].task_type
    autos = {None: AutoPeftModel, "CAUSAL_LM": AutoPeftModelForCausalLM, "SEQ_2_SEQ_LM": AutoPeftModelForSeq2SeqLM}
    if task in autos:
        same(
            "what peft's Auto class loads",
            said(autos[task].from_pretrained("out/adapter"), batch),
            said(trainer.model, batch),
        )


def check_vision_encoder_decoder() -> None:
    draw, base = torch.Generator().manual_seed(0), vision_encoder_decoder()
    rows = [
        {"pixel_values": torch.randn(3, 16, 16, generator=draw), "labels": torch.randint(4, 64, (8,), generator=draw)}
        for _ in range(ROWS)
    ]
    trainer = train("peft:r=4,export=both", copy.deepcopy(base), rows)
    check_exports(base, trainer.model, collate(rows))


# ---- tied heads and new tokens ----


def llama(tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**config, **heads, tie_word_embeddings=tied, pad_token_id=0))


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0))


def marian() -> Any:
    """Its table hangs in three places when it was resized, and is read in two."""
    torch.manual_seed(0)
    halves = {f"{half}_{what}": 2 for half in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    widths = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return MarianMTModel(MarianConfig(**halves, **widths, **tokens))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama, untied": partial(llama, tied=False),
    "gpt2": gpt2,
    "t5": lambda: FAMILIES["T5ForConditionalGeneration"].model("T5ForConditionalGeneration"),
    "bart": lambda: FAMILIES["BartForConditionalGeneration"].model("BartForConditionalGeneration"),
    "marian": marian,
    "bert": lambda: FAMILIES["BertForMaskedLM"].model("BertForMaskedLM"),
}
HEADS = {
    "llama": ("targets=lm_head", "targets=embed_tokens", "modules_to_save=lm_head", "quant=nf4,targets=q_proj+lm_head"),
    "gpt2": ("targets=lm_head", "targets=wte", "modules_to_save=wte", "method=pissa,targets=c_attn+lm_head"),
    "t5": ("targets=q+lm_head", "targets=q+shared"),
    "bart": ("targets=q_proj+lm_head", "modules_to_save=lm_head"),
    "bert": ("targets=query+decoder", "targets=word_embeddings"),
}


def token_rows(*new: int) -> Rows:
    draw = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(ROWS):
        ids = torch.randint(4, 64, (10,), generator=draw)
        ids[2 : 2 + len(new)] = torch.tensor(new, dtype=torch.long)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return rows


def check_head(name: str, options: str) -> None:
    base, rows = MODELS[name](), token_rows()
    trainer = train(f"peft:r=4,{options},export=both", copy.deepcopy(base), rows)
    check_exports(base, trainer.model, collate(rows), "nf4" if "nf4" in options else None)


def check_new_tokens(name: str, options: str) -> None:
    rows = token_rows(64, 65)
    MODELS[name]().save_pretrained("base")
    model = type(MODELS[name]()).from_pretrained("base")
    model.resize_token_embeddings(66)
    base = copy.deepcopy(model)
    trainer = train(f"peft:r=4,{options},new_tokens=train,export=both", model, rows)
    check_exports(base, trainer.model, collate(rows), "nf4" if "nf4" in options else None)
    merged = type(base).from_pretrained("out/merged")
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        moved = (getattr(merged, layer)().weight - getattr(base, layer)().weight).abs().amax(dim=1)
        if not (bool((moved[64:66] > 0).all()) and float(moved[:64].max()) == 0):
            raise Wrong(f"{layer}: new rows moved by {moved[64:66].tolist()}, old ones by {float(moved[:64].max())}")


# ---- batches that are no call of the model ----


class OwnLoss(Trainer):
    """A script whose batch holds two texts under names of its own."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        logits = [model(input_ids=inputs[side]["input_ids"]).logits for side in ("good", "bad")]
        return (logits[1] - logits[0]).mean()


def pairs(rows: Rows) -> dict[str, Any]:
    ids = torch.stack([row["input_ids"] for row in rows])
    return {"good": {"input_ids": ids}, "bad": {"input_ids": ids.flip(1)}}


class OwnLoader(Trainer):
    """A script that makes its loader itself and has no data set."""

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(token_rows(), batch_size=4, collate_fn=collate)


def check_batches(kind: str) -> None:
    base, rows = llama(), token_rows()
    changes: dict[str, Any] = {}
    if kind == "nested, own loss":
        changes = {"trainer_class": OwnLoss, "data_collator": pairs, "remove_unused_columns": False}
    elif kind == "own loader":
        changes = {"trainer_class": OwnLoader}
    elif kind == "set_transform":
        import datasets

        data = datasets.Dataset.from_list([{"n": number} for number in range(ROWS)])
        data.set_transform(lambda batch: {key: [rows[n][key] for n in batch["n"]] for key in rows[0]})
        changes = {"remove_unused_columns": False}
    given: Any = data if kind == "set_transform" else None if kind == "own loader" else rows
    trainer = train("peft:r=4,export=both", copy.deepcopy(base), given, **changes)
    check_exports(base, trainer.model, collate(rows))


def check_trl(kind: str) -> None:
    import trl
    from datasets import Dataset

    from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

    texts = {"prompt": ["say red", "say blue"] * 4, "chosen": [" red", " blue"] * 4, "rejected": [" no", " green"] * 4}
    made = {
        "dpo": texts,
        "sft": {"text": texts["prompt"]},
        "reward": {key: texts[key] for key in ("chosen", "rejected")},
        "kto": {"prompt": texts["prompt"], "completion": [" red", " no"] * 4, "label": [True, False] * 4},
    }
    trainer_class, args_class = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }[kind]
    model = tiny_llama()
    if kind == "reward":
        from transformers import LlamaForSequenceClassification

        torch.manual_seed(0)
        model.config.num_labels, model.config.pad_token_id = 1, 0
        model = LlamaForSequenceClassification(model.config)
    args = args_class(
        output_dir="out",
        max_steps=STEPS,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    base = copy.deepcopy(model)
    trainer = with_plugins(trainer_class, "peft:r=4,export=both")(
        model=model, args=args, train_dataset=Dataset.from_dict(made[kind]), processing_class=tiny_tokenizer()
    )
    trainer.train()
    check_exports(base, trainer.model, {"input_ids": torch.randint(3, 300, (4, 9))})


# ---- failures in the middle ----


def check_undone(spec: str) -> None:
    """peft raises at a layer in the middle: the model says what it said, with the same layers, learning as before."""
    from peft.tuners.tuners_utils import BaseTuner

    model, batch = llama(), collate(token_rows())
    layers = {name: (id(module), type(module)) for name, module in model.named_modules()}
    before, learned = said(model, batch), [one.requires_grad for one in model.parameters()]
    real, calls = BaseTuner._check_target_module_compatiblity, []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("in the middle")
        return real(*args, **kwargs)

    BaseTuner._check_target_module_compatiblity = fails
    try:
        train(spec, model, token_rows())
    except MemoryError:
        if {name: (id(module), type(module)) for name, module in model.named_modules()} != layers:
            raise Wrong("layers were left changed") from None
        if learned != [one.requires_grad for one in model.parameters()] or not torch.equal(said(model, batch), before):
            raise Wrong("the model was left changed") from None
    else:
        raise Wrong("nothing was raised")
    finally:
        BaseTuner._check_target_module_compatiblity = real


def check_kept() -> None:
    """The merged model is not what was trained: the adapter is kept, an older export too."""
    from hf_ft_plugins.techniques.peft import merge

    train("peft:r=4,export=merged", llama(), token_rows())
    older, real = Path("out/merged/model.safetensors").read_bytes(), merge.merge_exactly
    base = llama()
    model = copy.deepcopy(base)
    merge.merge_exactly = lambda model: base
    try:
        train("peft:r=4,export=merged", model, token_rows())
    except PluginError:
        if Path("out/merged/model.safetensors").read_bytes() != older:
            raise Wrong("the older merged model was changed") from None
        kept = PeftModel.from_pretrained(llama(), "out/adapter-unmerged")
        if off(said(kept, collate(token_rows())), said(base, collate(token_rows()))) < 1e-6:
            raise Wrong("the adapter that was kept is not the trained one") from None
    else:
        raise Wrong("a wrong merged model was saved")
    finally:
        merge.merge_exactly = real


def situations() -> list[Situation]:
    families = [Situation("models", name, partial(check_family, name), quick=name in QUICK) for name in FAMILIES]
    heads = [
        Situation("tied heads", f"{name}: {options}", partial(check_head, name, options), mend="or use method=lora")
        if "pissa" in options
        else Situation("tied heads", f"{name}: {options}", partial(check_head, name, options), quick=name == "gpt2")
        for name, several in HEADS.items()
        for options in several
    ]
    tokens = [
        Situation("new tokens", f"{name}: {options}", partial(check_new_tokens, name, options), quick=name == "llama")
        for name, options in (
            *((name, "method=lora") for name in MODELS),
            *(("llama", "method=dora"), ("llama", "quant=nf4"), ("bert", "method=rslora")),
        )
    ] + [
        Situation(
            "new tokens", f"llama: {method}", partial(check_new_tokens, "llama", f"method={method}"), "method=lora"
        )
        for method in ("oft", "loha")
    ]
    batches = [
        Situation("batches", kind, partial(check_batches, kind))
        for kind in ("plain", "nested, own loss", "own loader", "set_transform")
    ] + [
        Situation("batches", f"TRL's {kind}", partial(check_trl, kind), quick=kind == "dpo")
        for kind in ("dpo", "sft", "reward", "kto")
    ]
    undone = [
        Situation("failures", f"peft raises: {spec}", partial(check_undone, spec))
        for spec in ("peft:r=4", "peft:r=4,quant=nf4", "peft:r=4,quant=int8", "peft:r=4,method=pissa")
    ] + [Situation("failures", "a wrong merge", check_kept)]
    described = Situation("models", "VisionEncoderDecoderModel", check_vision_encoder_decoder, quick=False)
    return [*families, described, *heads, *tokens, *batches, *undone]
