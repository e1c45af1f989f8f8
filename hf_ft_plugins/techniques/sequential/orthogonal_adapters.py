"""O-LoRA: a new LoRA learns in directions orthogonal to those of earlier stages.

    lambda sum over layers and earlier stages of ||A_earlier A^T||_F^2

Wang et al. 2023 (arXiv:2310.14152). The authors' code sums absolute values instead of squares, and adds an
L2 norm of the new matrices; here it is the paper's equation alone. The gradient with respect to A is
2 lambda A A_earlier^T A_earlier.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...shards import own_part, whole_tensor
from .lora_layers import has_adapter, lora_layers, matrix
from .penalties import Parameters, add_in_full
from .settings import NAME
from .start_weights import plain_name

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class OrthogonalAdapters:
    """weight sum ||A_earlier A^T||_F^2.

    Attributes:
        weight: 0 or more.
        earlier: by the name of A among the model's parameters, the rows of all earlier ones, [ranks, in], in 32 bits
            or more, on A's device.
    """

    weight: float
    earlier: Mapping[str, torch.Tensor]

    @torch.no_grad()
    def add_gradients(self, parameters: Parameters) -> None:
        for name, rows in self.earlier.items():
            parameter = parameters[name]
            if parameter.grad is not None:
                # Each row of A for itself, so that a rank needs no other rows than its own.
                overlaps = matrix(own_part(parameter)) @ rows.T
                add_in_full(parameter.grad, 2 * self.weight * overlaps @ rows)

    @torch.no_grad()
    def value(self, parameters: Parameters) -> float:
        products = (matrix(whole_tensor(parameters[name])) @ rows.T for name, rows in self.earlier.items())
        return self.weight * sum(float(one.square().sum()) for one in products)


def read_earlier(model: Any, folders: Sequence[Path], weight: float, *, begins: bool) -> dict[str, torch.Tensor]:
    """The A matrices of earlier stages, for `OrthogonalAdapters`.

    Args:
        model: with the LoRA that learns.
        folders: where peft has saved the adapters of earlier stages.
        weight: the option olora, for errors.
        begins: whether the adapter has not been trained yet, so that it must not be an earlier one itself.

    Raises:
        PluginError: the model has no LoRA, or not a plain one; a folder has no adapter; none of its layers is one of
            this model's, or of another size; the adapter to train is an earlier stage's.
    """
    option = f"olora={weight:g}"
    if not has_adapter(model):
        raise PluginError(
            f"{NAME}: {option} is for LoRA, and the model has no adapter. Add peft, or set olora=0.",
            code="model-unsuited",
            mend=[mends.add_technique("peft"), mends.set_option(NAME, "olora", 0)],
        )
    learned = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    names = {layer.a: _saved_name(layer.a) for layer in lora_layers(model, option)}
    earlier: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for folder in map(Path, folders):
        saved = _adapter(folder, option)
        found = {name: _entry(saved, saved_name) for name, saved_name in names.items()}
        if all(one is None for one in found.values()):
            raise PluginError(
                f"{NAME}: {option}: none of the layers of the adapter in {folder} has a LoRA in this model "
                f"(it has {next(iter(saved), 'no tensors')}). Train the same layers in each stage, or set olora=0.",
                code="model-unsuited",
                mend=[mends.set_option(NAME, "olora", 0)],
            )
        for name, rows in found.items():
            if rows is None:
                logger.warning("%s: %s has no LoRA in %s, so its directions are free.", NAME, name, folder)
                continue
            if rows.shape[1:] != learned[name].shape[1:]:
                raise PluginError(
                    f"{NAME}: {option}: {name} takes {learned[name].shape[1]} numbers, and in {folder} "
                    f"{rows.shape[1]}. Begin all stages from one base model, or set olora=0.",
                    code="model-unsuited",
                    mend=[mends.set_option(NAME, "olora", 0)],
                )
            earlier[name].append(matrix(rows).to(learned[name].device))
    kept = {name: torch.cat(rows) for name, rows in earlier.items() if rows}
    if begins and any(_is_among(learned[name], earlier[name]) for name in kept):
        raise PluginError(
            f"{NAME}: {option} wants a new adapter for each stage, and the one to train is an earlier stage's. Merge "
            "that into the base model first, or set olora=0.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "olora", 0)],
        )
    return kept


def _adapter(folder: Path, option: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    file = folder / ADAPTER_FILE
    if not file.is_file():
        raise PluginError(
            f"{NAME}: {option} needs the adapter of each earlier stage, and there is no {ADAPTER_FILE} in {folder}. "
            "Keep the adapters of the stages, or set olora=0.",
            code="file-unusable",
            mend=[mends.set_option(NAME, "olora", 0)],
        )
    loaded: dict[str, torch.Tensor] = load_file(file)
    return loaded


def _saved_name(name: str) -> str:
    """What peft calls a parameter in its files: without the adapter's name."""
    return re.sub(r"(\.lora_A)\.[^.]+", r"\1", name)


def _entry(saved: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    # An adapter that transformers itself has put on the model is saved under peft's names, too.
    return saved.get(name, saved.get(f"base_model.model.{name}"))


def _is_among(parameter: torch.Tensor, earlier: list[torch.Tensor]) -> bool:
    whole = matrix(whole_tensor(parameter))
    return any(rows.shape == whole.shape and torch.equal(rows, whole) for rows in earlier)
