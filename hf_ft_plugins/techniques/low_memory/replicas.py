"""The mean of gradients over ranks that each hold the whole model, taken one by one within the backward pass.

`DistributedDataParallel` reduces gradients in buckets, which hold a copy of all of them, and late: a hook that steps
within the backward pass would step with the gradients of its own rank. So it is made to ignore the parameters, and
`MeanOverRanks` does for each what it would have done. The smallest ones are left to it, since it refuses a model
without any, and since a call for each of them would cost more time than it saves memory. Buffers stay with it, too.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ... import mends
from ...errors import PluginError
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer

IGNORED = "_ddp_params_and_buffers_to_ignore"
IGNORED_ONE = "_ddp_ignored"
# Steps in which ranks compare before each gradient; in others once at the end.
FIRST_STEPS, EVERY = 2, 100
MODULUS = 2**61 - 1
# Of all trainable values, how many the parameters left to DistributedDataParallel hold together.
LEFT = 0.01


def are_replicas(trainer: Trainer) -> bool:
    """Whether this trainer wraps the model into `DistributedDataParallel`."""
    accelerator = trainer.accelerator
    parallel = accelerator.parallelism_config
    return (
        accelerator.use_distributed
        and str(accelerator.distributed_type.value).startswith("MULTI_")
        and not is_sharded_when_loaded(trainer)
        and not (parallel is not None and parallel.tp_enabled)
    )


def is_sharded_when_loaded(trainer: Trainer) -> bool:
    """Whether `from_pretrained` has cut the weights up over ranks, which older versions of transformers cannot."""
    return bool(getattr(trainer, "is_distributed_loading_by_transformers", False))


def start_alike(model: torch.nn.Module) -> None:
    """Give all ranks the parameters of rank 0, as `DistributedDataParallel` does later and only for what it reduces.

    Raises:
        PluginError: the models of the ranks have other parameters; on all ranks.
    """
    named = list(model.named_parameters())
    description = repr([(name, tuple(one.shape), one.dtype, one.requires_grad) for name, one in named])
    if not _is_equal(zlib.crc32(description.encode()), named[0][1].device):
        raise PluginError(
            f"{NAME}: the models of the ranks differ in names, shapes, types or requires_grad of their parameters. "
            "Build the same model on each rank.",
            code="distributed-unsupported",
        )
    with torch.no_grad():
        for _, parameter in named:
            _in_place(parameter, lambda whole: dist.broadcast(whole, src=0))


class MeanOverRanks:
    """Called with a parameter whose gradient is complete on this rank: makes it the mean over all ranks, in place.

    The arithmetic is `DistributedDataParallel`'s: each gradient times 1 / number of ranks, then their sum.

    Gradients must come in the same order on all ranks. In the first two steps and in every 100th, ranks compare before
    each; in all steps, at the end (`end_step`).

    Args:
        model: not yet wrapped; until `begin` it is changed so that the wrapper ignores all trainable parameters but
            `left`: the smallest ones, which together hold 1 % of the values, and at least one.

    Raises:
        PluginError: in the backward pass or at the end of a step, on all ranks: the order differs.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.left = _smallest(trainable, LEFT)
        left = {id(parameter) for parameter in self.left}
        names = [
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad and id(parameter) not in left
        ]
        # Parameters of the outermost module have two names there.
        self.ignored = {*names, *(f".{name}" for name in names if "." not in name)}
        # Frozen ones, too: other techniques unfreeze them.
        self._places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
        self._steps = 0
        self._seen = 0
        self._device = self.left[0].device
        self._handles: list[Any] = []
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, self.ignored)

    def __call__(self, parameter: torch.Tensor) -> None:
        self._compare_order(parameter)
        assert parameter.grad is not None
        parameter.grad.mul_(1.0 / dist.get_world_size())
        _in_place(parameter.grad, dist.all_reduce)

    def begin(self, model: torch.nn.Module, wrapped: Any) -> None:
        """Before the first step: undo what was changed on `model`, and look at what it was wrapped into.

        Raises:
            PluginError: it is not wrapped, or reduces what is reduced here.
        """
        give_back(model)
        if not isinstance(wrapped, DistributedDataParallel) or not self.ignored <= wrapped.parameters_to_ignore:
            raise PluginError(
                f"{NAME}: the model was wrapped into {type(wrapped).__name__} in another way than expected on several "
                "ranks, so that gradients would be averaged twice or not at all. Leave out auto_find_batch_size and "
                "wrappers of your own, make a new trainer for each run, or set fused=false.",
                code="distributed-unsupported",
                mend=[mends.set_option(NAME, "fused", False)],
            )
        self.end()
        self._handles = [one.register_post_accumulate_grad_hook(self._compare_order) for one in self.left]

    def end_step(self) -> None:
        """Compare the order of this step's gradients over ranks."""
        self._compare()
        self._steps += 1
        self._seen = 0

    def end(self) -> None:
        """Take the hooks away from `left`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _compare_order(self, parameter: torch.Tensor) -> None:
        self._seen = (self._seen * 1_000_003 + self._places[id(parameter)] + 1) % MODULUS
        if self._steps < FIRST_STEPS or self._steps % EVERY == 0:
            self._compare()

    def _compare(self) -> None:
        if not _is_equal(self._seen, self._device):
            raise PluginError(
                f"{NAME}: in step {self._steps + 1} gradients come in another order on one rank than on another, so "
                "their means over ranks would be those of other parameters. The model uses other layers for other "
                "batches. Set fused=false, or accumulation=buffer with gradient_accumulation_steps of 2 or more.",
                code="distributed-unsupported",
                mend=[mends.set_option(NAME, "fused", False)],
            )


def give_back(model: torch.nn.Module) -> None:
    """Let `DistributedDataParallel` reduce all parameters of `model` again, if it is wrapped anew."""
    if hasattr(model, IGNORED):
        delattr(model, IGNORED)
    for parameter in model.parameters():
        if hasattr(parameter, IGNORED_ONE):
            delattr(parameter, IGNORED_ONE)


def _smallest(parameters: list[torch.nn.Parameter], share: float) -> list[torch.nn.Parameter]:
    """The smallest ones that hold at most this share of all values together, and at least one that is not empty."""
    by_size = sorted((one for one in parameters if one.numel() > 0), key=torch.Tensor.numel)
    room = share * sum(map(torch.Tensor.numel, by_size))
    sums = list(itertools.accumulate(map(torch.Tensor.numel, by_size)))
    return by_size[: max(1, sum(total <= room for total in sums))]


def _is_equal(number: int, device: torch.device) -> bool:
    """Whether all ranks have the same number, of less than 64 bits."""
    extremes = torch.tensor([number, -number], dtype=torch.int64, device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    largest, smallest = extremes.tolist()
    return bool(largest == -smallest)


def _in_place(tensor: torch.Tensor, collective: Any) -> None:
    """Run a collective, which takes only contiguous tensors, on any."""
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return
    whole = tensor.contiguous()
    collective(whole)
    if whole is not tensor:
        tensor.copy_(whole)
