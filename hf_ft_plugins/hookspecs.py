"""The contract between techniques and the host: every hook, when it fires, and who may answer it.

A technique answers a hook by having a method of its name. The method takes any of the hook's arguments, by name and
without defaults. Two kinds of hook:

- **all**: every technique may answer, in the order in which the user listed them;
- **owner** (`firstresult=True`): at most one technique may answer; two are a `ConflictError` when the trainer is
  built, never half-way through training.

Arguments are only ever added, never removed or renamed. `stash` is the trainer's `Stash` (`host/stash.py`): what a
technique has to know in a later hook of the same run it keeps there, under a `StashKey` of its own. Hooks that get the
trainer find it by `stash_of(trainer)`.
"""

from __future__ import annotations

from typing import Any

import pluggy

PROJECT = "hf_ft_plugins"
PREFIX = "ft_"

_spec = pluggy.HookspecMarker(PROJECT)


@_spec
def ft_commands() -> Any:
    """**all**. Sub-commands of `hf-ft NAME`, NAME being the technique's: a `typer.Typer`.

    A class method: asked of the technique's class, when its name is typed as a command, and never by a trainer.
    """
    raise NotImplementedError


@_spec
def ft_raw_dataset(dataset: Any, split: str, args: Any, processing_class: Any, trainer_class: type, stash: Any) -> Any:
    """**all**. The data set to use instead of what the script passed to one of TRL's trainers, before that trainer
    tokenizes and cuts it; None changes nothing. Each technique gets what the one before left.

    Asked within the trainer's `__init__`, before the other hooks, and for data that are given later, to `evaluate`.
    `split` is TRL's name of the data: "train", "eval", or the evaluation set's own name. `transformers.Trainer` does
    not tokenize, so it never asks.
    """
    raise NotImplementedError


@_spec
def ft_model(model: Any, train_dataset: Any, args: Any, processing_class: Any, first_batches: Any, stash: Any) -> None:
    """**all**. Change the model in place (a new head, removed layers): first, when `transformers.Trainer.__init__` is
    done, and for each model that `model_init` makes later.

    `first_batches(count, split="train")` gives the first `count` rows of the training (`"eval"`: evaluation) data, as
    the techniques will supply and collate them: a list of batches on this process's device, the same on every rank.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_adapter(model: Any, args: Any, stash: Any) -> Any:
    """**owner**. The `PeftConfig` of an adapter, right after `ft_model`; None for none.

    Asked when `transformers.Trainer.__init__` is done, and for each model that `model_init` makes later. The model is
    on its device, and may be changed in place (quantised); the host puts the adapter on it. A script's model that has
    one already is an error.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_held_out(dataset: Any, args: Any, stash: Any) -> Any:
    """**owner**. The training set in two, right after the trainer's `__init__`, where the script gave no evaluation
    set: (what is trained on, what is evaluated); None leaves it whole.

    Whoever answers sees to it that something is evaluated: Trainer does it where `args.eval_strategy` says so.
    """
    raise NotImplementedError


@_spec
def ft_dataset(
    dataset: Any, split: str, model: Any, args: Any, processing_class: Any, collator: Any, stash: Any
) -> Any:
    """**all**. The data set to use instead, right after the trainer's `__init__`; None changes nothing. Each
    technique gets what the one before left.

    Asked for the training set (`split` is "train"), and for each evaluation set ("eval", or its name where there are
    several), before Trainer removes columns; and for data that are given later, each time that they are, to `evaluate`
    ("eval") or `predict` ("test"), which may be a part of what was supplied before. `collator` is the script's own, or
    Trainer's default.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_collator(collator: Any, split: str, model: Any, args: Any, processing_class: Any, stash: Any) -> Any:
    """**owner**. The data collator, next; None keeps `collator`: the script's own, or Trainer's default.

    Asked for the training data (`split` is "train") and for evaluation and test data ("eval"). Replace a collator only
    by one that does the same for the same data.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_metrics(model: Any, args: Any, processing_class: Any, stash: Any) -> Any:
    """**owner**. `compute_metrics`, next, where the script has none; None leaves it so."""
    raise NotImplementedError


@_spec
def ft_callbacks(args: Any, stash: Any) -> list[Any]:
    """**all**. Callbacks to add to the trainer, right after its `__init__`; `on_init_end` is called on each.

    `args` is the trainer's `TrainingArguments`. A callback with a method `set_trainer(trainer)` receives the trainer;
    one with `state_dict()` and `load_state_dict(state)` is saved in every checkpoint and restored on resume. With
    `end_phase` ("gate", "calibrate", "report" or "export") its `on_train_end` is called in that phase of the end of the
    run, whatever the order of the techniques (`endings.py`); where training ends by an exception, its
    `on_train_raised()` is called, if it has one.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_loss_function(trainer: Any) -> Any:
    """**owner**. What `trainer.compute_loss_func` is to be, when the callbacks are added; None leaves the script's own,
    or none.

    Called by Trainer as `function(outputs, labels, num_items_in_batch=...)`. Where the script has a function of its
    own (`trainer.compute_loss_func`), replace it only by one that does the same and more.
    """
    raise NotImplementedError


@_spec
def ft_columns(trainer: Any) -> list[str]:
    """**all**. Columns of the data sets to keep besides those that the model's `forward` takes, when Trainer first
    looks for columns to remove.
    """
    raise NotImplementedError


@_spec
def ft_trainer(trainer: Any) -> None:
    """**all**. The trainer is built and its callbacks are added; nothing has been trained.

    The place for checks that need the whole trainer: raise a `PluginError` to refuse the run.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_sampler(trainer: Any, dataset: Any) -> Any:
    """**owner**. The order of training examples, when the data loader is made; None keeps Trainer's.

    Returns a torch `Sampler` over positions in `dataset`, of one length in every epoch. Its `set_epoch(epoch)` is
    called before each epoch, and its order must depend on nothing else.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_batch_sampler(trainer: Any, dataset: Any, sampler: Any) -> Any:
    """**owner**. The batches of the training set, when its data loader is made; None keeps Trainer's.

    `sampler` is what `ft_sampler` answered: whose order to keep, or None.

    Returns a batch sampler: an iterable, with a length that is the same in every epoch and a multiple of the world
    size, of lists of positions in `dataset`, those of all ranks; accelerate deals them out. Its `set_epoch(epoch)` is
    called before each epoch, and its order must depend on nothing else.

    Where `dataset` is an `IterableDataset` (streaming data), it returns one, too: it yields whole batches, lists of
    examples that the collator takes, those of this rank alone, as many on every rank and as many as make whole
    optimizer steps. Its `set_epoch(epoch)` is called before each pass.
    """
    raise NotImplementedError


@_spec
def ft_batches(trainer: Any, batches: list[dict[str, Any]]) -> None:
    """**all**. The collated batches of one optimizer step on this rank, before the first forward pass; change them in
    place. What each rank does here it does as often as the others.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_training_step(trainer: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
    """**owner**. Forward and backward pass of one batch instead of Trainer's; None keeps Trainer's.

    Adds to the gradients of the parameters, those of all ranks by the last batch of the optimizer step, and returns the
    loss, detached, of which Trainer logs the sum over the step's batches and the mean over ranks. `num_items_in_batch`
    is what `compute_loss` takes: the number of targets in all batches of the step, or None.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_parts(trainer: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Any:
    """**owner**. One training batch as several, whose losses are computed one after the other and summed; None, or a
    list of one, leaves it whole.

    `inputs` is the collated batch, on the model's device, and stays as it is; `model` and `num_items_in_batch` are what
    `compute_loss` takes. Each part's loss must be a share of the whole batch's, divided by `num_items_in_batch`. There
    is one backward pass, of the sum.
    """
    raise NotImplementedError


@_spec
def ft_loss(trainer: Any, inputs: dict[str, Any]) -> Any:
    """**all**. A context manager in which one batch's loss is computed (`compute_loss`), in training and evaluation;
    None for none. What it changes on the trainer or the model it puts back.

    `inputs` is the collated batch, on the model's device. The contexts are entered in the order listed.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_optimizer(trainer: Any, model: Any, optimizer: Any) -> Any:
    """**owner**. The optimizer to train with, when one has been made and before its first step; None keeps
    `optimizer`: Trainer's own or the script's, whose parameter groups hold the script's settings.

    Returns a torch `Optimizer` over the same parameters. One that steps within the backward pass, so that Trainer finds
    no gradients to clip, has a method `norm_of_step()`: the norm of all gradients of the current step before clipping,
    which Trainer then logs instead of clipping; None where the gradients are still there.
    """
    raise NotImplementedError


@_spec
def ft_param_groups(trainer: Any, model: Any, groups: list[dict[str, Any]]) -> None:
    """**all**. The optimizer's parameter groups, when it has been made and before its first step; change the list in
    place: split groups, each part with the hyperparameters of the whole, none empty.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_scheduler(trainer: Any, optimizer: Any, num_training_steps: int) -> Any:
    """**owner**. The learning-rate scheduler, in `create_scheduler`, once the optimizer exists.

    Returns a torch `LRScheduler` on `optimizer`. Other techniques' learning-rate factors multiply it
    (see `lr_scale.py`). Not asked when the script passed a scheduler of its own: that is a `ConflictError`.
    """
    raise NotImplementedError


@_spec(firstresult=True)
def ft_eval_sampler(trainer: Any, dataset: Any) -> Any:
    """**owner**. The order of evaluation and test data, when their data loader is made; None keeps Trainer's.

    Returns a torch `Sampler` of positions in `dataset`, the same on every rank.
    """
    raise NotImplementedError


@_spec
def ft_evaluation(trainer: Any, dataloader: Any, prefix: str) -> Any:
    """**all**. A context manager in which one pass over evaluation or test data runs; None for none.

    What it changes on the trainer or the model it puts back. `prefix` is the metrics' (`eval`, `test`, ...); the
    contexts are entered in the order listed.
    """
    raise NotImplementedError


@_spec
def ft_report(trainer: Any) -> list[Any]:
    """**all**. What to show of the run that has ended, in `hf-ft report` and the model card: a list of `Facts`, `Rows`,
    `Grid` and `Curve` (`report_sections.py`); None for nothing.

    Asked on the first rank alone, when `train()` has ended and the model is what it stays, so nothing here may wait for
    other ranks. Not asked of a run that raised, or that SIGTERM has ended early.
    """
    raise NotImplementedError
