"""What the adaptive learning rate cannot watch or steer, refused before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedType

from ... import lr_scale, mends
from ...errors import PluginError
from ...metrics import set_names
from ...shards import are_cut_up
from .held_out import held_out_rows
from .settings import NAME, TRAINING_LOSS, Controller, WatchSettings
from .watched_metric import watched_direction, watched_metric

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from transformers import Trainer, TrainingArguments

# These adapt the rate themselves, from quantities that a factor on it would falsify.
SELF_TUNING_OPTIMIZERS = ("prodigy", "dadapt", "schedulefree")


def steps_within_backward() -> bool:
    """Whether gradients are used up before a callback sees them."""
    return is_initialized() and AcceleratorState().distributed_type is DistributedType.DEEPSPEED


def puts_nothing_back(model: Module) -> str | None:
    """Why earlier weights cannot be written back into `model`, whose trainer has prepared it; None where they can."""
    if steps_within_backward():
        return "DeepSpeed would undo a return to earlier weights"
    kind = AcceleratorState().distributed_type if is_initialized() else DistributedType.NO
    if kind is DistributedType.FSDP or are_cut_up(model):
        return "the weights are in pieces on several ranks, which no copy of the best is kept of"
    return None


def refuse_unsupported(controller: Controller | None, settings: WatchSettings, trainer: Trainer) -> None:
    """`refuse_arguments`, and what only the whole trainer shows."""
    held_out = held_out_rows(trainer)
    refuse_arguments(settings, trainer.args, held_out)
    metric = watched_metric(settings, trainer.args, held_out)
    watched_direction(settings, trainer.args, metric, set_names(trainer.eval_dataset))
    recipe = getattr(trainer, "optimizer_cls_and_kwargs", None) or (None,)
    if not (tunes_itself(type(lr_scale.innermost(trainer.optimizer))) or tunes_itself(recipe[0])):
        lr_scale.refuse_when_built(trainer, NAME)
    if controller in ("climb", "rollback") and trainer.is_deepspeed_enabled:
        raise PluginError(
            f"{NAME}: controller={controller} does not work with DeepSpeed, whose next step would undo it from its own "
            "copy of the weights. Use controller=plateau.",
            code="distributed-unsupported",
            mend=[mends.set_option(NAME, "controller", "plateau")],
        )


def refuse_arguments(settings: WatchSettings, args: TrainingArguments, held_out: int = 0) -> None:
    """Raise `PluginError` where these `TrainingArguments` leave nothing to watch or nothing to steer."""
    if args.eval_strategy == "no" and not held_out and settings.metric not in (None, TRAINING_LOSS):
        raise PluginError(
            f"{NAME}: metric={settings.metric!r} comes from evaluations, and eval_strategy='no'. "
            "Set eval_strategy, or watch the training loss with metric=loss.",
            code="training-arguments",
            mend=[mends.set_argument("eval_strategy", "epoch"), mends.set_option(NAME, "metric", TRAINING_LOSS)],
        )
    if watched_metric(settings, args, held_out) == TRAINING_LOSS and args.logging_strategy == "no":
        raise PluginError(
            f"{NAME}: there is nothing to watch: eval_strategy='no' and logging_strategy='no'. Set one of them.",
            code="training-arguments",
            mend=[mends.set_argument("eval_strategy", "epoch"), mends.set_argument("logging_strategy", "steps")],
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in optim:
        raise PluginError(
            f"{NAME}: optim={optim!r} steps inside the backward pass with a rate of its own, which no factor "
            "reaches. Use the variant without layerwise.",
            code="training-arguments",
            mend=[mends.set_argument("optim", optim.replace("_layerwise", ""))],
        )


def refuse_a_second(trainer: Trainer, callback_class: type) -> None:
    """Raise `PluginError` where the script adds a callback of this class beside the technique's."""
    callbacks = trainer.callback_handler.callbacks
    if sum(isinstance(callback, callback_class) for callback in callbacks) > 1:
        raise PluginError(
            f"{NAME}: the script adds an {callback_class.__name__} itself, so the technique would act twice. Keep one.",
            code="technique-conflict",
            mend=[mends.remove_technique(NAME)],
        )


def refuse_lomo(optimizer: Optimizer) -> None:
    """Raise `PluginError` for an optimizer that the Trainer gives its rate, where that Trainer is no host."""
    kind = type(lr_scale.innermost(optimizer)).__name__
    if kind in lr_scale.UNFIT_BY_GROUP:
        raise PluginError(
            f"{NAME}: {kind} takes its rate from the Trainer, which gives it the scaled one under the host alone. "
            "Use with_plugins(Trainer, ...) instead of the callback.",
            code="optimizer-unsuited",
        )


def tunes_itself(optimizer_class: Any) -> bool:
    """Whether optimizers of this class adapt the learning rate themselves, by its name."""
    name = getattr(optimizer_class, "__name__", "").lower().replace("_", "")
    return any(word in name for word in SELF_TUNING_OPTIMIZERS)
