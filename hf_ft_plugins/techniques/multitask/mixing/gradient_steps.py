"""Steps that need the gradient of each task by itself: gradient surgery, and GradNorm.

The encoder runs once for a batch and is walked back once for each task, so a step costs as many backward passes as
there are tasks, and memory for the encoder's gradients of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .... import mends
from ....errors import PluginError
from ....models.inputs import bare
from ....technique import data_seed
from ..tasks import NAME
from .balancer import Balancer
from .gradient_surgery import METHODS, surgery_weights
from .task_gradients import TaskGradients
from .task_step import TaskStep

if TYPE_CHECKING:
    from transformers import Trainer

# Balances that need a training step of their own.
GRADIENT_BALANCES = (*METHODS, "gradnorm")


def surgery_step(method: str, step: TaskStep, trainer: Trainer, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Forward and backward of one batch; at the last of an optimizer step the gradients are combined and set.

    Shared parameters get the sum of the tasks' gradients weighted by `method`, and each head its own task's gradient.

    Args:
        method: of `surgery_weights`.
        step: the present optimizer step; `left` and `gradients` are kept up.
        trainer: whose model it is; read are its accelerator, arguments and state.
        model: as Trainer's `training_step` gets it.
        inputs: one batch with its `task_scale`.

    Returns:
        This rank's loss, detached scalar.
    """
    outer, outputs, inputs = _forward(trainer, model, inputs)
    base = bare(outer)
    shared = [p for n, p in base.named_parameters() if not n.startswith("heads.") and p.requires_grad]
    gradients = _gradients(step, shared)
    names = [name for name in step.tasks if name in outputs.task_sums]
    divisor = step.batches * step.world_size
    total = torch.zeros((), device=trainer.args.device)
    for name in names:
        own = [parameter for parameter in base.heads[name].parameters() if parameter.requires_grad]
        loss = outputs.task_sums[name] * inputs["task_scale"][step.tasks.index(name)] / divisor
        total += loss.detach()
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, [*shared, *own], retain_graph=name != names[-1], allow_unused=True)
        gradients.add(name, found[: len(shared)])
        for parameter, gradient in zip(own, found[len(shared) :], strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    step.left -= 1
    if step.left == 0:
        # A number of its own for each step of a run.
        seed = (data_seed(trainer.args) * 1_000_003 + trainer.state.global_step) % 2**63
        _combine(method, step, base, gradients, seed)
        step.gradients = None
    return total * step.world_size


def _combine(method: str, step: TaskStep, base: Any, gradients: TaskGradients, seed: int) -> None:
    present = step.present()
    gradients.over_ranks(present, step.world_size)
    weights = surgery_weights(method, gradients.gramian(present), seed).tolist()
    for index, parameter in enumerate(gradients.parameters):
        combined = sum(weight * gradients.of[name][index] for weight, name in zip(weights, present, strict=True))
        parameter.grad = torch.as_tensor(combined).to(parameter.dtype)
    for name in present:
        for parameter in base.heads[name].parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if step.world_size > 1:
                dist.all_reduce(parameter.grad)


def gradnorm_step(
    balancer: Balancer, step: TaskStep, trainer: Trainer, model: nn.Module, inputs: dict[str, Any]
) -> Tensor:
    """Forward and backward of one batch; at the last of an optimizer step the weights of the next are learned.

    Args:
        balancer: its weights are in the `task_scale` of `inputs`; gets the `gradient_norms` of a whole step.
        step, trainer, model, inputs: as of `surgery_step`.

    Returns:
        This rank's loss, detached scalar.
    """
    outer, outputs, inputs = _forward(trainer, model, inputs, through=model)
    last = last_shared(bare(outer).encoder)
    gradients = _gradients(step, last)
    for index, name in enumerate(step.tasks):
        if name not in outputs.task_sums or not outputs.task_sums[name].requires_grad:
            continue
        alone = outputs.task_sums[name] * inputs["task_scale"][index] / balancer.weights[index]
        mean = alone / (step.batches * step.world_size)
        gradients.add(name, torch.autograd.grad(mean, last, retain_graph=True, allow_unused=True))
    loss = outputs.loss / step.batches
    trainer.accelerator.backward(loss)
    step.left -= 1
    if step.left == 0:
        present = step.present()
        gradients.over_ranks(present, step.world_size)
        for name in present:
            norms = torch.stack([part.double().norm() for part in gradients.of[name]])
            balancer.gradient_norms[step.tasks.index(name)] = float(norms.norm())
        step.gradients = None
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
            f"{type(encoder).__name__} has none that learns. Use balance=uncertainty.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "balance", "uncertainty")],
        )
    return found


def _gradients(step: TaskStep, parameters: Sequence[nn.Parameter]) -> TaskGradients:
    if step.gradients is None:
        step.gradients = TaskGradients(parameters)
    return step.gradients


def _forward(
    trainer: Trainer, model: nn.Module, inputs: dict[str, Any], through: nn.Module | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    outer = trainer.accelerator.unwrap_model(model)
    model.train()
    inputs = trainer._prepare_inputs(inputs)
    with trainer.compute_loss_context_manager():
        # Not through DDP, which would count on one backward pass.
        outputs = (outer if through is None else through)(**inputs)
    return outer, outputs, inputs
