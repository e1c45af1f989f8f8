"""Where a model's layers are: its block stacks, and the configuration's names for their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ...errors import OptionError, PluginError

NAME = "layer-removal"
# The configuration's names for the number of layers, by half of an encoder-decoder ("" for all other models).
COUNTS = {
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth"),
    "encoder": ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"),
}
TOWERS = {"vision_tower", "vision_model", "visual", "audio_tower"}


@dataclass(frozen=True, eq=False)
class Stack:
    """A model's repeated blocks.

    Attributes:
        name: of the `ModuleList` in the model, `model.layers`.
        parent: the module that holds it, under the last part of `name`.
        config: the configuration that tells its number, which may be a part of the model's.
        counts: the attributes of `config` that hold the number of its layers.
        half: "encoder" or "decoder" where `config` tells of both, though the model may have but one of them.
    """

    name: str
    parent: nn.Module
    config: Any
    counts: tuple[str, ...]
    half: str = ""

    @property
    def key(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def layers(self) -> nn.ModuleList:
        return getattr(self.parent, self.key)

    @property
    def keys(self) -> list[str]:
        """Of all lists beside it that are as long, its own among them: XLM's blocks are spread over four."""
        beside = self.parent._modules.items()
        return [key for key, one in beside if isinstance(one, nn.ModuleList) and len(one) == len(self.layers)]


def block_stacks(model: nn.Module) -> dict[str, Stack]:
    """The model's block stacks: {"": stack}, or {"encoder": ..., "decoder": ...} of an encoder-decoder, or the one of
    them that is there.

    A stack is the `ModuleList` with the most parameters whose length is the configuration's number of layers; vision
    and audio towers beside a language model are not looked at.

    Raises:
        PluginError: there is none.
    """
    whole: Any = model.config
    found = sorted(_stacks(model), key=lambda pair: pair[0])
    sides = {_side(stack.name): stack for _, stack in found} if whole.is_encoder_decoder else {}
    sides = {side: sides[side] for side in ("encoder", "decoder") if side in sides}
    if sides:
        return sides
    if found:
        return {"": found[-1][1]}
    raise PluginError(
        f"{NAME}: {type(model).__name__} has no list of layers whose length its configuration tells "
        f"({', '.join(COUNTS[''])}); layers of this architecture cannot be removed."
    )


def find_stack(model: nn.Module, side: str) -> Stack:
    """The stack of that side; "" is also the only one that there is.

    Raises:
        OptionError: there is none of that side.
    """
    stacks = block_stacks(model)
    if not side and len(stacks) == 1:
        return next(iter(stacks.values()))
    if side not in stacks:
        raise OptionError(f"{NAME}: side={side!r}; this model has {', '.join(map(repr, stacks))}.")
    return stacks[side]


def usual_side(model: nn.Module, side: str = "") -> str:
    """`side`, or where nothing is said: of an encoder-decoder the decoder, of all others the only one."""
    stacks = block_stacks(model)
    return side or ("decoder" if "decoder" in stacks else next(iter(stacks)))


def _stacks(model: nn.Module) -> list[tuple[int, Stack]]:
    """Every stack that may be meant, with its size: those of the model itself or of its text, before any other."""
    whole: Any = model.config
    text = whole if whole.is_encoder_decoder else whole.get_text_config()
    main: list[tuple[int, Stack]] = []
    others: list[tuple[int, Stack]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        config = _config_of(model, name, text)
        counts, half = _counts(config, name, len(module))
        if not counts:
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        found = sum(parameter.numel() for parameter in module.parameters()), Stack(name, parent, config, counts, half)
        is_main = whole.is_encoder_decoder or config is text or config is whole
        (main if is_main and not TOWERS & set(name.split(".")) else others).append(found)
    return main or others


def _config_of(model: nn.Module, name: str, default: Any) -> Any:
    """The part of the model's configuration that the module of that name is made by."""
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
    """The attributes that tell this number, and of which half of the configuration they are."""
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
    """Which side of an encoder-decoder the module of that name is on: the outermost part of it tells."""
    for part in name.split("."):
        for side in ("encoder", "decoder"):
            if part.endswith(side):
                return side
    return ""
