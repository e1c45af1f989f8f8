"""Trainer mix-in: the hooks that are asked in each step. Only a host whose techniques answer one of them has it.

A call more in each step costs more than it seems to where steps are short: a percent of one of two milliseconds.
"""

from __future__ import annotations

from typing import Any

import torch

from .hook_calls import CallsHooks

ASKED = ("ft_training_step", "ft_batches", "ft_loss", "ft_parts")


class StepHooks(CallsHooks):
    """Comes before a Trainer class in the method resolution order, beside `Host`."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        if batches:
            self._ask_all("ft_batches", trainer=self, batches=batches)
        return batches, num_items_in_batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        loss = self._ask_owner(
            "ft_training_step", trainer=self, model=model, inputs=inputs, num_items_in_batch=num_items_in_batch
        )
        return super().training_step(model, inputs, num_items_in_batch, **kwargs) if loss is None else loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        losses = []
        for part in self._parts_of(model, inputs, *args, **kwargs):
            with self._contexts("ft_loss", trainer=self, inputs=part):
                losses.append(super().compute_loss(model, part, *args, **kwargs))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)

    def _parts_of(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        # As `training_step` calls it. Whoever asks for the outputs, too, gets those of the whole batch.
        if args or set(kwargs) != {"num_items_in_batch"} or not model.training:
            return [inputs]
        parts: list[Any] = self._ask_owner("ft_parts", trainer=self, model=model, inputs=inputs, **kwargs) or [inputs]
        if len(parts) > 1 and self._ft_progress is not None:
            self._ft_progress.count_parts(inputs, parts)
        return parts
