"""Steps that need the gradient of each task by itself: gradient surgery, and GradNorm.

The encoder runs once for a batch and is walked back once for each task, so a step costs as many backward passes as
there are tasks, and memory for the encoder's gradients of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....errors import PluginError
from ....models.inputs import bare
from ....technique import data_seed
from ..callback import MultiTaskCallback
from ..tasks import NAME
from .gradient_surgery import surgery_weights


class TaskGradients:
    """Each task's gradient of some parameters, summed over the batches of a step and over ranks.

    Args:
        parameters: those that the tasks share.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.of: dict[str, list[Tensor]] = {}

    def add(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        """Add one batch's gradients of a task's loss; None is zero."""
        if name not in self.of:
            self.of[name] = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        for total, gradient in zip(self.of[name], gradients, strict=True):
            if gradient is not None:
                total += gradient.float()

    def over_ranks(self, names: Sequence[str], world_size: int) -> None:
        """Sum over ranks, for these tasks, the same and in the same order on every rank."""
        for name in names:
            self.add(name, [None] * len(self.parameters))
            if world_size > 1:
                for total in self.of[name]:
                    dist.all_reduce(total)

    def gramian(self, names: Sequence[str]) -> Tensor:
        """Inner products of the tasks' gradients; float64 [tasks, tasks]."""
        products = torch.zeros(len(names), len(names), dtype=torch.float64)
        for row, first in enumerate(names):
            for column, second in enumerate(names[: row + 1]):
                pairs = zip(self.of[first], self.of[second], strict=True)
                product = sum(float((one.double() * two.double()).sum()) for one, two in pairs)
                products[row, column] = products[column, row] = product
        return products


def surgery_step(method: str, callback: MultiTaskCallback, trainer: Any, model: Any, inputs: Any) -> Tensor:
    """Forward and backward of one batch; at the last of an optimizer step the gradients are combined and set.

    Shared parameters get the sum of the tasks' gradients weighted by `method`, and each head its own task's gradient.
    """
    outer, outputs, inputs = _forward(trainer, model, inputs)
    base = bare(outer)
    shared = [p for n, p in base.named_parameters() if not n.startswith("heads.") and p.requires_grad]
    held = _held(callback, "surgery", shared)
    names = [name for name in callback.specs if name in outputs.task_sums]
    divisor = callback.batches * callback.world_size
    total = torch.zeros((), device=trainer.args.device)
    for name in names:
        own = [parameter for parameter in base.heads[name].parameters() if parameter.requires_grad]
        loss = outputs.task_sums[name] * inputs["task_scale"][list(callback.specs).index(name)] / divisor
        total += loss.detach()
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, [*shared, *own], retain_graph=name != names[-1], allow_unused=True)
        held.add(name, found[: len(shared)])
        for parameter, gradient in zip(own, found[len(shared) :], strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    callback.left -= 1
    if callback.left == 0:
        _combine(method, callback, trainer, base, held)
    return total * callback.world_size


def _combine(method: str, callback: MultiTaskCallback, trainer: Any, base: Any, held: TaskGradients) -> None:
    present = callback.present()
    held.over_ranks(present, callback.world_size)
    # A number of its own for each step of a run.
    seed = (data_seed(trainer.args) * 1_000_003 + trainer.state.global_step) % 2**63
    weights = surgery_weights(method, held.gramian(present), seed).tolist()
    for index, parameter in enumerate(held.parameters):
        combined = sum(weight * held.of[name][index] for weight, name in zip(weights, present, strict=True))
        parameter.grad = torch.as_tensor(combined).to(parameter.dtype)
    for name in present:
        for parameter in base.heads[name].parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if callback.world_size > 1:
                dist.all_reduce(parameter.grad)
    del callback.held["surgery"]


def gradnorm_step(callback: MultiTaskCallback, trainer: Any, model: Any, inputs: Any) -> Tensor:
    """Forward and backward of one batch; at the last of an optimizer step the weights of the next are learned."""
    outer, outputs, inputs = _forward(trainer, model, inputs, through=model)
    base = bare(outer)
    last = last_shared(base.encoder)
    held = _held(callback, "gradnorm", last)
    names = [name for name in callback.specs if name in outputs.task_sums and outputs.task_sums[name].requires_grad]
    every = list(callback.specs)
    for name in names:
        index = every.index(name)
        alone = outputs.task_sums[name] * inputs["task_scale"][index] / callback.balancer.weights[index]
        held.add(
            name,
            torch.autograd.grad(
                alone / (callback.batches * callback.world_size), last, retain_graph=True, allow_unused=True
            ),
        )
    loss = outputs.loss / callback.batches
    trainer.accelerator.backward(loss)
    callback.left -= 1
    if callback.left == 0:
        present = callback.present()
        held.over_ranks(present, callback.world_size)
        for name in present:
            norms = torch.stack([part.double().norm() for part in held.of[name]])
            callback.balancer.gradient_norms[every.index(name)] = float(norms.norm())
        del callback.held["gradnorm"]
    return loss.detach()


def last_shared(encoder: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of the encoder's last layer, in which GradNorm compares the tasks.

    Raises:
        PluginError: the encoder has no list of layers, or none of the last one's parameters learns.
    """
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    longest = max(stacks, key=len, default=None)
    found = [p for p in longest[-1].parameters() if p.requires_grad] if longest is not None else []
    if not found:
        raise PluginError(
            f"{NAME}: option balance=gradnorm compares the tasks in the encoder's last layer, and a "
            f"{type(encoder).__name__} has none that learns. Use balance=uncertainty."
        )
    return found


def _held(callback: MultiTaskCallback, key: str, parameters: Sequence[nn.Parameter]) -> TaskGradients:
    if callback.left == callback.batches:
        callback.held[key] = TaskGradients(parameters)
    return callback.held[key]


def _forward(trainer: Any, model: Any, inputs: Any, through: Any = None) -> tuple[Any, Any, Any]:
    outer = trainer.accelerator.unwrap_model(model)
    model.train()
    inputs = trainer._prepare_inputs(inputs)
    with trainer.compute_loss_context_manager():
        # Not through DDP, which would count on one backward pass.
        outputs = (outer if through is None else through)(**inputs)
    return outer, outputs, inputs
