"""What the head reads of every example, computed once by the frozen backbone and kept in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.nn import Module

from ... import mends
from ...errors import PluginError
from ...models.heads import head_names
from ...models.inputs import bare
from ...progress import progress
from .head_reading import HeadReading, Loss, NotCacheable, answering, output_of, what_the_head_reads, without_labels
from .layers import NAME

CACHE_LIMIT = 2 * 2**30  # bytes
READ_TWICE = 4  # batches
PERTURBATION = 0.1  # standard deviation of what is added to the head's weights while it is watched


class Features:
    """What the head reads of every example, and what the backbone gave beside it, as empty tensors of its shape."""

    def __init__(self, output: Any, read: dict[str, torch.Tensor], labels: torch.Tensor, of_tokens: bool) -> None:
        self._output = output
        self._read = read
        self._labels = labels
        self.of_tokens = of_tokens

    def __len__(self) -> int:
        return len(self._labels)

    @classmethod
    def of(cls, model: Module, backbone: Module, batches: Iterable[dict[str, torch.Tensor]], loss: Loss) -> Features:
        read: dict[str, list[torch.Tensor]] = {}
        labels: list[torch.Tensor] = []
        first_output, reading, used, examples = None, HeadReading({}, False), 0, 0
        refuse_moving_data(batches)
        with _head_perturbed(model):
            for batch in progress(batches, f"{NAME}: features of the frozen layers", unit="batches"):
                if not isinstance(batch.get("labels"), torch.Tensor) or not batch["labels"].dim():
                    raise NotCacheable("the batches have no labels, or those of several heads")
                output, logits = _output(model, backbone, batch)
                _refuse_not_finite(output, examples)
                if first_output is None:
                    first_output = output
                    reading = what_the_head_reads(model, backbone, batch, output, logits, loss)
                    read = {name: [] for name in reading.cuts}
                # A head or a loss that reads the padding mask, or weights, shows it only where there are such.
                reading.check(model, backbone, batch, output, logits)
                reading.check_loss(model, backbone, batch, output, loss)
                for name, part in reading.cut(output, batch["labels"]).items():
                    if read[name] and part.shape[1:] != read[name][0].shape[1:]:
                        raise NotCacheable("the head reads sequences, whose length differs from batch to batch")
                    read[name].append(part.clone())
                    used += part.numel() * part.element_size()
                if used > CACHE_LIMIT:
                    raise NotCacheable(f"the features take more than {CACHE_LIMIT / 2**30:.0f} GiB")
                labels.append(reading.labels(batch["labels"]))
                examples += len(batch["labels"])
        if first_output is None or not sum(map(len, labels)):
            raise NotCacheable("there are no examples")
        kept = {name: torch.cat(parts) for name, parts in read.items()}
        return cls(first_output, kept, torch.cat(labels), reading.of_tokens)

    def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": self._labels[rows.to(self._labels.device)]}

    @contextlib.contextmanager
    def instead_of(self, backbone: Module, rows: torch.Tensor) -> Iterator[None]:
        """Calls of `backbone` give the features of these rows."""
        read = {name: values[rows.to(values.device)] for name, values in self._read.items()}
        with answering(backbone, output_of(self._output, read, len(rows))):
            yield


def _output(model: Module, backbone: Module, batch: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """What the backbone gives the head, in a forward pass of the whole model, and the logits that this gives."""
    seen = []
    handle = backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            given = model(**without_labels(batch))
    finally:
        handle.remove()
    if len(seen) != 1 or not hasattr(seen[0], "keys"):
        raise NotCacheable(f"the model calls its backbone {len(seen)} times, or not for named outputs")
    logits = given.get("logits") if hasattr(given, "get") else None
    if not isinstance(logits, torch.Tensor):
        raise NotCacheable("the model gives no logits by that name")
    return seen[0], logits


@contextlib.contextmanager
def _head_perturbed(model: Module) -> Iterator[None]:
    """The head's weights are off the values that they begin with, such as zeros, which would hide what it reads."""
    named = dict(bare(model).named_parameters())
    head = [named[name] for name in head_names(model)]
    before = [weight.detach().clone() for weight in head]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head:
            weight.add_(PERTURBATION * torch.randn(weight.shape, generator=generator).to(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(head, before, strict=True):
                weight.copy_(value)


def _refuse_not_finite(output: Any, before: int) -> None:
    for value in output.values():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            row = before + int((~torch.isfinite(value.flatten(1)).all(1)).nonzero()[0])
            raise PluginError(
                f"{NAME}: the features of row {row} are not finite. Look at that example.",
                code="not-finite",
                mend=[mends.drop_rows("train", [row])],
            )


def refuse_moving_data(batches: Iterable[dict[str, torch.Tensor]]) -> None:
    passes = [list(islice(iter(batches), READ_TWICE)) for _ in range(2)]
    for once, again in zip(*passes, strict=True):
        for name, value in once.items():
            if isinstance(value, torch.Tensor) and not torch.equal(value, again[name]):
                raise NotCacheable(f"{name} differs from pass to pass, as augmented data do")
