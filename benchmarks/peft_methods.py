"""Every method of peft on every kind of weights: does it train, save, reload and merge, or does it say that it cannot?

Ours is the technique `peft`; the baseline is peft as it is, on a model that transformers loads quantised. A step is
right if the adapter has an effect, if what is saved and loaded again gives the same logits, and if the merged model's
logits are those of the trained one, up to a part of the adapter's effect. Where a method cannot be merged, saying so is
right. An error that does not name what to do instead is counted as an error, anything else as silently wrong.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from typing import Any

import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from benchmarks import report
from benchmarks.report import Gate, Result
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host.adapter import with_adapter
from hf_ft_plugins.techniques.peft import Peft, known_methods, merge_exactly, never_repack, quantize

KINDS = ("fp32", "int8", "nf4")
METHODS = (
    *("lora", "rslora", "dora", "pissa", "olora", "loraplus", "eva", "adalora", "ia3", "vera", "oft", "boft", "hra"),
    *("loha", "lokr", "randlora", "vblora", "fourierft", "c3a", "miss", "delora", "gralora", "hira", "road", "shira"),
    *("waveft", "ln_tuning", "prompt_tuning", "prefix_tuning"),
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEEDED: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
}
# What peft's defaults are too large for here; both get it.
SMALL = {
    "oft": {"oft_block_size": 32, "r": 0},
    "vblora": {"vector_length": 32},
    "c3a": {"block_size": 32},
    "road": {"group_size": 32},
    "waveft": {"n_frequency": 512},
    "ln_tuning": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
}
# Of the adapter's effect; int8 rounds activations, which a merged model does not.
CLOSE = {"fp32": 1e-3, "nf4": 1e-3, "int8": 0.5}
IDS = torch.randint(3, 380, (4, 24), generator=torch.Generator().manual_seed(1))
RIGHT, REFUSED, ERROR, WRONG = "right", "refused by name", "error", "silently wrong"


def new_model(folder: str | None = None, kind: str = "fp32") -> Any:
    """A small Llama, always the same; from `folder` as transformers quantises it."""
    if folder is not None and kind != "fp32":
        settings = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        config = BitsAndBytesConfig(**settings, llm_int8_threshold=0.0)
        return LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, **heads}
    return LlamaForCausalLM(LlamaConfig(**size, vocab_size=384, pad_token_id=0, eos_token_id=1))


def logits(model: Any) -> torch.Tensor:
    model.train(False)
    with torch.no_grad():
        return model(input_ids=IDS).logits[:, -IDS.shape[1] :]


def learn(model: Any) -> None:
    model.train()
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(5):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def judge(model: Any, base: Any, fresh: Any, merge: Any, kind: str) -> tuple[str, str]:
    """What becomes of an adapter, and why; `base`, `fresh`: the model without it; `merge(model)`: as one without."""
    from peft import PeftModel

    before = logits(base)
    learn(model)
    trained = logits(model)
    effect = float((trained - before).norm())
    if not effect > 1e-3 * float(before.norm()):
        return WRONG, "learns nothing"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(fresh, folder)
        never_repack(again)
        if not torch.equal(logits(again), trained):
            return WRONG, "reloads as another"
    merged = merge(model) if merge is not None else None
    if merged is not None and not float((logits(merged) - trained).norm()) <= CLOSE[kind] * effect:
        return WRONG, "merges into another"
    return RIGHT, ""


def ours(method: str, kind: str, folder: str) -> tuple[str, str]:
    from transformers import TrainingArguments

    quant = None if kind == "fp32" else kind
    has_rank = "r" in known_methods.fields_of(known_methods.config_class(method)) and method not in (
        "oft",
        "vera",
        "randlora",
    )
    options: dict[str, Any] = {"method": method, "quant": quant, "config": NEEDED.get(method, {})}
    args = TrainingArguments(output_dir=folder, use_cpu=True, report_to="none")
    try:
        technique = Peft(**options, r=8 if has_rank and method not in ("miss", "vblora", "boft") else None)
        base = new_model()
        model = with_adapter(base, technique.ft_adapter(base, args), 0, "peft")
        without = _quantised(quant)
        merge = None if method in known_methods.UNMERGEABLE else merge_exactly
        return judge(model, without, _quantised(quant), merge, kind)
    except PluginError as error:
        return REFUSED, str(error)


def _quantised(quant: Any) -> Any:
    model = new_model()
    if quant is not None:
        quantize(model, quant)
    return model


def stock(method: str, kind: str, folder: str) -> tuple[str, str]:
    from peft import get_peft_model

    variant = known_methods.VARIANTS.get(method, ("", {}))[1]
    cls = known_methods.config_class(method)
    fields = known_methods.fields_of(cls)
    try:
        settings = {"target_modules": TARGETS} if "target_modules" in fields else {}
        settings |= {"r": 8} if "r" in fields and method not in SMALL else {}
        settings |= {"total_step": 10} if method == "adalora" else {}
        settings |= {"feedforward_modules": ["down_proj"]} if method == "ia3" else {}
        config = cls(task_type="CAUSAL_LM", **(settings | variant | NEEDED.get(method, {}) | SMALL.get(method, {})))
        base = new_model(folder, kind)
        model = get_peft_model(base, config)

        def merge(model: Any) -> Any:
            if not hasattr(model, "merge_and_unload"):
                return None
            return copy.deepcopy(model).merge_and_unload(safe_merge=True)

        return judge(model, new_model(folder, kind), new_model(folder, kind), merge, kind)
    except Exception as error:
        # Whatever peft raises, in a benchmark that counts it.
        return ERROR, f"{type(error).__name__}: {error}"


def methods(common: dict[str, Any]) -> list[Result]:
    """One row for each kind of weights."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        new_model().save_pretrained(folder)
        for kind in KINDS:
            found = {name: [how(method, kind, folder) for method in METHODS] for name, how in HOW.items()}
            counts = {name: Counter(outcome for outcome, _ in outcomes) for name, outcomes in found.items()}
            good = {name: count[RIGHT] + count[REFUSED] for name, count in counts.items()}
            wrong = [
                f"{method}: {why}"
                for method, (outcome, why) in zip(METHODS, found["peft as is"], strict=True)
                if outcome == WRONG
            ]
            more = {name: dict(count) for name, count in counts.items()} | {"silently wrong in peft as is": wrong}
            bad = [
                (method, *one) for method, one in zip(METHODS, found["ours"], strict=True) if one[0] in (ERROR, WRONG)
            ]
            rows.append(
                report.row(
                    *("peft", f"methods right or refused by name, of {len(METHODS)}, {kind}"),
                    *(good["ours"], good["peft as is"]),
                    gate=Gate("ours", "=", len(METHODS)),
                    also={"none wrong": not bad},
                    conditions=common | more | ({"bad": bad} if bad else {}),
                )
            )
    return rows


HOW = {"ours": ours, "peft as is": stock}
