"""Which layers of a model get an adapter: the linear layers of its repeated blocks, whatever the architecture.

    targets = find_targets(model)
    model = get_peft_model(model, LoraConfig(target_modules=list(targets.modules)))

peft maps q and v of 29 of 189 causal models by name, and its `all-linear` takes the routers of experts, too, and passes
over experts that are fused into one tensor. Here the structure is read: a stack is a `ModuleList` (or `Sequential`) of
blocks; the largest is taken (of an encoder-decoder both; of a model of several modalities those of the text).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ... import mends
from ...errors import PluginError
from ...models.linear_layers import is_router, linear_layers_of_blocks
from .layers import NAME, block_stacks, shortest_names, some_names, without_numbers
from .quantization import other_quantisation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Adapters that reach less of the blocks leave most of the model as it was, and must be meant.
LEAST_COVERAGE = 0.5
# Their kernels read these layers' weights directly; peft refuses adapters on them.
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
READ_DIRECTLY = ("out_proj", "conv1d")


@dataclass(frozen=True)
class Targets:
    """Where adapters go.

    Attributes:
        modules: names for `target_modules`; each fits its layers and no other of the model.
        parameters: names for `target_parameters`: experts' fused tensors of three dimensions.
        layers: how many layers and tensors these are.
        stacks: paths of the stacks of blocks.
        coverage: share, of the blocks' parameters, that the adapters act on.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    layers: int
    stacks: tuple[str, ...]
    coverage: float

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(map(without_numbers, (*self.modules, *self.parameters))))
        return (
            f"{self.layers} layers of {' and '.join(self.stacks)} ({names}), "
            f"{self.coverage:.1%} of the blocks' parameters"
        )


def find_targets(
    model: PreTrainedModel, *, moe: Literal["attention", "experts"] | None = None, exclude: Iterable[str] = ()
) -> Targets:
    """All linear layers of the blocks: no head, no embeddings, no router of experts, no tower of another modality.

    Args:
        model: a transformers model without adapters, quantised or not; on any device, `meta` too.
        moe: `experts`: also the fused tensors of experts; `attention`: not them, even if little is left; None: an error
            where the layers that are found hold less than half of the blocks' parameters.
        exclude: ends of names (`mlp.down_proj`) or whole names that get none.

    Raises:
        PluginError: no block or no linear layer is found, an exclusion fits nothing, or most would stay frozen.
    """
    stacks = block_stacks(model)
    layers = dict(_layers_to_adapt(model))
    fused = [path for stack in stacks for path in _fused_experts(model, stack)] if moe == "experts" else []
    for name in exclude:
        fitting = [path for path in (*layers, *fused) if _fits(path, name)]
        if not fitting:
            raise PluginError(
                f"{NAME}: exclude={name} fits none of the layers that get an adapter.{_near(name, layers)}",
                code="option-value",
                mend=[mends.set_option(NAME, "exclude", [other for other in exclude if other != name])],
            )
        layers = {path: module for path, module in layers.items() if path not in fitting}
        fused = [path for path in fused if path not in fitting]
    if not layers and not fused:
        how = other_quantisation(model)
        if how is not None:
            raise PluginError(
                f"{NAME}: the layers of this {type(model).__name__} are quantised by {how}, and are no linear layers "
                f"of torch or bitsandbytes. Name those that get an adapter: targets=..., among: {some_names(model)}.",
                code="model-unsuited",
            )
        raise PluginError(
            f"{NAME}: no linear layer is found in the blocks of a {type(model).__name__} ({', '.join(stacks)}). Name "
            f"its layers: targets=..., among: {some_names(model)}.",
            code="model-unsuited",
        )
    coverage = _coverage(model, stacks, layers, fused)
    if coverage < LEAST_COVERAGE and moe is None and not exclude:
        has_experts = any(True for stack in stacks for _ in _fused_experts(model, stack))
        remedy = (
            "Say moe=experts to adapt its experts too, or moe=attention if the rest is what you want"
            if has_experts
            else "Name its layers: targets=..."
        )
        raise PluginError(
            f"{NAME}: the linear layers of a {type(model).__name__} hold {coverage:.1%} of its blocks' parameters; the "
            f"others would stay frozen. {remedy}.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "moe", kind) for kind in ("experts", "attention")] if has_experts else [],
        )
    return Targets(
        modules=shortest_names(model, layers),
        parameters=tuple(sorted({without_numbers(path) for path in fused})),
        layers=len(layers) + len(fused),
        stacks=stacks,
        coverage=coverage,
    )


def named_targets(model: PreTrainedModel, names: Iterable[str]) -> Targets:
    """The layers that the user names: each is a layer's whole name or the end of it.

    Raises:
        PluginError: a name fits no layer; the text lists names that are near, or there.
    """
    found: dict[str, Any] = {}
    modules = {
        path: module for path, module in model.named_modules() if path and any(True for _ in module.parameters())
    }
    for name in names:
        fitting = {path: module for path, module in modules.items() if _fits(path, name)}
        if not fitting:
            others = _near_ends(name, modules)
            raise PluginError(
                f"{NAME}: targets={name} fits no layer of a {type(model).__name__}.{_near(name, modules)}",
                code="option-value",
                mend=[
                    mends.set_option(NAME, "targets", [near if one == name else one for one in names])
                    for near in others
                ],
            )
        found |= fitting
    stacks = block_stacks(model)
    return Targets(tuple(names), (), len(found), stacks, _coverage(model, stacks, found, []))


def find_norms(model: PreTrainedModel) -> Targets:
    """The norms of the blocks, for the method `ln_tuning`."""
    stacks = block_stacks(model)
    found = {
        f"{stack}.{path}": module
        for stack in stacks
        for path, module in model.get_submodule(stack).named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())
    }
    return Targets(shortest_names(model, found), (), len(found), stacks, _coverage(model, stacks, found, []))


def _layers_to_adapt(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    config = getattr(model, "config", None)
    reads = READ_DIRECTLY if getattr(config, "model_type", None) in MAMBA else ()
    for path, module in linear_layers_of_blocks(model):
        if path.rpartition(".")[2] not in reads and not is_router(model, path, module):
            yield path, module


def _fused_experts(model: PreTrainedModel, stack: str) -> Iterator[str]:
    for inside, parameter in model.get_submodule(stack).named_parameters():
        if parameter.dim() == 3 and "experts" in inside.split("."):
            yield f"{stack}.{inside}"


def _coverage(model: PreTrainedModel, stacks: Iterable[str], layers: dict[str, Any], fused: Iterable[str]) -> float:
    owned = {id(parameter): _size(parameter) for module in layers.values() for parameter in module.parameters()}
    owned |= {id(parameter): _size(parameter) for parameter in map(model.get_parameter, fused)}
    blocks = {id(one): _size(one) for stack in stacks for one in model.get_submodule(stack).parameters()}
    return sum(size for key, size in owned.items() if key in blocks) / max(1, sum(blocks.values()))


def _size(parameter: Any) -> int:
    """How many weights it holds; NF4 packs two into a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel() if state is not None else parameter.numel())


def _fits(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _near(name: str, known: Iterable[str]) -> str:
    near = _near_ends(name, known)
    return f" Did you mean {' or '.join(near)}?" if near else f" There are: {', '.join(_ends(known)[:12])}."


def _near_ends(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, _ends(known), n=3, cutoff=0.4)


def _ends(paths: Iterable[str]) -> list[str]:
    return sorted({end for path in paths for end in (path.rpartition(".")[2], without_numbers(path))})
