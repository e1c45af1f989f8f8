"""`CompactAdamW`: AdamW in five bytes a parameter, seven with its gradient, where float32 takes sixteen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ....errors import PluginError
from ..settings import NAME
from .companding import BLOCK, join, read_signed, read_unsigned, scales_of, split, write_signed, write_unsigned
from .per_tensor import PerTensorOptimizer

SMALL = 4096  # values of a tensor below which its moments stay in float32
# Values that are in float32 at one time, multiples of BLOCK: on a CPU as many as its caches hold; on other devices so
# many that starting a kernel takes no longer than what it does.
CHUNK, CHUNK_OF_DEVICE = 2**18, 2**22
STATE = {"step", "turn", "mean", "root", "mean_scale", "root_scale", "rest"}


class CompactAdamW(PerTensorOptimizer):
    """AdamW (Loshchilov & Hutter 2019) as FlashOptim stores it (arXiv:2602.23349; deviations: `companding`).

    A bf16 parameter keeps eight more bits of each weight in the state, so that steps below its own precision add up.
    Its gradient, what micro-batches sum in it, and what the forward pass sees are bf16. A float32 parameter stays as it
    is, and only its moments are compact; `halve_weights` turns it to bf16. Both moments are 8 bits with a scale for
    every 256 values; those of tensors of fewer than 4,096 values are float32. Each step computes in float32, 2**18
    values at a time (2**22 if not on a CPU).

    Weights that are changed between steps by somebody else keep their old eight bits, less than half a unit of bf16.

    Args:
        params: tensors, or groups of them: bf16 or float32.
        lr, betas, eps, weight_decay: as for `torch.optim.AdamW`.

    Raises:
        PluginError: an argument is out of range, or a parameter is neither bf16 nor float32.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _refuse(not group["lr"] >= 0, "lr", group["lr"], "0 or more")
        _refuse(not all(0 <= beta < 1 for beta in group["betas"]), "betas", group["betas"], "two numbers in [0, 1)")
        _refuse(not group["eps"] > 0, "eps", group["eps"], "a number above 0")
        _refuse(not group["weight_decay"] >= 0, "weight_decay", group["weight_decay"], "0 or more")
        for parameter in group["params"]:
            known = parameter.dtype in (torch.bfloat16, torch.float32)
            _refuse(not known, "params", parameter.dtype, "tensors in bfloat16 or float32")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with all dtypes as they were saved.

        Raises:
            PluginError: the state is another optimizer's, or of weights of another dtype.
        """
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            strange = sorted(state.keys() - STATE)
            if strange:
                raise PluginError(
                    f"{NAME}: the saved optimizer is not CompactAdamW; its state has {', '.join(strange)}. Resume with "
                    "the algorithm of that run, or train anew in another output_dir.",
                    code="checkpoint-other-run",
                )
            is_half = parameter.dtype is torch.bfloat16
            if ("rest" in state) != is_half:
                raise PluginError(
                    f"{NAME}: a weight of shape {tuple(parameter.shape)} is {parameter.dtype}, and was "
                    f"{'float32' if is_half else 'bfloat16'} in the run that is resumed. Use the dtype of the model, "
                    "and the bf16=, of that run.",
                    code="checkpoint-other-run",
                )

    @torch.no_grad()
    def halve_weights(self, *, vectors: bool = True) -> int:
        """Turn all float32 parameters to bf16, in place, and keep eight more bits of each weight in the state.

        Args:
            vectors: also those of one dimension or none.

        Returns:
            How many weights were turned.
        """
        turned = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dtype is not torch.float32 or not (vectors or parameter.dim() > 1):
                    continue
                kept = torch.empty_like(parameter, dtype=torch.bfloat16)
                rest = torch.empty(parameter.numel(), dtype=torch.int8, device=parameter.device)
                whole, written = _flat(parameter), _flat(kept)
                for part in _parts(parameter):
                    split(whole[part], written[part], rest[part])
                _write_back(kept, written)
                parameter.grad = None
                parameter.data = kept
                self.state[parameter]["rest"] = rest
                turned += parameter.numel()
        return turned

    @torch.no_grad()
    def full_weight(self, parameter: torch.Tensor) -> torch.Tensor:
        """float32, of the parameter's shape: the weight with the bits that bf16 lacks, where it has some."""
        rest = self.state.get(parameter, {}).get("rest")
        if rest is None:
            return parameter.detach().float()
        return join(_flat(parameter), rest).view(parameter.shape)

    def update(
        self, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        self._advance(parameter, gradient, state, group, first=True, last=True, count=1)

    @torch.no_grad()
    def fold(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor | None,
        group: dict[str, Any],
        *,
        first: bool,
        last: bool,
        count: int,
    ) -> None:
        """One of the gradients whose sum is a step's; see `folding.Folding`."""
        self._advance(parameter, gradient, self.state[parameter], group, first=first, last=last, count=count)

    def _advance(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor | None,
        state: dict[str, Any],
        group: dict[str, Any],
        *,
        first: bool,
        last: bool,
        count: int,
    ) -> None:
        _complete(state, parameter)
        state["step"] += int(first)
        # Of the dither; several gradients may make one step.
        state["turn"] += 1
        weights = _flat(parameter)
        gradients = None if gradient is None else _flat(gradient)
        for part in _parts(parameter):
            self._advance_part(weights, gradients, state, group, part, first=first, last=last, count=count)
        if last:
            _write_back(parameter, weights)

    def _advance_part(
        self,
        weights: torch.Tensor,
        gradients: torch.Tensor | None,
        state: dict[str, Any],
        group: dict[str, Any],
        part: slice,
        *,
        first: bool,
        last: bool,
        count: int,
    ) -> None:
        beta1, beta2 = group["betas"]
        is_small = "mean_scale" not in state
        blocks = slice(part.start // BLOCK, scales_of(part.stop))
        if is_small:
            mean, root = state["mean"][part], state["root"][part]
        else:
            mean = read_signed(state["mean"][part], state["mean_scale"][blocks])
            root = read_unsigned(state["root"][part], state["root_scale"][blocks])
        if gradients is not None:
            gradient = gradients[part].float()
            if first:
                mean.mul_(beta1)
            mean.add_(gradient, alpha=1 - beta1)
            root.square_()
            if first:
                root.mul_(beta2)
            root.addcmul_(gradient, gradient, value=count * (1 - beta2)).sqrt_()
        if last:
            self._move(weights, state, group, part, mean, root)
        if gradients is not None and not is_small:
            write_signed(mean, state["mean"][part], state["mean_scale"][blocks], state["turn"])
            write_unsigned(root, state["root"][part], state["root_scale"][blocks], state["turn"])

    def _move(
        self,
        weights: torch.Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        part: slice,
        mean: torch.Tensor,
        root: torch.Tensor,
    ) -> None:
        beta1, beta2 = group["betas"]
        lr, step = float(group["lr"]), state["step"]
        rest = state.get("rest")
        weight = weights[part] if rest is None else join(weights[part], rest[part])
        if group["weight_decay"] != 0:
            weight.mul_(1 - lr * group["weight_decay"])
        divisor = (root / (1 - beta2**step) ** 0.5).add_(group["eps"])
        weight.addcdiv_(mean, divisor, value=-lr / (1 - beta1**step))
        if rest is not None:
            split(weight, weights[part], rest[part], state["turn"])


def _complete(state: dict[str, Any], parameter: torch.Tensor) -> None:
    """Add to the state what it lacks at a parameter's first step; `rest` may be there already."""
    if "step" in state:
        return
    size, device = parameter.numel(), parameter.device
    state.update({"step": 0, "turn": 0})
    if size < SMALL:
        state["mean"] = torch.zeros(size, dtype=torch.float32, device=device)
        state["root"] = torch.zeros(size, dtype=torch.float32, device=device)
    else:
        state["mean"] = torch.zeros(size, dtype=torch.int8, device=device)
        state["root"] = torch.zeros(size, dtype=torch.uint8, device=device)
        state["mean_scale"] = torch.zeros(scales_of(size), dtype=torch.float32, device=device)
        state["root_scale"] = torch.zeros(scales_of(size), dtype=torch.float32, device=device)
    if parameter.dtype is torch.bfloat16 and "rest" not in state:
        state["rest"] = torch.zeros(size, dtype=torch.int8, device=device)


def _parts(parameter: torch.Tensor) -> list[slice]:
    size, length = parameter.numel(), CHUNK if parameter.device.type == "cpu" else CHUNK_OF_DEVICE
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[n]: a view where the tensor lies in one piece, otherwise a copy."""
    return tensor.detach().reshape(-1)


def _write_back(tensor: torch.Tensor, flat: torch.Tensor) -> None:
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat.view(tensor.shape))


def _refuse(wrong: bool, argument: str, value: Any, allowed: str) -> None:
    if wrong:
        raise PluginError(
            f"{NAME}: CompactAdamW takes no {argument}={value}; it must be {allowed}.", code="option-value"
        )
