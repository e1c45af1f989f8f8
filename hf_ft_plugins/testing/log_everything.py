"""A technique that answers every hook and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import typer

from .. import hookspecs
from ..technique import Technique


@dataclass(frozen=True, kw_only=True)
class LogEverything(Technique):
    """Answers every hook and remembers the order in which they fired; changes nothing."""

    name: ClassVar[str] = "log-everything"
    summary: ClassVar[str] = "record when each hook fires"
    fired: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    @classmethod
    def ft_commands(cls) -> Any:
        cls.fired.append(("ft_commands", {}))
        return typer.Typer()

    def ft_model(self, model: Any) -> None:
        self.fired.append(("ft_model", {"model": model}))

    def ft_adapter(self, model: Any) -> Any:
        self.fired.append(("ft_adapter", {"model": model}))
        return None

    def ft_raw_dataset(self, dataset: Any, split: str) -> Any:
        self.fired.append(("ft_raw_dataset", {"dataset": dataset, "split": split}))
        return None

    def ft_held_out(self, dataset: Any) -> Any:
        self.fired.append(("ft_held_out", {"dataset": dataset}))
        return None

    def ft_dataset(self, dataset: Any, split: str) -> Any:
        self.fired.append(("ft_dataset", {"dataset": dataset, "split": split}))
        return None

    def ft_collator(self, collator: Any, split: str) -> Any:
        self.fired.append(("ft_collator", {"collator": collator, "split": split}))
        return None

    def ft_metrics(self, processing_class: Any) -> Any:
        self.fired.append(("ft_metrics", {"processing_class": processing_class}))
        return None

    def ft_callbacks(self, args: Any) -> list[Any]:
        self.fired.append(("ft_callbacks", {"args": args}))
        return []

    def ft_loss_function(self, trainer: Any) -> Any:
        self.fired.append(("ft_loss_function", {"trainer": trainer}))
        return None

    def ft_columns(self, trainer: Any) -> list[str]:
        self.fired.append(("ft_columns", {"trainer": trainer}))
        return []

    def ft_trainer(self, trainer: Any) -> None:
        self.fired.append(("ft_trainer", {"trainer": trainer}))

    def ft_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_batch_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_batch_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_batches(self, trainer: Any, batches: list[Any]) -> None:
        self.fired.append(("ft_batches", {"trainer": trainer, "batches": batches}))

    def ft_loss(self, trainer: Any, inputs: Any) -> Any:
        self.fired.append(("ft_loss", {"trainer": trainer, "inputs": inputs}))
        return None

    def ft_training_step(self, trainer: Any, model: Any, inputs: Any) -> Any:
        self.fired.append(("ft_training_step", {"trainer": trainer, "model": model, "inputs": inputs}))
        return None

    def ft_parts(self, trainer: Any, inputs: Any) -> Any:
        self.fired.append(("ft_parts", {"trainer": trainer, "inputs": inputs}))
        return None

    def ft_optimizer(self, trainer: Any, model: Any, optimizer: Any) -> Any:
        self.fired.append(("ft_optimizer", {"trainer": trainer, "model": model, "optimizer": optimizer}))
        return None

    def ft_param_groups(self, trainer: Any, groups: list[dict[str, Any]]) -> None:
        self.fired.append(("ft_param_groups", {"trainer": trainer, "groups": groups}))

    def ft_scheduler(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any:
        arguments = {"trainer": trainer, "optimizer": optimizer, "num_training_steps": num_training_steps}
        self.fired.append(("ft_scheduler", arguments))
        return None

    def ft_eval_sampler(self, trainer: Any, dataset: Any) -> Any:
        self.fired.append(("ft_eval_sampler", {"trainer": trainer, "dataset": dataset}))
        return None

    def ft_evaluation(self, trainer: Any, dataloader: Any, prefix: str) -> Any:
        arguments = {"trainer": trainer, "dataloader": dataloader, "prefix": prefix}
        self.fired.append(("ft_evaluation", arguments))
        return None

    def ft_report(self, trainer: Any) -> Any:
        self.fired.append(("ft_report", {"trainer": trainer}))
        return None


def hook_names() -> list[str]:
    """All hooks of the contract, in the order of `hookspecs.py`."""
    return [name for name in vars(hookspecs) if name.startswith(hookspecs.PREFIX)]
