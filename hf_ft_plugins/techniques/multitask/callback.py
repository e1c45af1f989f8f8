"""What a run with several tasks has to remember from step to step, and what it logs.

Per optimizer step: how many items each task has in all its batches on all ranks, so that every task's loss is a mean
over them whatever the accumulation; each task's mean loss, for the log, for the weights of its balancing, and for an
adaptive mix.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.trainer_callback import TrainerCallback

from ...errors import PluginError
from ...host.log_notes import log_into_last_entry
from ...models.inputs import bare
from .collator import MultiTaskCollator
from .data import TaggedConcat
from .heads.task_heads import count_items
from .labels import declared_otherwise
from .mixing.balancer import Balancer
from .mixing.sampler import MultiTaskSampler
from .tasks import NAME, TaskSpec, tasks_of

logger = logging.getLogger(__name__)

SCORE = "multitask_score"


class MultiTaskCallback(TrainerCallback):
    """Part of `multitask`; `set_trainer` and `weigh` must be called, as the host does.

    Args:
        balance: how the tasks' losses are weighed against each other (see `balance.py` and `gradient_surgery.py`).
        update_every: optimizer steps between changes of the weights of `dwa`.
    """

    def __init__(self, balance: str = "sum", update_every: int = 256) -> None:
        self.balance = balance
        self.update_every = update_every
        self.trainer: Any = None
        self.specs: dict[str, TaskSpec] = {}
        self.sampler: MultiTaskSampler | None = None
        # Of the present optimizer step: each task's items and rows on all ranks, batches left on this rank.
        self.items: Tensor | None = None
        self.left = 0
        self.batches = 0
        self.balancer = Balancer(balance, 0)
        # Of `gradients.py`: each task's gradients in the present step.
        self.held: dict[str, Any] = {}
        self._sums: Tensor | None = None
        self._rows: Tensor | None = None
        self._hook: Any = None
        # Since the last log: sum of losses, items, rows of each task; rows of all.
        self._logged: Tensor | None = None
        self._micro_steps = 0
        self._rows_seen = 0
        self._resumed: dict[str, int] | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._block: Tensor | None = None
        self._pending_sampler: Mapping[str, Any] | None = None
        self._scores: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"trainer": None, "_hook": None}

    def set_trainer(self, trainer: Any) -> None:
        self.trainer = trainer
        self.specs = tasks_of(trainer.model)
        self.balancer = Balancer(self.balance, len(self.specs), self.update_every)

    def follow(self, sampler: MultiTaskSampler) -> None:
        """Tell this sampler each source's losses, where its mix is adaptive, and keep its state in checkpoints."""
        self.sampler = sampler
        if self._pending_sampler is not None:
            sampler.load_state_dict(self._pending_sampler)
            self._pending_sampler = None

    @property
    def world_size(self) -> int:
        return int(self.trainer.args.world_size)

    # ---- one optimizer step ----

    def weigh(self, batches: Sequence[dict[str, Any]]) -> None:
        """Give each batch of an optimizer step its `task_scale`: a task's weight over its items in all of them.

        float32 [tasks], times batches and ranks, by which Trainer and DDP divide.
        """
        names = list(self.specs)
        device = self.trainer.args.device
        counts = torch.zeros(2 * len(names) + 1, dtype=torch.int64, device=device)
        for batch in batches:
            if not isinstance(batch.get("labels"), Mapping):
                raise PluginError(
                    f"{NAME}: a training batch has {', '.join(batch)} and no labels by task. Use MultiTaskCollator, or "
                    "give it labels={task: tensor, ...}."
                )
            for index, name in enumerate(names):
                if name in batch["labels"]:
                    labels = batch["labels"][name]
                    counts[index] += count_items(self.specs[name].kind, labels).to(device)
                    counts[len(names) + index] += labelled_rows(labels).to(device)
            counts[-1] += len(next(iter(batch["labels"].values())))
        self._reduce(counts)
        self.items = counts[: len(names)]
        self._rows = counts[len(names) :]
        self.left = self.batches = len(batches)
        weights = torch.tensor(
            [spec.weight * weight for spec, weight in zip(self.specs.values(), self.balancer.weights, strict=True)]
        ).to(device)
        scale = weights / self.items.clamp(min=1) * (len(batches) * self.world_size)
        for batch in batches:
            batch["task_scale"] = scale.float()

    def present(self) -> list[str]:
        """The tasks that have an item in the present optimizer step, on any rank."""
        assert self.items is not None
        return [name for name, items in zip(self.specs, self.items.tolist(), strict=True) if items]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(state.global_step)
        self._watch()
        rows = self._rows_a_step()
        if self._resumed is None or args.ignore_data_skip:
            return
        if self._resumed["rows_a_step"] == rows:
            if self.sampler is not None:
                self.sampler.shift = self._resumed["shift"]
            return
        if self.sampler is None or self.sampler.adaptive:
            raise PluginError(
                f"{NAME}: the checkpoint was made with {self._resumed['rows_a_step']} rows in a step of all ranks, and "
                f"this run has {rows}: an adaptive mix cannot be gone on with. Resume on as many ranks as before."
            )
        # Trainer counts steps, of another size now, and would pass over too much, or read the same again.
        epochs, steps = divmod(state.global_step, -(-self.sampler.steps // args.gradient_accumulation_steps))
        counted = epochs * self.sampler.steps + steps * args.gradient_accumulation_steps
        self.sampler.shift = self._resumed["rows_seen"] // rows - counted
        logger.warning(
            "%s: the checkpoint was made with %d rows in a step of all ranks, this run has %d. It goes on after the "
            "%d rows that were seen; the batches are other ones.",
            NAME,
            self._resumed["rows_a_step"],
            rows,
            self._resumed["rows_seen"],
        )

    def _begin(self, step: int) -> None:
        """Forget what a run before has left: another call of `train`, or one that `auto_find_batch_size` gave up."""
        self.held = {}
        self.items = self._rows = None
        if self._loaded is not None and step:
            self.load_state_dict(self._loaded)
            return
        self._loaded = self._resumed = None
        self._logged = self._block = None
        self._micro_steps = self._rows_seen = 0
        self.balancer = Balancer(self.balance, len(self.specs), self.update_every)

    def _rows_a_step(self) -> int:
        return int(self.trainer._train_batch_size) * self.world_size

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._report_too_long()

    def _watch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._sums = torch.zeros(len(self.specs), dtype=torch.float64, device=self.trainer.args.device)
        # Not the base model of a PEFT model, whose hooks do not run.
        outer = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self._hook = outer.register_forward_hook(self._see)

    def _see(self, module: Any, arguments: Any, output: Any) -> None:
        if not module.training or output.task_sums is None:
            return
        assert self._sums is not None
        source_loss = torch.zeros((), dtype=torch.float64, device=self._sums.device)
        for index, name in enumerate(self.specs):
            if name in output.task_sums:
                loss = output.task_sums[name].detach().double()
                self._sums[index] += loss
                source_loss += loss / output.task_items[name].clamp(min=1)
        if self.sampler is not None and self.sampler.adaptive:
            self._see_source(source_loss)

    def _see_source(self, loss: Tensor) -> None:
        assert self.sampler is not None
        if self._block is None:
            self._block = torch.zeros(2, len(self.sampler.sizes), dtype=torch.float64, device=loss.device)
        source = self.sampler.source_at(self._micro_steps)
        self._block[0, source] += loss
        self._block[1, source] += 1
        self._micro_steps += 1
        block = self.sampler.block_of(self._micro_steps)
        if block != self.sampler.block_of(self._micro_steps - 1):
            self._reduce(self._block)
            sums, counts = self._block.tolist()
            means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
            self.sampler.tell(block - 1, means)
            self._block = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A zero gradient would still move what is idle, by the optimizer's momentum and weight decay.
        if self.items is None:
            return
        model = bare(self.trainer.accelerator.unwrap_model(self.trainer.model))
        for parameter in model.idle_parameters(self.present()):
            parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.items is None or self._rows is None or self._sums is None:
            return
        self._rows_seen += self.batches * self._rows_a_step()
        sums = self._sums.clone()
        self._sums.zero_()
        self._reduce(sums)
        new = torch.cat([sums, self.items.double(), self._rows.double()])
        self._logged = new if self._logged is None else self._logged + new
        if not self.balancer.fixed:
            self.balancer.after_step(sums.tolist(), self.items.tolist(), state.global_step)

    def _reduce(self, values: Tensor) -> None:
        if self.world_size > 1 and dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)

    # ---- what is told ----

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" not in logs or "learning_rate" not in logs or self._logged is None:
            return
        tasks = len(self.specs)
        values = self._logged.tolist()
        entry: dict[str, float] = {}
        weights = self._effective_weights()
        for index, name in enumerate(self.specs):
            loss, items, rows = values[index], values[tasks + index], values[2 * tasks + index]
            if items:
                entry[f"loss_{name}"] = loss / items
            entry[f"share_{name}"] = rows / values[-1] if values[-1] else 0.0
            entry[f"weight_{name}"] = weights[index]
        self._logged = None
        logs.update(entry)
        state.log_history[-1].update(entry)

    def _effective_weights(self) -> list[float]:
        model = bare(self.trainer.accelerator.unwrap_model(self.trainer.model))
        learned = getattr(model, "log_variances", None)
        factors = self.balancer.weights if learned is None else torch.exp(-learned.detach().float()).tolist()
        return [spec.weight * factor for spec, factor in zip(self.specs.values(), factors, strict=True)]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        sets = self.trainer.eval_dataset
        if not isinstance(sets, dict):
            return
        for name in sets:
            key = f"eval_{name}_{SCORE}"
            if key in metrics:
                self._scores[name] = metrics[key]
        if set(self._scores) == set(sets):
            total = sum(self._scores.values()) / len(self._scores)
            self._scores = {}
            metrics[f"eval_{SCORE}"] = total
            log_into_last_entry(self.trainer, {f"eval_{SCORE}": total})

    def _report_too_long(self) -> None:
        for split, collator in (("training", self.trainer.data_collator), ("evaluation", self.trainer.eval_collator)):
            counts = getattr(collator, "too_long", None)
            if counts:
                named = ", ".join(f"{count}{f' of {source!r}' if source else ''}" for source, count in counts.items())
                logger.warning("%s: rows cut in %s, each time that one was read: %s.", NAME, split, named)

    # ---- resume ----

    def state_dict(self) -> dict[str, Any]:
        return {
            "micro_steps": self._micro_steps,
            "rows_seen": self._rows_seen,
            "rows_a_step": self._rows_a_step(),
            "shift": self.sampler.shift if self.sampler is not None else 0,
            "balancer": self.balancer.state_dict(),
            "sampler": self.sampler.state_dict() if self.sampler is not None else None,
            "logged": self._logged.tolist() if self._logged is not None else None,
            "block": self._block.tolist() if self._block is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state
        self._micro_steps = state["micro_steps"]
        self._rows_seen = state["rows_seen"]
        self._resumed = {name: state[name] for name in ("rows_seen", "rows_a_step", "shift")}
        self.balancer.load_state_dict(state["balancer"])
        if state["sampler"] is not None:
            if self.sampler is not None:
                self.sampler.load_state_dict(state["sampler"])
            else:
                self._pending_sampler = state["sampler"]
        self._logged, self._block = (
            None if values is None else torch.tensor(values, dtype=torch.float64, device=self.trainer.args.device)
            for values in (state["logged"], state["block"])
        )


def callback_of(trainer: Any) -> MultiTaskCallback:
    """The trainer's `MultiTaskCallback`."""
    return next(part for part in trainer.callback_handler.callbacks if isinstance(part, MultiTaskCallback))


@contextlib.contextmanager
def declared_in(trainer: Any, dataloader: Any) -> Iterator[None]:
    """Let the collator read the numbers of data that were given later by their own `ClassLabel`s, for one pass."""
    collator, dataset = trainer.eval_collator, getattr(dataloader, "dataset", None)
    if not isinstance(collator, MultiTaskCollator) or isinstance(dataset, TaggedConcat):
        yield
        return
    collator.declared = declared_otherwise(dataset, collator.tasks)
    try:
        yield
    finally:
        collator.declared = {}


def labelled_rows(labels: Tensor) -> Tensor:
    """Rows that have a label; int64 scalar from [rows, ...]."""
    flat = labels.reshape(len(labels), -1)
    present = ~flat.isnan() if flat.is_floating_point() else flat != -100
    return present.any(dim=1).sum()
