"""The methods of peft by name: which there are, and what each goes with.

A method is a configuration class of the installed peft (`lora`, `vera`, `oft`, ...), or one of `VARIANTS`, which set
some of a class's fields. What holds for one method alone stands here in tables, each entry found by trying:
`python -m benchmarks.peft` trains, saves, reloads and merges every method on float32, int8 and NF4 weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from ... import mends
from ...errors import OptionError, PluginError
from ...near import nearest, nearest_value

NAME = "peft"
# name: peft's type, the fields that make the variant of it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("LORA", {"use_rslora": True}),
    "dora": ("LORA", {"use_dora": True}),
    "loraplus": ("LORA", {}),
    "pissa": ("LORA", {"init_lora_weights": "pissa"}),
    "olora": ("LORA", {"init_lora_weights": "olora"}),
    "eva": ("LORA", {"init_lora_weights": "eva"}),
    "mica": ("LORA", {"init_lora_weights": "mica"}),
    "orthogonal": ("LORA", {"init_lora_weights": "orthogonal"}),
}
# What peft 0.21 has, so that a wrong name is refused before peft is imported.
KNOWN = (
    *("lora", "loha", "lokr", "ia3", "vera", "oft", "boft", "hra", "vblora", "randlora", "c3a", "miss", "delora"),
    *("gralora", "hira", "road", "shira", "waveft", "ln_tuning", "adamss", "beft", "deft", "frod", "glora", "lily"),
    *("osf", "peanut", "poly", "psoft", "pvera", "tinylora", "unilora", "supertuning", "shadow", "xlora"),
    *("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning", "cpt", "cartridge"),
    *("adaption_prompt", "trainable_tokens", "adalora", "fourierft"),
    *VARIANTS,
)
# Initial weights that are taken out of the base model's, which they change.
MUTATING = ("pissa", "olora")
# What trains, reloads and merges right on quantised weights; the other methods compute with the bytes as if they were
# numbers, or cannot be put on them. DoRA's norms lose bitsandbytes' scales of int8 rows.
ADDED: tuple[str, ...] = (
    "lora",
    "rslora",
    "loraplus",
    "eva",
    "adalora",
    "ia3",
    "vera",
    "randlora",
    "hira",
    "road",
    "lily",
    "beft",
)
ADDED += ("oft", "boft", "miss", "c3a", "vblora", "gralora", "fourierft", "waveft", "ln_tuning")
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")
FITS = {
    "nf4": (*ADDED, "dora", "shira", *PROMPTS),
    "int8": (*ADDED, "loha", "lokr", "pvera", *PROMPTS),
}
# They are no change of weights that could be added to them.
UNMERGEABLE = (
    "lily",
    *PROMPTS,
    "cpt",
    "multitask_prompt_tuning",
    "cartridge",
    "adaption_prompt",
    "xlora",
    "poly",
    "shadow",
)
# They need what Trainer's batches and a plain base model do not have.
UNFIT = {
    "poly": "task_ids in every batch",
    "multitask_prompt_tuning": "task_ids in every batch",
    "xlora": "adapters that are trained already",
    "shadow": "a forward pass of its own",
    "cpt": "kinds of tokens in every batch",
    "cartridge": "a cache that is made before",
}
OWN_OPTIONS = {
    "target_modules": "targets",
    "target_parameters": "moe",
    "exclude_modules": "exclude",
    "modules_to_save": "modules_to_save",
    "r": "r",
    "target_r": "r",
    "lora_alpha": "alpha",
    "alpha": "alpha",
    "lora_dropout": "dropout",
    "use_dora": "method",
    "use_rslora": "method",
    "init_lora_weights": "method",
    "peft_type": "method",
}


def kind_of(method: str) -> str:
    """peft's type of a method."""
    return VARIANTS[method][0] if method in VARIANTS else method.upper()


def config_class(method: str) -> Any:
    """peft's configuration class of a method.

    Raises:
        OptionError: the installed peft has none of that name.
        PluginError: peft is not installed.
    """
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise PluginError(
            f"{NAME}: peft is not installed: pip install 'peft>=0.21'.",
            code="package-missing",
            mend=[mends.install("peft>=0.21")],
        ) from error
    types = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = kind_of(method)
    if kind not in types:
        known = sorted({*(name.lower() for name in types), *VARIANTS})
        raise OptionError(
            f"{NAME}: there is no method {method!r}.{nearest(method, known)} The installed peft has: "
            f"{', '.join(known)}.",
            mend=nearest_value(NAME, "method", method, known),
        )
    return types[kind]


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration class that a user may set, by name."""
    return {field.name: field for field in dataclasses.fields(config) if field.init}


def has_targets(method: str) -> bool:
    """Whether it adapts layers; prompts and tokens are elsewhere."""
    return "target_modules" in fields_of(config_class(method)) and method not in ("adaption_prompt", "trainable_tokens")


def refuse_method(method: str, quant: str | None, merged: bool) -> None:
    """Raise an `OptionError` for a method that is not known, does not fit Trainer, or these weights, or this export."""
    if method not in KNOWN:
        config_class(method)
    if method in UNFIT:
        raise OptionError(
            f"{NAME}: method={method} needs {UNFIT[method]}. Use method=lora.",
            mend=[mends.set_option(NAME, "method", "lora")],
        )
    if quant is not None and method not in FITS[quant]:
        other = [kind for kind in FITS if method in FITS[kind]]
        also = f", method={method} with quant={other[0]}" if other else ""
        raise OptionError(
            f"{NAME}: method={method} on quant={quant} does not train, reload or merge right. Without quant it does"
            f"{also}; quant={quant} goes with {', '.join(FITS[quant])}.",
            code="option-combination",
            mend=[
                mends.remove_option(NAME, "quant"),
                *(mends.set_option(NAME, "quant", kind) for kind in other),
                mends.set_option(NAME, "method", FITS[quant][0]),
            ],
        )
    if merged and method in UNMERGEABLE:
        raise OptionError(
            f"{NAME}: method={method} cannot be merged. Use export=adapter, or method=lora.",
            code="option-combination",
            mend=[mends.set_option(NAME, "export", "adapter"), mends.set_option(NAME, "method", "lora")],
        )


def read_options(pairs: Iterable[str]) -> dict[str, Any]:
    """`key:value` pairs as a mapping; values are JSON where they can be, else text."""
    options = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon:
            raise OptionError(f"{NAME}: option config={pair!r} is not allowed: write config=key:value+key:value.")
        try:
            options[key.strip()] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            options[key.strip()] = value
    return options
