"""What each algorithm keeps and needs, for the estimate of memory; of models without numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SCALES = 2 * 4 / 256  # bytes a value: two float32 scales for each block of 256
SMALL = 4096  # values of a tensor below which moments stay in 32 bits
PART = 2**22  # values that are stepped at once


def effects(algorithm: str, *, fused: bool, rank: int, active_layers: int) -> dict[str, Any]:
    """`Technique.memory_effects` of `low-memory` with these options."""
    from ...memory.trial_run import OptimizerMemory

    state = STATES.get(algorithm)
    memory = OptimizerMemory(
        state=None if state is None else lambda model: state(model, rank),
        temporary=lambda parameter: 4.0 * min(parameter.numel(), PART),
        in_backward=fused and algorithm != "mezo",
        forward_only=algorithm == "mezo",
    )
    found: dict[str, Any] = {"optimizer": memory}
    if algorithm in ("lisa", "badam"):
        found["change"] = lambda model: _rest(model, algorithm, active_layers)
    elif algorithm == "compact-adamw":
        found["change"] = _halved
    return found


def _trained(model: Any) -> list[Tensor]:
    return [one for one in model.parameters() if one.requires_grad]


def _each(bytes_of: Callable[[Any], float]) -> Callable[[Any, int], float]:
    return lambda model, rank: sum(map(bytes_of, _trained(model)))


def _of_matrices(bytes_of: Callable[[Any, int], float]) -> Callable[[Any, int], float]:
    """`bytes_of(matrix, rank)` for the matrices of the blocks; AdamW's two moments for all else."""

    def state(model: Any, rank: int) -> float:
        from ...models.linear_layers import matrices_of_blocks

        matrices = matrices_of_blocks(model)
        return sum(
            bytes_of(one, rank) if id(one) in matrices and min(one.shape) > rank else 2.0 * one.nbytes
            for one in _trained(model)
        )

    return state


def _moments_in_8_bits(parameter: Any) -> float:
    return (8.0 if parameter.numel() < SMALL else 2 + SCALES) * parameter.numel()


def _adamw_8bit(model: Any, rank: int) -> float:
    """Moments of embeddings stay in 32 bits, too."""
    import torch

    tables = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    return sum(8.0 * one.numel() if id(one) in tables else _moments_in_8_bits(one) for one in _trained(model))


def _adalomo(parameter: Any) -> float:
    sides = sorted(parameter.shape)
    if len(sides) < 2:
        return 4.0 * parameter.numel()
    return 4.0 * parameter.numel() * (1 / sides[-1] + 1 / sides[-2])


def _galore(matrix: Any, rank: int) -> float:
    """A projector on the smaller side, and two moments of the projected gradient."""
    return 4.0 * rank * (min(matrix.shape) + 2 * max(matrix.shape))


# Bytes of state for what is trained; of algorithms that are not here, as the script's optimizer.
STATES: dict[str, Callable[[Any, int], float]] = {
    "adamw-8bit": _adamw_8bit,
    "compact-adamw": _each(lambda one: one.numel() + _moments_in_8_bits(one)),
    "lomo": lambda model, rank: 0.0,
    "adalomo": _each(_adalomo),
    "galore": _of_matrices(_galore),
    "apollo": _of_matrices(lambda matrix, rank: 8.0 * rank * max(matrix.shape)),
    "apollo-mini": lambda model, rank: _of_matrices(lambda matrix, one: 8.0 * max(matrix.shape))(model, 1),
    "sinkgd": lambda model, rank: _of_matrices(lambda matrix, none: 0.0)(model, 0),
    "muon": lambda model, rank: _of_matrices(lambda matrix, none: 1.0 * matrix.nbytes)(model, 0),
    "mezo": lambda model, rank: 0.0,
}


def _rest(model: Any, way: Any, active: int) -> Any:
    """The model with as much that learns as ever does at a time."""
    from .blocks import blocks_of

    blocks = blocks_of(model, way)
    named = dict(model.named_parameters())
    if way == "badam":
        blocks.sort(key=lambda block: sum(named[name].numel() for name in block.parameters), reverse=True)
    for block in blocks[1 if way == "badam" else active :]:
        for name in block.parameters:
            named[name].requires_grad_(False)
    return model


def _halved(model: Any) -> Any:
    import torch

    if any(not one.requires_grad for one in model.parameters()):
        for one in _trained(model):
            one.data = one.data.to(torch.bfloat16)
        return model
    return model.to(torch.bfloat16)
