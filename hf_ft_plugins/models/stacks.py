"""A model's stacks of blocks, read from its structure: their places and order, and the configuration of their depth.

    for stack in all_stacks(model):
        print(stack.name, stack.depth, stack.modality, stack.half, stack.counts)

A stack is an outermost `ModuleList` or `Sequential` whose entries have submodules. If one configuration makes several
such lists, those with the strongest evidence are stacks: first, that their entries are transformers' layers for
gradient checkpointing; second, that the configuration holds their number; third, that they have a large share of the
model's parameters. The other lists are stems, mergers and the like. No model is recognised by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import OptionError, PluginError
from ..near import nearest_value
from .text_part import text_config

# The configuration's names for the number of layers, by half of an encoder-decoder ("" for all other models).
COUNTS = {
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth"),
    "encoder": ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"),
}
# Its names for lists with an entry for each stage.
STAGES = ("depths", "block_sizes", "hidden_sizes", "num_blocks")
# Share of the model's parameters without embeddings: a smaller list without other evidence is no stack.
SHARE = 0.1
TEXT = "text"


@dataclass(frozen=True, eq=False)
class Stack:
    """A model's repeated blocks.

    Attributes:
        name: of the list in the model, `model.layers`.
        parent: the module that holds it, under the last part of `name`.
        config: the configuration that it is made by, which may be a part of the model's; None where there is none.
        counts: the attributes of `config` that hold the number of its layers.
        half: "encoder" or "decoder" if `config` describes both, even if the model has only one of them.
        modality: the input of the part of the model that the stack is in: "text" if that is among its inputs, else
            "image", ...; for a part that declares none, the name of its configuration in the whole model's.
    """

    name: str
    parent: nn.Module
    config: Any
    counts: tuple[str, ...] = ()
    half: str = ""
    modality: str = TEXT

    @property
    def key(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def layers(self) -> Any:
        """The list itself: a `ModuleList`, or a `Sequential`."""
        return getattr(self.parent, self.key)

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def is_declared(self) -> bool:
        """Whether the configuration holds its depth, as a number or as a list with an entry for each stage."""
        stages = (getattr(self.config, name, None) for name in STAGES)
        return bool(self.counts) or any(isinstance(one, list | tuple) and len(one) == self.depth for one in stages)

    @property
    def rank(self) -> tuple[bool, bool]:
        """Sorts stacks in the order in which they run."""
        return self.modality == TEXT, _side(self.name) == "decoder"

    @property
    def keys(self) -> list[str]:
        """Names of all lists of its length in the same module, its own included: XLM's blocks are spread over four."""
        beside = self.parent._modules.items()
        return [key for key, one in beside if isinstance(one, nn.ModuleList) and len(one) == len(self.layers)]

    @property
    def paths(self) -> list[str]:
        """Paths of the lists that its blocks consist of: its own; if its entries are no whole blocks, all of `keys`."""
        if _is_of_whole_blocks(self.layers) or not self.is_declared:
            return [self.name]
        above = self.name.removesuffix(self.key)
        return [f"{above}{key}" for key in self.keys] or [self.name]

    @property
    def blocks(self) -> list[tuple[str, ...]]:
        """The paths of each block's modules that have parameters, bottom to top; in most models one module a block."""
        modules = [(path, self.parent._modules[path.rpartition(".")[2]]) for path in self.paths]
        found = (
            tuple(f"{path}.{key}" for path, listed in modules if listed is not None and _has_weights(listed, key))
            for key in self.layers._modules
        )
        return [block for block in found if block]


def all_stacks(model: nn.Module) -> list[Stack]:
    """Every stack of the model, towers of other modalities included, in the order in which an input goes through them:
    towers before the text that reads them, an encoder before its decoder, else as the model defines them.

    Args:
        model: any module, with a configuration or without, under a PEFT wrapper or not; on any device, `meta` too.
    """
    whole = _weight(model)
    found = [(stack, _evidence(stack, whole)) for stack in (_stack(model, *pair) for pair in _lists(model, ""))]
    best: dict[int, int] = {}
    for stack, evidence in found:
        best[id(stack.config)] = max(evidence, best.get(id(stack.config), 1))
    stacks = _once([stack for stack, evidence in found if evidence == best[id(stack.config)]])
    stacks = [stack for stack in stacks if not any(_takes_the_number(other, stack) for other in stacks)]
    return sorted(stacks, key=lambda stack: stack.rank)


def text_stacks(model: nn.Module) -> list[Stack]:
    """Those that the text goes through, of an encoder-decoder both halves; all of a model of another modality."""
    stacks, text, whole = all_stacks(model), text_config(model), getattr(model, "config", None)
    read = [stack for stack in stacks if _is_main(stack, model)]
    if getattr(whole, "is_encoder_decoder", False):
        own = [stack for stack in read if stack.config is whole or stack.modality == TEXT]
    else:
        own = [stack for stack in read if stack.config is text and TEXT in _modalities(model)]
    # A whole that is made of parts alone, which names none of them the text's.
    return own or read or sorted(stacks, key=lambda stack: _size(stack.layers))[-1:]


def block_stacks(model: nn.Module, asker: str) -> dict[str, Stack]:
    """The stacks whose depth the configuration holds as a number: {"": stack}; for an encoder-decoder {"encoder": ...,
    "decoder": ...}, or the one of them that is there. Of several stacks the largest is taken; towers of other
    modalities beside a language model are ignored.

    Args:
        asker: the technique, for the error.

    Raises:
        PluginError: there is none.
    """
    whole: Any = model.config
    declared = [stack for stack in all_stacks(model) if stack.counts and isinstance(stack.layers, nn.ModuleList)]
    found = [stack for stack in declared if _is_main(stack, model)]
    found.sort(key=lambda stack: _size(stack.layers))
    sides = {_side(stack.name): stack for stack in found} if whole.is_encoder_decoder else {}
    sides = {side: sides[side] for side in ("encoder", "decoder") if side in sides}
    if sides:
        return sides
    if found:
        return {"": found[-1]}
    raise PluginError(
        f"{asker}: {type(model).__name__} has no list of layers whose length its configuration tells "
        f"({', '.join(COUNTS[''])}); layers of this architecture cannot be removed.",
        code="model-unsuited",
    )


def find_stack(model: nn.Module, side: str, asker: str) -> Stack:
    """The stack of that side; "" is also the only one that there is.

    Raises:
        OptionError: there is none of that side.
        PluginError: there is none at all.
    """
    stacks = block_stacks(model, asker)
    if not side and len(stacks) == 1:
        return next(iter(stacks.values()))
    if side not in stacks:
        raise OptionError(
            f"{asker}: side={side!r}; this model has {', '.join(map(repr, stacks))}.",
            mend=nearest_value(asker, "side", side, stacks),
        )
    return stacks[side]


def usual_side(model: nn.Module, side: str, asker: str) -> str:
    """`side`, or where it is "": of an encoder-decoder the decoder, of all others the only one."""
    stacks = block_stacks(model, asker)
    return side or ("decoder" if "decoder" in stacks else next(iter(stacks)))


# ---- lists of blocks, and the evidence that they are stacks ----


def _lists(module: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
    """Outermost lists of modules with submodules. A list whose entries are no whole blocks does not hide a list of
    whole blocks inside it.
    """
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if not _is_list_of_blocks(child):
            yield from _lists(child, inside)
        elif _is_of_whole_blocks(child):
            yield inside, child
        else:
            deeper = [found for found in _lists(child, inside) if _is_of_whole_blocks(found[1])]
            yield from deeper or [(inside, child)]


def _is_list_of_blocks(module: Any) -> bool:
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    return is_list and _size(module) > 0 and any(any(True for _ in block.children()) for block in module.children())


def _is_of_whole_blocks(module: Any) -> bool:
    """Whether most entries are layers for gradient checkpointing, or stages that hold some."""
    blocks = list(module.children())
    whole = [block for block in blocks if any(isinstance(part, GradientCheckpointingLayer) for part in block.modules())]
    return 2 * len(whole) > len(blocks)


def _evidence(stack: Stack, whole: int) -> int:
    """The strength of the evidence that it is a stack: see the module's docstring."""
    if _is_of_whole_blocks(stack.layers):
        return 4 if stack.is_declared else 3
    return 2 if stack.is_declared else int(_weight(stack.layers) >= SHARE * whole)


def _once(stacks: list[Stack]) -> list[Stack]:
    """Without stacks whose lists already belong to another: of XLM's four lists, only the largest is kept."""
    owners: dict[str, Stack] = {}
    for stack in sorted(stacks, key=lambda one: -_size(one.layers)):
        for path in stack.paths:
            owners.setdefault(path, stack)
    return [stack for stack in stacks if owners[stack.name] is stack]


def _takes_the_number(larger: Stack, stack: Stack) -> bool:
    """Whether the configuration's number of layers belongs to `larger`, and only happens to be the length of `stack`,
    which is elsewhere: Wav2Vec2 may have as many convolutions as layers.
    """
    tells = larger.counts and (larger.counts, larger.half) == (stack.counts, stack.half)
    apart = larger.config is stack.config and larger.parent is not stack.parent
    return bool(tells and apart and _size(larger.layers) > _size(stack.layers))


# ---- the configuration of a stack ----


def _stack(model: Any, name: str, listed: Any) -> Stack:
    parent = model.get_submodule(name.rpartition(".")[0])
    if getattr(model, "config", None) is None:
        return Stack(name, parent, None)
    text = model.config if model.config.is_encoder_decoder else text_config(model)
    config = _config_of(model, name, text)
    counts, half = _counts(config, name, len(listed))
    return Stack(name, parent, config, counts, half, _modality(model, name, config))


def _is_main(stack: Stack, model: Any) -> bool:
    """Whether it is not a tower of another modality: its configuration is the text's, the whole's, or a half's."""
    whole = getattr(model, "config", None)
    if TEXT not in _modalities(model) or stack.config is whole:
        return True
    if getattr(whole, "is_encoder_decoder", False):
        halves = (getattr(whole, "encoder", None), getattr(whole, "decoder", None))
        return stack.modality == TEXT or any(stack.config is half for half in halves)
    return stack.modality == TEXT and stack.config is text_config(model)


def _modality(model: Any, name: str, config: Any) -> str:
    """The input of the innermost module around it that declares one; else its configuration's; else the model's."""
    path = name
    while "." in path:
        path = path.rpartition(".")[0]
        part = model.get_submodule(path)
        if "input_modalities" in _own_attributes(part, model):
            return _first(_modalities(part))
    if config is not model.config and config is not text_config(model) and not model.config.is_encoder_decoder:
        keys = (key for key, value in vars(model.config).items() if value is config)
        return next(keys, _first(_modalities(model))).removesuffix("_config")
    return _first(_modalities(model))


def _first(modalities: tuple[str, ...]) -> str:
    return TEXT if TEXT in modalities else modalities[0]


def _own_attributes(part: Any, model: Any) -> set[str]:
    return {name for cls in type(part).__mro__ if cls not in type(model).__mro__ for name in vars(cls)}


def _modalities(model: Any) -> tuple[str, ...]:
    found = getattr(model, "input_modalities", None) or TEXT
    return (found,) if isinstance(found, str) else tuple(found)


def _config_of(model: Any, name: str, default: Any) -> Any:
    """The part of the model's configuration from which the module of that name is made."""
    known = list(_parts(model.config))
    parts = name.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        own = getattr(model.get_submodule(".".join(parts[:count])), "config", None)
        if any(own is one for one in known):
            return own
        # Some models hand their parts a copy.
        equal = [one for one in known if type(one) is type(own) and one is not model.config]
        if len(equal) == 1:
            return equal[0]
    return default


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _counts(config: Any, name: str, depth: int) -> tuple[tuple[str, ...], str]:
    """The attributes of the configuration that hold this depth, and the half (encoder, decoder) that they describe."""
    side = _side(name)
    other = {"encoder": "decoder", "decoder": "encoder"}.get(side)
    aliases = type(config).attribute_map
    names = [aliases.get(count, count) for count in (*COUNTS[side], *COUNTS[""])]
    names = [count for count in dict.fromkeys(names) if vars(config).get(count) == depth]
    names = [count for count in names if other is None or other not in count]
    own = tuple(count for count in names if side and side in count)
    if own:
        return own, side
    if config.is_encoder_decoder and side == "decoder":
        return (), side
    return tuple(names), side if config.is_encoder_decoder else ""


def _side(name: str) -> str:
    """Which side of an encoder-decoder the module of that name is on, by the outermost part of the name."""
    for part in name.split("."):
        for side in ("encoder", "decoder"):
            if part.endswith(side):
                return side
    return ""


def _has_weights(listed: Any, key: str) -> bool:
    return key in listed._modules and any(True for _ in listed._modules[key].parameters())


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weight(module: Any) -> int:
    """The number of parameters without those of embeddings."""
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    inside = {id(parameter) for part in embeddings for parameter in part.parameters()}
    return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in inside)
