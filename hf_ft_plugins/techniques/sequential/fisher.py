"""The diagonal Fisher information: how much each parameter matters for what earlier stages have taught.

F_i = E[(d log p(y|x) / d theta_i)^2], the mean over rows of squared gradients, each row's alone. The expectation over y
is by the model's own distribution (`sampled`, one draw a row), or by the labels of the data (`empirical`: cheaper to
get right, but not the Fisher; Kunstner et al. 2019, arXiv:1905.12558). Of a row of tokens, log p is the sum over those
that are scored. Kirkpatrick et al. 2017 (arXiv:1612.00796).

Their method keeps one penalty for each task, around that task's weights. Here there is one, around the latest weights,
with F estimated there, anew for each stage, on rows of all earlier ones: one set of tensors however many stages there
are, and no task counted twice (Huszar 2018, doi:10.1073/pnas.1717042115, on the former).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch

from ... import mends
from ...errors import OptionError, PluginError
from ...models.unchanged import evaluating
from ...near import nearest_value
from ...progress import progress
from ...shards import own_part, whole_tensor
from .log_likelihood import Kind, negative_log_likelihood
from .settings import NAME
from .start_weights import moving_parameters

Batches = Iterable[dict[str, Any]]


def estimate_fisher(
    model: torch.nn.Module,
    batches: Batches,
    *,
    rows: int,
    kind: Kind = "sampled",
    seed: int = 0,
    parameters: Mapping[str, torch.nn.Parameter] | None = None,
    loss_scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information, by name, in 32 bits (64 where the parameter is), sharded as that is.

    The model is as before afterwards: modes, gradients, `requires_grad`; the global random state, too.

    Args:
        model: in evaluation mode meanwhile; sharded by FSDP2 or not, but not in `DistributedDataParallel`.
        batches: what `model(**batch)` takes, on any device: tensors whose first dimension is rows. The same on every
            rank.
        rows: how many to take, or all, if there are fewer. Texts packed into one row count as one: sampled labels give
            the sum of theirs in expectation, empirical ones do not.
        kind: of labels; see `negative_log_likelihood`.
        seed: of the draws.
        parameters: whose; None: those that learn.
        loss_scale: what the loss is multiplied by meanwhile, so that gradients in fp16 do not vanish.

    Raises:
        PluginError: there is no row, a batch cannot be taken apart, or a gradient is not finite.
    """
    parameters = moving_parameters(model) if parameters is None else parameters
    total = {name: empty_like_full(parameter) for name, parameter in parameters.items()}

    def add_squares() -> None:
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradient = own_part(parameter.grad).to(total[name].dtype) / loss_scale
                own_part(total[name]).addcmul_(gradient, gradient)

    with learning(parameters.values()):
        count = for_each_row(model, batches, add_squares, rows=rows, kind=kind, seed=seed, loss_scale=loss_scale)
    return means(total, count)


def for_each_row(
    model: torch.nn.Module,
    batches: Batches,
    act: Callable[[], None],
    *,
    rows: int,
    kind: Kind,
    seed: int,
    loss_scale: float = 1.0,
) -> int:
    """Call `act` when each row's gradients are there; how many rows there were, those without a score included."""
    if kind not in get_args(Kind):
        raise OptionError(
            f"{NAME}: fisher={kind!r}; there are {', '.join(get_args(Kind))}.",
            mend=nearest_value(NAME, "fisher", kind, get_args(Kind)),
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with evaluating(model), _gradients_kept(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for row in progress(_rows_of(batches, rows), f"{NAME}: Fisher information", total=rows):
            inputs = {name: one.to(device) if torch.is_tensor(one) else one for name, one in row.items()}
            with torch.enable_grad():
                loss = negative_log_likelihood(model, inputs, kind, generator)
            count += 1
            if loss is None:
                continue
            (loss * loss_scale).backward()
            act()
            model.zero_grad(set_to_none=True)
    if count == 0:
        raise PluginError(
            f"{NAME}: ewc needs rows of earlier stages, and there are none. Keep some, or set ewc=0.",
            code="stages",
            mend=[mends.set_option(NAME, "ewc", 0)],
        )
    return count


def means(total: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The sums of squared gradients over the number of rows, in place.

    Raises:
        PluginError: one is not finite; on every rank.
    """
    for name, tensor in total.items():
        tensor.div_(count)
        if not bool(torch.isfinite(whole_tensor(tensor.sum()))):
            raise PluginError(
                f"{NAME}: ewc: the gradients of {name} on rows of earlier stages are not finite. Look for rows whose "
                "loss is not a number, and prefer bf16 to fp16.",
                code="not-finite",
            )
    return total


def empty_like_full(parameter: torch.Tensor) -> torch.Tensor:
    """Zeros of its shape and shards, in 32 bits, or in 64 where it is."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False)


@contextmanager
def learning(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Gradients reach these parameters, frozen ones too."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _gradients_kept(model: torch.nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _rows_of(batches: Batches, rows: int) -> Iterator[dict[str, Any]]:
    """The first `rows` rows, each as a batch of one."""
    left = rows
    for batch in batches:
        tensors = {name: one for name, one in batch.items() if torch.is_tensor(one) and one.dim() > 0}
        first = tensors.get("labels", next(iter(tensors.values()), None))
        size = 0 if first is None else len(first)
        if size > 1 and any(len(one) != size for one in tensors.values()):
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in tensors.items())
            raise PluginError(
                f"{NAME}: ewc takes gradients of one row at a time, and this batch cannot be taken apart: {shapes}. "
                "Collate one row a batch, or set ewc=0.",
                code="data-unsuited",
                mend=[mends.set_option(NAME, "ewc", 0)],
            )
        for index in range(min(size, left)):
            yield batch if size == 1 else {**batch, **{name: one[index : index + 1] for name, one in tensors.items()}}
        left -= size
        if left <= 0:
            return
