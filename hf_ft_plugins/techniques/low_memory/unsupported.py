"""What `low-memory` cannot do right, refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ... import mends
from ...errors import ConflictError, PluginError
from .algorithms import ALGORITHMS
from .replicas import are_replicas, is_sharded_when_loaded
from .settings import NAME

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_unsupported(trainer: Trainer, *, algorithm: str, fused: bool, in_backward: bool) -> None:
    """Raise `PluginError` where gradients must not be applied one by one, or are changed where nothing sees them.

    Args:
        algorithm, fused: the options.
        in_backward: whether parameters are stepped before all gradients are there.
    """
    args = trainer.args
    reason = ALGORITHMS[algorithm].sharded
    if reason is not None and (trainer.is_fsdp_enabled or is_sharded_when_loaded(trainer)):
        raise PluginError(
            f"{NAME}: algorithm={algorithm} {reason}, and FSDP cuts tensors up. Use another algorithm, or train "
            "without FSDP.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "algorithm", "script")],
        )
    for module_name, module in trainer.model.named_modules():
        if isinstance(module, torch.nn.Embedding) and module.sparse:
            raise PluginError(
                f"{NAME}: {module_name} has sparse gradients, and its optimizers take dense ones. "
                "Make the layer with sparse=False.",
                code="model-unsuited",
            )
    if not fused:
        return
    if args.fp16:
        raise PluginError(
            f"{NAME}: fp16=True scales the loss, and what is too large shows only when all gradients are there. Use "
            "bf16=True, or fused=false.",
            code="training-arguments",
            mend=[
                mends.all_of(mends.set_argument("fp16", False), mends.set_argument("bf16", True)),
                mends.set_option(NAME, "fused", False),
            ],
        )
    if trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: DeepSpeed collects the gradients and steps by itself. Use ZeRO's own offloading, or FSDP2 with "
            "this technique.",
            code="distributed-unsupported",
        )
    if trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise PluginError(
            f"{NAME}: FSDP1 joins parameters into flat ones, which have no gradients of their own. Use FSDP2: "
            "fsdp_config={'version': 2}, or fused=false.",
            code="distributed-unsupported",
            mend=[mends.set_argument("fsdp_config", {"version": 2}), mends.set_option(NAME, "fused", False)],
        )
    if args.n_gpu > 1:
        raise PluginError(
            f"{NAME}: DataParallel keeps copies of the model whose gradients are added up late. Start one process a "
            "GPU with torchrun.",
            code="distributed-unsupported",
            mend=[mends.launch_with("torchrun", "--nproc_per_node=auto")],
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim or "lomo" in optim:
        raise PluginError(
            f"{NAME}: optim={optim!r} steps within the backward pass by itself. Use another optim=, and this "
            "technique's algorithm=.",
            code="training-arguments",
            mend=[mends.set_argument("optim", "adamw_torch")],
        )
    if in_backward and are_replicas(trainer):
        _refuse_unequal_graphs(trainer)


def refuse_the_scripts_scheduler(trainer: Trainer, algorithm: str) -> None:
    """Raise `ConflictError` where the script's own scheduler would go on with an optimizer that is not used."""
    if ALGORITHMS[algorithm].make is not None and trainer.lr_scheduler is not None:
        raise ConflictError(
            f"{NAME}: algorithm={algorithm} takes the place of the script's optimizer, and the script's "
            f"{type(trainer.lr_scheduler).__name__} would go on changing the rate of the old one. Leave it out of "
            "optimizers=(...), and set lr_scheduler_type.",
            mend=[mends.remove_technique(NAME)],
        )


def _refuse_unequal_graphs(trainer: Trainer) -> None:
    args, handler = trainer.args, trainer.accelerator.ddp_handler
    if args.ddp_find_unused_parameters or args.ddp_static_graph:
        name = "ddp_find_unused_parameters" if args.ddp_find_unused_parameters else "ddp_static_graph"
        raise PluginError(
            f"{NAME}: {name}=True is an option of DistributedDataParallel's for gradients that it reduces, and here "
            "each is reduced as it arrives, in one order on all ranks. Leave it out, or set fused=false.",
            code="training-arguments",
            mend=[mends.set_argument(name, False), mends.set_option(NAME, "fused", False)],
        )
    if handler is not None and str(handler.comm_hook) != "no":
        raise PluginError(
            f"{NAME}: comm_hook={handler.comm_hook} changes how DistributedDataParallel reduces gradients, and here it "
            "does not reduce them. Leave it out, or set fused=false.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "fused", False)],
        )
