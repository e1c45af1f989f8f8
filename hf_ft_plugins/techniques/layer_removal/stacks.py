"""Where a model's layers are: its block stacks, and the configuration's names for their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ...errors import PluginError

NAME = "layer-removal"
# The configuration's names for the number of layers, by side of an encoder-decoder ("" for all other models).
COUNTS = {
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}


@dataclass(frozen=True, eq=False)
class Stack:
    """A model's repeated blocks.

    Attributes:
        name: of the `ModuleList` in the model, `model.layers`.
        parent: the module that holds it, under the last part of `name`.
        config: the configuration that tells its number, which may be a part of the model's.
        counts: the attributes of `config` that hold the number of its layers.
    """

    name: str
    parent: nn.Module
    config: Any
    counts: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def layers(self) -> nn.ModuleList:
        return getattr(self.parent, self.key)


def block_stacks(model: nn.Module) -> dict[str, Stack]:
    """The model's block stacks: {"": stack}, or {"encoder": ..., "decoder": ...} of an encoder-decoder.

    A stack is the `ModuleList` with the most parameters whose length is the configuration's number of layers; vision
    and audio towers beside a language model are not looked at.

    Raises:
        PluginError: there is none.
    """
    whole: Any = model.config
    text = whole.get_text_config() if not whole.is_encoder_decoder else whole
    found = {}
    for side in ("encoder", "decoder") if whole.is_encoder_decoder else ("",):
        candidates = []
        for name, module in model.named_modules():
            if not isinstance(module, nn.ModuleList) or (side and side not in name.split(".")):
                continue
            counts = tuple(attribute for attribute in COUNTS[side] if getattr(text, attribute, None) == len(module) > 0)
            if counts and not {"vision_tower", "vision_model", "visual", "audio_tower"} & set(name.split(".")):
                size = sum(parameter.numel() for parameter in module.parameters())
                candidates.append((size, name, counts))
        if not candidates:
            of = f" of the {side}" if side else ""
            raise PluginError(
                f"{NAME}: {type(model).__name__} has no list of layers{of} whose length its configuration tells "
                f"({', '.join(COUNTS[side])}); layers of this architecture cannot be removed."
            )
        _, name, counts = max(candidates)
        found[side] = Stack(name, model.get_submodule(name.rpartition(".")[0]), text, counts)
    return found
