"""The host: a cooperative Trainer subclass that asks techniques at Trainer's own override points, and nowhere else.

    Trainer = with_plugins(Trainer, AdaptiveLR(patience=2), "my-technique:option=3")

The result has the same name and signature; everything below that line stays as it was. To add a hook: the steps in
`docs/writing-a-technique.md`, "In this repository".

Beside the hooks the host keeps three promises that stock Trainer does not: a checkpoint is whole or passed over
(`checkpoints.py`), the logged learning rate is the one applied (`lr_scale.py`), and a stop, save or evaluation that one
rank decides is decided on every rank.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from transformers.trainer import Trainer
from transformers.trainer_callback import DefaultFlowCallback, TrainerCallback

from .. import lr_scale, mends, shards
from ..errors import ConflictError, PluginError
from ..progress import bars_as_asked
from ..registry import origin, refuse_conflicts, resolve
from ..technique import Technique
from . import hooks
from .adapter import Innermost
from .alerts import TRACKER, DecisionAlerts
from .bars import Bars
from .blame import Blame
from .checkpoints import WholeCheckpoints
from .cut_sequences import refuse_cut_sequences
from .endings import END_PHASES, Endings, phase_of
from .inputs import Inputs
from .journal import journal
from .loaded_in_pieces import LoadedInPieces, is_loaded_in_pieces, saved_whole
from .log_notes import taken_notes
from .preemption import Preemption
from .ranks import from_first_rank
from .run_record import RunRecord
from .stash import Stash
from .step_hooks import ASKED, StepHooks
from .streams import StreamPasses
from .surface_check import check_surface

logger = logging.getLogger(__name__)

CONTROL_FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")
# Whose callbacks leave the ranks of one mind.
AGREEING = ("transformers", "trl", "hf_ft_plugins")
# Parts of the package that every host uses.
CORE = ("host", "lr_scale", "models", "cli")


def with_plugins(trainer_class: type, *techniques: Technique | type[Technique] | str | Mapping[str, Any]) -> type:
    """A subclass of `trainer_class` that runs with `techniques`.

    Args:
        trainer_class: `transformers.Trainer` or any subclass of it: Seq2SeqTrainer, TRL's trainers, one of the
            script's own, or a class that is a host already: the lists are then joined, and a technique that it has
            already is replaced by the one that is named now.
        techniques: instances, classes, `"name:option=value"` strings or `{name: {option: value}}` mappings, in the
            order in which their hooks are to be asked.

    Returns:
        A class with the same `__name__`, `__module__` and `__init__` signature.

    Raises:
        PluginError: an unknown technique or option, the same technique twice, two owners of one hook; a library whose
            names are not those that the host builds on (`surface.py`).
    """
    added = tuple(resolve(technique) for technique in techniques)
    refuse_conflicts(added)
    present = getattr(trainer_class, "_ft_techniques", ())
    # The line that makes the class may be run again, with other options: a cell of a notebook.
    replaced = {technique.name: technique for technique in added}
    for technique in present:
        if replaced.get(technique.name, technique) != technique:
            logger.warning("%s replaces %s on %s", replaced[technique.name], technique, trainer_class.__name__)
    listed = (*(technique for technique in present if technique.name not in replaced), *added)
    hooks.manager(listed, trainer_class)
    check_surface({*CORE, *(_part_of(type(technique)) for technique in listed)})
    if issubclass(trainer_class, Host):
        bases: tuple[type, ...] = (trainer_class,)
    elif trainer_class is Trainer:
        bases = (Host, Innermost)
    else:
        bases = (Host, trainer_class, Innermost)
    if any(technique.answers(hook) for technique in listed for hook in ASKED) and not issubclass(bases[0], StepHooks):
        bases = (StepHooks, *bases)
    return type(
        trainer_class.__name__,
        bases,
        {
            "_ft_techniques": listed,
            "__module__": trainer_class.__module__,
            "__qualname__": trainer_class.__qualname__,
            "__doc__": trainer_class.__doc__,
            "__signature__": inspect.signature(trainer_class),
        },
    )


def _part_of(technique: type) -> str:
    """Where a technique is in this package, as `techniques/NAME`; of a third party's nothing that is there."""
    return "/".join(technique.__module__.split(".")[1:3])


class Host(Blame, Bars, RunRecord, Inputs, StreamPasses, Preemption, Endings, WholeCheckpoints, LoadedInPieces):
    """Mix-in that comes before a Trainer class in the method resolution order. Made by `with_plugins`."""

    # Norm of all gradients before clipping, from `on_pre_optimizer_step` on; None where the trainer computes none.
    last_grad_norm: Any = None
    # Whether a control flag may be set on one rank alone, in this epoch.
    _ranks_may_differ = False
    # The optimizer whose parameter groups the techniques have seen.
    _ft_grouped: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ft_manager = hooks.manager(self._ft_techniques, type(self))
        self._ft_journal_start = journal().count
        self.ft_stash = Stash()
        asked = next((one for one in (*args, *kwargs.values()) if hasattr(one, "disable_tqdm")), None)
        with bars_as_asked(asked), self._changes_undone_on_error():
            with saved_whole(*args, *kwargs.values()):
                super().__init__(*args, **kwargs)
            self._refuse_two_schedulers()
            refuse_cut_sequences(self._ft_techniques, getattr(self.accelerator, "parallelism_config", None))
            self._supply_inputs()
            self._add_callbacks()
            self._take_over_sigterm()
            self._supply_loss_function()
            self._ask_all("ft_trainer", trainer=self)
        for technique in self._ft_techniques:
            logger.info("technique %s (%s) on %s", technique, " ".join(origin(technique)), type(self).__name__)
            for option, reason in technique.idle_options().items():
                logger.warning("%s: option %s has no effect: %s.", technique.name, option, reason)

    def _add_callbacks(self) -> None:
        # Right behind the default flow: what they add to a log or decide at a step is seen by every tracker after them.
        callbacks = self.callback_handler.callbacks
        position = 1 + max(
            (index for index, callback in enumerate(callbacks) if isinstance(callback, DefaultFlowCallback)),
            default=-1,
        )
        for technique, supplied in self._ask_all("ft_callbacks", args=self.args, stash=self.ft_stash):
            if not isinstance(supplied, Iterable):
                raise PluginError(
                    f"{technique.name}: ft_callbacks answers one {type(supplied).__name__}, which is not iterable. "
                    "Return a list of callbacks, here of one.",
                    code="plugin-broken",
                    mend=[mends.remove_technique(technique.name)],
                )
            for callback in supplied:
                if isinstance(callback, type):
                    raise PluginError(
                        f"{technique.name}: ft_callbacks answers the class {callback.__name__} instead of a callback. "
                        f"Return [{callback.__name__}(...)].",
                        code="plugin-broken",
                        mend=[mends.remove_technique(technique.name)],
                    )
                if phase_of(callback) not in (None, *END_PHASES):
                    raise PluginError(
                        f"{technique.name}: {type(callback).__name__} has end_phase={phase_of(callback)!r}; there are "
                        f"{', '.join(END_PHASES)}. Name one of these, or none.",
                        code="plugin-broken",
                        mend=[mends.remove_technique(technique.name)],
                    )
                callbacks.insert(position, callback)
                self._ft_owners = (*self._ft_owners, (callback, technique))
                position += 1
                self.ft_stash.keep_part(technique.name, callback)
                if hasattr(callback, "set_trainer"):
                    callback.set_trainer(self)
                changed = callback.on_init_end(self.args, self.state, self.control, model=self.model)
                self.control = changed or self.control
        if TRACKER in self.args.report_to:
            self.add_callback(DecisionAlerts())

    # ---- optimizer and learning rate ----

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        # Of a forward pass before the run, parameters of the outermost module may be whole: it would hold those.
        shards.put_in_pieces(self.model)
        optimizer = super().create_optimizer(*args, **kwargs)
        if lr_scale.innermost(optimizer) is self._ft_grouped:
            return optimizer
        other = self._ask_owner("ft_optimizer", trainer=self, model=self.model, optimizer=optimizer)
        if other is not None:
            optimizer = self.optimizer = other
        inner = self._ft_grouped = lr_scale.innermost(optimizer)
        if self.is_fsdp_enabled or is_loaded_in_pieces(self.model):
            shards.mark_missing_state(inner)
        self._ask_all("ft_param_groups", trainer=self, model=self.model, groups=inner.param_groups)
        return optimizer

    def _refuse_two_schedulers(self) -> None:
        owner = hooks.owner(self._ft_techniques, "ft_scheduler")
        if owner is not None and self.lr_scheduler is not None:
            raise ConflictError(
                f"{owner.name}: it supplies the learning-rate scheduler (hook ft_scheduler), and the script has its "
                f"own, a {type(self.lr_scheduler).__name__}, from optimizers=(...) or its class's create_scheduler. "
                "Leave out one of them.",
                mend=[mends.remove_technique(owner.name)],
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            scheduler = self._ask_owner(
                "ft_scheduler",
                trainer=self,
                optimizer=self.optimizer if optimizer is None else optimizer,
                num_training_steps=num_training_steps,
            )
            if scheduler is not None:
                self.lr_scheduler = scheduler
                self._created_lr_scheduler = True
                super().create_scheduler(num_training_steps=num_training_steps, optimizer=optimizer)
                if self.lr_scheduler is not scheduler:
                    self._refuse_two_schedulers()
                return scheduler
        return super().create_scheduler(num_training_steps=num_training_steps, optimizer=optimizer)

    def _get_learning_rate(self) -> float:
        if lr_scale.is_scaled(self.optimizer):
            return lr_scale.effective_lrs(self.optimizer)[0]
        return super()._get_learning_rate()

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        notes = {**taken_notes(self.ft_stash.parts.values()), **self._run_notes(logs)}
        entry = {**logs, **notes}
        super().log(entry, *args, **kwargs)
        # What was logged is also what `evaluate` and `train` give as metrics; what the techniques added is none.
        logs.clear()
        logs.update((key, value) for key, value in entry.items() if key not in notes)

    # ---- training loop ----

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = self._norm_of_step()
        return super()._clip_grad_norm(*args, **kwargs) if norm is None else norm

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = self._norm_of_step()
        self.last_grad_norm = super()._get_grad_norm(*args, **kwargs) if norm is None else norm
        return self.last_grad_norm

    def _norm_of_step(self) -> Any:
        """Of an optimizer that steps within the backward pass (`ft_optimizer`); None of any other."""
        norm_of_step = getattr(getattr(self.optimizer, "optimizer", self.optimizer), "norm_of_step", None)
        return None if norm_of_step is None else norm_of_step()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self._agree_on_control(self.control)
        self._ranks_may_differ = self._agreed(self._has_callbacks_of_others())
        shards.drop_marks(lr_scale.innermost(self.optimizer))
        # Stock Trainer takes one more step when it resumes a run that had ended in the middle of an epoch.
        if self.state.max_steps and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if self.control.should_training_stop:
            return None
        names = ("epoch", "epochs_trained", "steps_trained_in_current_epoch")
        self._place_data(**{name: kwargs[name] for name in names})
        with self._agreeing_between_batches(), self._counting_passes(kwargs["epoch"]):
            ended = super()._run_epoch(*args, **kwargs)
        self._refresh_manifests(self._saved[-1:])
        return ended

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # A flag set on one rank only (a callback that sees its own rank's data) leaves the others waiting for ever.
        if self._ranks_may_differ:
            self._agree_on_control(self.control)
        busy = self._acts_now()
        if not busy and not self._may_end_early():
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        for _ in self._turns_to_log_save_evaluate():
            saves, acts = self.control.should_save, self._acts_now()
            super()._maybe_log_save_evaluate(*args, **kwargs)
            if acts:
                self._refresh_manifests(self._saved if saves else self._saved[-1:])
        if busy:
            self._agree_on_control(self.control)

    def _acts_now(self) -> bool:
        control = self.control
        return control.should_log or control.should_evaluate or control.should_save

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # Metrics of sampled text differ between ranks, and then so would the checkpoint that each saves or calls best.
        return super()._determine_best_metric(metrics=from_first_rank(self.args, lambda: metrics), trial=trial)

    @contextlib.contextmanager
    def _agreeing_between_batches(self) -> Iterator[None]:
        """Also agree where Trainer may leave an accumulation half done; no override point lies there."""
        if self.args.gradient_accumulation_steps == 1 or not self._ranks_may_differ:
            yield
            return
        agreement = _AgreesBetweenBatches(self._agree_on_control)
        # Last, so that it comes after whatever the script's own callbacks decide.
        self.callback_handler.callbacks.append(agreement)
        try:
            yield
        finally:
            self.callback_handler.callbacks.remove(agreement)

    def _has_callbacks_of_others(self) -> bool:
        """Whether somebody else's callback may set a flag on this rank alone: to ask in each step costs a device sync.

        Those of these libraries set flags by the step, which all ranks share, or by what an evaluation gave, after
        which ranks always agree.
        """
        return any(_home(type(one)) not in AGREEING for one in self.callback_handler.callbacks)

    def _agreed(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if not self._is_distributed():
            return here
        flag = torch.tensor(int(here), device=self.args.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def _agree_on_control(self, control: Any) -> None:
        if not self._is_distributed():
            return
        flags = torch.tensor([int(getattr(control, flag)) for flag in CONTROL_FLAGS], device=self.args.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        for flag, value in zip(CONTROL_FLAGS, flags.tolist(), strict=True):
            setattr(control, flag, bool(value))


def _home(cls: type) -> str:
    return cls.__module__.partition(".")[0]


class _AgreesBetweenBatches(TrainerCallback):
    def __init__(self, agree: Callable[[Any], None]) -> None:
        self._agree = agree

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._agree(control)
