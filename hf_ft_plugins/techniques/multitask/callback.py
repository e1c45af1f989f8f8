"""What a run with several tasks has to remember from step to step, and what it logs.

Per optimizer step: each task's mean loss, for the log, for the weights of its balancing, and for an adaptive mix.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.trainer_callback import TrainerCallback

from ...errors import PluginError
from ...host.log_notes import log_into_last_entry
from ...host.stash import StashKey, WithTrainer
from ...models.inputs import bare
from ...report_sections import Rows, Section
from .metrics import SCORE
from .mixing.balancer import Balancer
from .mixing.sampler import MultiTaskSampler
from .mixing.task_step import TaskStep, sum_over_ranks, weigh
from .tasks import NAME, TaskSpec, tasks_of

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


class MultiTaskCallback(WithTrainer, TrainerCallback):
    """Part of `multitask`; `set_trainer` and `weigh` must be called, as the host does.

    Args:
        balance: how the tasks' losses are weighed against each other (see `balance.py` and `gradient_surgery.py`).
        update_every: optimizer steps between changes of the weights of `dwa`.

    Attributes:
        specs: the model's tasks, by name.
        sampler: draws the training batches, where `follow` has been called.
        balancer: the weights of the tasks from step to step.
        step: the present optimizer step; None before the first.
    """

    def __init__(self, balance: str = "sum", update_every: int = 256) -> None:
        self.balance = balance
        self.update_every = update_every
        self.specs: dict[str, TaskSpec] = {}
        self.sampler: MultiTaskSampler | None = None
        self.balancer = Balancer(balance, 0)
        self.step: TaskStep | None = None
        self._sums: Tensor | None = None
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
        return super().__getstate__() | {"_hook": None}

    def set_trainer(self, trainer: Trainer) -> None:
        super().set_trainer(trainer)
        self.specs = tasks_of(trainer.model)
        self.balancer = Balancer(self.balance, len(self.specs), self.update_every)

    def follow(self, sampler: MultiTaskSampler) -> None:
        """Give this sampler each source's losses, where its mix is adaptive, and keep its state in checkpoints."""
        self.sampler = sampler
        if self._pending_sampler is not None:
            sampler.load_state_dict(self._pending_sampler)
            self._pending_sampler = None

    @property
    def world_size(self) -> int:
        return int(self._trainer.args.world_size)

    def weigh(self, batches: Sequence[dict[str, Any]]) -> None:
        """Begin an optimizer step: give each of its batches its `task_scale` (see `task_step.weigh`)."""
        device = self._trainer.args.device
        self.step = weigh(batches, self.specs, self.balancer.weights, device=device, world_size=self.world_size)

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
                f"this run has {rows}: an adaptive mix cannot be gone on with. Resume on as many ranks as before.",
                code="checkpoint-other-run",
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
        self.step = None
        if self._loaded is not None and step:
            self.load_state_dict(self._loaded)
            return
        self._loaded = self._resumed = None
        self._logged = self._block = None
        self._micro_steps = self._rows_seen = 0
        self.balancer = Balancer(self.balance, len(self.specs), self.update_every)

    def _rows_a_step(self) -> int:
        return int(self._trainer._train_batch_size) * self.world_size

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._report_too_long()

    def _watch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._sums = torch.zeros(len(self.specs), dtype=torch.float64, device=self._trainer.args.device)
        # Not the base model of a PEFT model, whose hooks do not run.
        outer = self._trainer.accelerator.unwrap_model(self._trainer.model)
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
            sum_over_ranks(self._block, self.world_size)
            sums, counts = self._block.tolist()
            means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
            self.sampler.tell(block - 1, means)
            self._block = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A zero gradient would still move what is idle, by the optimizer's momentum and weight decay.
        if self.step is None:
            return
        model = bare(self._trainer.accelerator.unwrap_model(self._trainer.model))
        for parameter in model.idle_parameters(self.step.present()):
            parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step is None or self._sums is None:
            return
        self._rows_seen += self.step.batches * self._rows_a_step()
        sums = self._sums.clone()
        self._sums.zero_()
        sum_over_ranks(sums, self.world_size)
        new = torch.cat([sums, self.step.items.double(), self.step.rows.double()])
        self._logged = new if self._logged is None else self._logged + new
        if not self.balancer.fixed:
            self.balancer.after_step(sums.tolist(), self.step.items.tolist(), state.global_step)

    # ---- what is logged ----

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

    def sections(self) -> list[Section]:
        """The tasks, how their losses are weighed now, and what was measured of each last."""
        history = self._trainer.state.log_history
        rows = [
            (name, spec.kind, weight, _last(history, f"share_{name}"), _last(history, f"loss_{name}"))
            for (name, spec), weight in zip(self.specs.items(), self._effective_weights(), strict=True)
        ]
        return [Rows("Tasks", ("task", "kind", "weight of its loss", "share of the rows", "training loss"), rows)]

    def _effective_weights(self) -> list[float]:
        model = bare(self._trainer.accelerator.unwrap_model(self._trainer.model))
        learned = getattr(model, "log_variances", None)
        factors = self.balancer.weights if learned is None else torch.exp(-learned.detach().float()).tolist()
        return [spec.weight * factor for spec, factor in zip(self.specs.values(), factors, strict=True)]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        sets = self._trainer.eval_dataset
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
            log_into_last_entry(self._trainer, {f"eval_{SCORE}": total})

    def _report_too_long(self) -> None:
        for split, collator in (("training", self._trainer.data_collator), ("evaluation", self._trainer.eval_collator)):
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
            None if values is None else torch.tensor(values, dtype=torch.float64, device=self._trainer.args.device)
            for values in (state["logged"], state["block"])
        )


def _last(history: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return next((entry[key] for entry in reversed(history) if key in entry), None)


CALLBACK = StashKey[MultiTaskCallback]("multitask: the state of its run")
