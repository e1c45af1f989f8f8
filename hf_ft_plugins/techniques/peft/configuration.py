"""How one set of options becomes the configuration of any method of peft, fitted to a model.

config = make_config("dora", model, find_targets(model), r=8)
model = get_peft_model(model, config)
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ... import mends
from ...errors import OptionError
from ...models.embeddings import input_embeddings, output_embeddings
from ...models.inputs import main_input_name
from ...models.text_part import text_config
from ...near import closest, nearest
from .known_methods import MUTATING, NAME, OWN_OPTIONS, PROMPTS, VARIANTS, config_class, fields_of, kind_of
from .layers import shortest_names
from .tasks import task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


RANK, ALPHA = 16, 2
# The papers' scale, where it is not alpha = 2 r; None: peft's own default.
ALPHA_PER_RANK: dict[str, float | None] = {
    **dict.fromkeys(("pissa", "olora", "rslora", "loha", "lokr"), 1),
    **dict.fromkeys(("mica", "orthogonal", "randlora", "deft", "supertuning"), None),
}
# Methods that train and merge at any rank, even one above a layer's full rank.
ANY_RANK = ("lora", "rslora", "dora", "loraplus")
# Methods sized otherwise than by rank, or for which rank 16 would be a very different size: peft's default stays.
OWN_RANK = ("oft", "vera", "randlora", "pvera", "miss", "adamss", "vblora", "tinylora", "unilora", "boft")
# Fields that must divide the layers' sizes, and the largest value taken: peft's default.
DIVISORS = {
    "OFT": ("oft_block_size", 32),
    "BOFT": ("boft_block_size", 4),
    "C3A": ("block_size", 256),
    "VBLORA": ("vector_length", 256),
    "ROAD": ("group_size", 64),
}
# Where peft's default initialisation would change the pretrained model's outputs.
BEGINS_AT_ZERO = {"FOURIERFT": "init_weights", "C3A": "init_weights"}
# peft's `EMBEDDING_LAYER_NAMES`.
TIED_NAMES = ("embed_tokens", "lm_head")
NESTED = {
    "eva_config": "EvaConfig",
    "loftq_config": "LoftQConfig",
    "corda_config": "CordaConfig",
    "lora_ga_config": "LoraGAConfig",
}


def make_config(
    method: str,
    model: PreTrainedModel,
    targets: Any,
    *,
    r: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    modules_to_save: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The configuration of `method` for a model.

    Args:
        method: a name of `KNOWN`, or any type of the installed peft in lower case.
        model: what gets the adapter; sizes of layers, kind of task and tied weights are read from it.
        targets: a `Targets`, or None for a method that adapts no layers.
        r: rank; None: 16, or peft's default where the method's size is no rank like LoRA's.
        alpha: scale of the update; None: 2 r, or what the method's paper has.
        dropout: on the adapters' input.
        options: further fields of the method's own configuration.

    Raises:
        OptionError: an option that the method does not have, or that does not fit the layers.
    """
    cls = config_class(method)
    fields, kind = fields_of(cls), kind_of(method)
    settings: dict[str, Any] = dict(VARIANTS.get(method, ("", {}))[1])
    layers = [model.get_submodule(path) for path in _paths(model, targets)] if targets is not None else []
    if "target_modules" in fields and targets is not None:
        settings["target_modules"] = list(targets.modules)
        settings |= _parameters(method, fields, targets)
    settings |= _rank(method, fields, r, layers, model, targets) | _dropout(method, fields, dropout)
    settings |= _alpha(method, fields, settings, alpha)
    if "modules_to_save" in fields and modules_to_save:
        settings["modules_to_save"] = list(modules_to_save)
    if kind in DIVISORS:
        name, most = DIVISORS[kind]
        settings[name] = _divisor(layers, most)
        settings |= {"r": 0} if kind == "OFT" and not settings.get("r") else {}
        settings |= {name: 0} if kind == "OFT" and settings.get("r") else {}
    if kind in BEGINS_AT_ZERO:
        settings[BEGINS_AT_ZERO[kind]] = True
    if "n_frequency" in fields:
        smallest = min((size[0] * size[1] for size in map(_sizes, layers) if size is not None), default=0)
        settings["n_frequency"] = min(fields["n_frequency"].default, smallest)
    if kind == "IA3":
        settings["feedforward_modules"] = _scaled_at_their_input(model, targets)
    if kind == "ADALORA":
        # Half as many ranks more to begin with, as peft's defaults; they are taken where they matter least.
        settings |= {"target_r": settings["r"], "init_r": math.ceil(1.5 * settings.pop("r"))}
        # The run's own number of steps is set when it is known; peft wants one to begin with.
        settings |= {"total_step": 1}
    tied = _touched_tied(model, targets, settings.get("modules_to_save", ()))
    if tied and method in MUTATING and targets is not None and _touched_tied(model, targets, ()):
        raise OptionError(
            f"{NAME}: method={method} takes its beginning out of the weights of {tied[0]}, which another layer shares, "
            f"so that the model would begin as another one. Leave it out of targets, or use method=lora.",
            code="option-combination",
            mend=[mends.set_option(NAME, "method", "lora")],
        )
    # peft ties adapters of embeddings by these names only, and writes the embeddings' own name into the
    # configuration: of another name (GPT-2's wte), the saved adapter loads without the head's part. Of further layers
    # that share the weight (a decoder's own table), it ties some and saves none.
    if "ensure_weight_tying" in fields and tied and _sharing(model) == 2 and _known(tied):
        settings["ensure_weight_tying"] = True
    settings |= _own(method, fields, options or {})
    task = task_of(model)
    _refuse_prompts(method, model, task)
    try:
        return cls(task_type=task, **settings)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{NAME}: method={method} with {settings}: {error}", code="option-combination") from error


def _paths(model: PreTrainedModel, targets: Any) -> list[str]:
    names = tuple(targets.modules)
    return [
        path for path, _ in model.named_modules() if any(path == name or path.endswith(f".{name}") for name in names)
    ]


def _parameters(method: str, fields: Mapping[str, Any], targets: Any) -> dict[str, Any]:
    if not targets.parameters:
        return {}
    if "target_parameters" not in fields or method in ("dora", "pissa", "olora", "eva"):
        raise OptionError(
            f"{NAME}: method={method} cannot adapt fused experts. Use method=lora, or moe=attention.",
            code="option-combination",
            mend=[mends.set_option(NAME, "method", "lora"), mends.set_option(NAME, "moe", "attention")],
        )
    return {"target_parameters": list(targets.parameters)}


def _sizes(layer: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    weight = getattr(layer, "weight", None)
    return (int(weight.shape[0]), int(weight.shape[1])) if weight is not None and weight.dim() == 2 else None


def _rank(
    method: str, fields: Mapping[str, Any], r: int | None, layers: Any, model: PreTrainedModel, targets: Any
) -> dict[str, Any]:
    if "r" not in fields:
        if r is not None:
            raise OptionError(
                f"{NAME}: method={method} has no rank. Leave out r={r}; its own options: {_named(fields)}.",
                code="option-combination",
                mend=[mends.remove_option(NAME, "r")],
            )
        return {}
    if r is None and method in OWN_RANK:
        return {}
    rank = RANK if r is None else r
    for path, layer in zip(_paths(model, targets) if targets is not None else (), layers, strict=True):
        sizes = _sizes(layer)
        if sizes is None or rank <= min(sizes) or (method in ANY_RANK and _is_head(path, targets)):
            continue
        raise OptionError(
            f"{NAME}: option r={rank} is above the size of {path}, {sizes[0]} inputs and {sizes[1]} outputs. Set r to "
            f"{min(sizes)} or less, or leave such layers out of targets (of auto: exclude={path.rpartition('.')[2]}).",
            mend=[mends.set_option(NAME, "r", min(sizes))],
        )
    return {"r": rank}


def _is_head(path: str, targets: Any) -> bool:
    """Whether a layer is outside of the blocks: a classifier's has as many outputs as there are classes."""
    return not any(path.startswith(f"{stack}.") for stack in targets.stacks)


def _alpha(method: str, fields: Mapping[str, Any], settings: Mapping[str, Any], alpha: float | None) -> dict[str, Any]:
    name = next((name for name in ("lora_alpha", "alpha", "psoft_alpha", "randlora_alpha") if name in fields), None)
    if name is None:
        if alpha is not None:
            raise OptionError(
                f"{NAME}: method={method} has no alpha. Leave it out; its own options: {_named(fields)}.",
                code="option-combination",
                mend=[mends.remove_option(NAME, "alpha")],
            )
        return {}
    per_rank = ALPHA_PER_RANK.get(method, ALPHA)
    if alpha is None and (per_rank is None or "r" not in settings):
        return {}
    value = settings["r"] * per_rank if alpha is None and per_rank is not None else alpha
    return {name: int(value) if value is not None and float(value).is_integer() else value}


def _dropout(method: str, fields: Mapping[str, Any], dropout: float) -> dict[str, Any]:
    name = next((name for name in fields if name.endswith("dropout")), None)
    if name is not None:
        return {name: dropout}
    if dropout:
        raise OptionError(
            f"{NAME}: method={method} has no dropout. Leave out dropout={dropout}.",
            code="option-combination",
            mend=[mends.remove_option(NAME, "dropout")],
        )
    return {}


def _divisor(layers: Iterable[Any], most: int) -> int:
    """The largest divisor of all layers' sizes that is not above `most`."""
    common = math.gcd(*(size for layer in layers for size in _sizes(layer) or ()))
    return max((size for size in range(1, most + 1) if common % size == 0), default=1)


def _scaled_at_their_input(model: PreTrainedModel, targets: Any) -> list[str]:
    """IA3 scales what goes into the second layer of a feed-forward block, and what comes out of the others."""
    sizes = {path: _sizes(model.get_submodule(path)) for path in _paths(model, targets)}
    inputs = Counter(size[0] for size in sizes.values() if size is not None)
    width = inputs.most_common(1)[0][0]
    return list(shortest_names(model, [path for path, size in sizes.items() if size is not None and size[0] > width]))


def _touched_tied(model: PreTrainedModel, targets: Any, saved: Iterable[str]) -> list[str]:
    """Paths of the embeddings and the output layer tied to them, if an adapter or a trained copy comes between them."""
    embeddings = input_embeddings(model)
    if not getattr(text_config(model), "tie_word_embeddings", False) or embeddings is None:
        return []
    names = (*saved, *(targets.modules if targets is not None else ()))
    tied = [layer for layer in (embeddings, output_embeddings(model)) if layer is not None]
    paths = [path for path, module in model.named_modules() if any(module is layer for layer in tied)]
    return paths if any(path == name or path.endswith(f".{name}") for path in paths for name in names) else []


def _known(paths: Iterable[str]) -> bool:
    return all(path.rpartition(".")[2] in TIED_NAMES for path in paths)


def _sharing(model: PreTrainedModel) -> int:
    """How many layers share the weight of the embeddings."""
    weight = getattr(input_embeddings(model), "weight", None)
    return sum(getattr(module, "weight", None) is weight for module in model.modules())


def _refuse_prompts(method: str, model: PreTrainedModel, task: str | None) -> None:
    if task is None and method in PROMPTS:
        raise OptionError(
            f"{NAME}: method={method} puts its own before embedded tokens, and peft knows no way into a "
            f"{type(model).__name__}, whose input is {main_input_name(model)}. Use method=lora.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "method", "lora")],
        )


def _own(method: str, fields: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's further options, checked by name."""
    own = {}
    for name, value in options.items():
        if name in OWN_OPTIONS:
            raise OptionError(
                f"{NAME}: say {OWN_OPTIONS[name]}=... instead of config={name}:{value}.",
                code="option-combination",
                mend=[
                    mends.all_of(
                        mends.set_option(NAME, "config", _without(options, name)),
                        mends.set_option(NAME, OWN_OPTIONS[name], value),
                    )
                ],
            )
        if name not in fields:
            near = closest(name, fields)
            raise OptionError(
                f"{NAME}: method={method} has no option {name!r}.{nearest(name, fields)} It has: {_named(fields)}.",
                code="option-unknown",
                mend=[mends.set_option(NAME, "config", [*_without(options, name), f"{near}:{json.dumps(value)}"])]
                if near
                else [],
            )
        if name in NESTED and isinstance(value, Mapping):
            import peft

            value = getattr(peft, NESTED[name])(**value)
        own[name] = value
    return own


def _without(options: Mapping[str, Any], name: str) -> list[str]:
    """The option `config` without one of its keys."""
    return [f"{key}:{json.dumps(value)}" for key, value in options.items() if key != name]


def _named(fields: Mapping[str, Any]) -> str:
    hidden = {*OWN_OPTIONS, "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    return ", ".join(name for name in fields if name not in hidden | {"inference_mode"})
