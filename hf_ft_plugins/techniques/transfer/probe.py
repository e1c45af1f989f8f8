"""`fit_probe`: train the head on features of the frozen backbone that are computed once.

    fit_probe(model, DataLoader(dataset, batch_size=64, collate_fn=collator))

Exact: the head sees what the frozen backbone in evaluation mode would give it, the model's own forward pass and loss
run on top, and on the first batch it is checked that they give the same logits. Where features would differ from pass
to pass, or do not suffice, `NotCacheable` says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ...errors import PluginError
from ..heads import backbone_of, base_of, head_names
from .layers import NAME

CACHE_LIMIT = 2 * 2**30  # bytes
BATCH = 256  # examples of one step of the head


class NotCacheable(PluginError):
    """The features cannot be computed once; the message says why."""


def fit_probe(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    steps: int = 1000,
    seed: int = 0,
) -> list[float]:
    """Train the model's head, in place, by AdamW with a cosine schedule; the backbone is left as it is.

    Args:
        model: with a head outside its backbone (`heads.head_names`).
        batches: collated batches with `labels`, in the same order every time they are iterated, on the model's device.
        loss: of (model, batch); None: the model's own.
        steps: at least this many, of up to 256 examples each, and at least five passes.
        seed: of the order of examples and of the head's dropout; the global random state is left as it was.

    Returns:
        The loss of every step.

    Raises:
        NotCacheable: the data differ from pass to pass, the head reads more than the features, or they take too much
            memory.
        PluginError: features that are not finite.
    """
    backbone, was_training = backbone_of(model), model.training
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        model.train(False)
        try:
            features = _Features.of(model, backbone, batches)
            model.train()
            backbone.train(False)
            return _fitted(model, backbone, features, loss or _own_loss, learning_rate, weight_decay, steps)
        finally:
            model.train(was_training)


def _own_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch)["loss"]


def _fitted(
    model: Any,
    backbone: Any,
    features: _Features,
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> list[float]:
    named = dict(base_of(model).named_parameters())
    head = [named[name] for name in head_names(model)]
    others = [weight for weight in model.parameters() if weight.requires_grad and not any(weight is h for h in head)]
    size = min(BATCH, len(features))
    number = max(steps, 5 * -(-len(features) // size))
    optimizer = torch.optim.AdamW(head, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, number)
    losses = []
    for weight in others:
        weight.requires_grad_(False)
    try:
        for rows in _rows(len(features), size, number):
            with features.instead_of(backbone, rows):
                value = loss(model, features.batch(rows))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(value.detach())
    finally:
        optimizer.zero_grad()
        for weight in others:
            weight.requires_grad_(True)
    return torch.stack(losses).tolist()


def _rows(examples: int, size: int, number: int) -> Iterator[torch.Tensor]:
    order = torch.empty(0, dtype=torch.long)
    for _ in range(number):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(examples)])
        yield order[:size]
        order = order[size:]


class _Features:
    """What the head reads of every example, and what the backbone gave beside it, as empty tensors of its shape."""

    def __init__(self, output: Any, read: dict[str, torch.Tensor], labels: torch.Tensor) -> None:
        self._output = output
        self._read = read
        self._labels = labels

    def __len__(self) -> int:
        return len(next(iter(self._read.values())))

    @classmethod
    def of(cls, model: Any, backbone: Any, batches: Iterable[dict[str, torch.Tensor]]) -> _Features:
        read: dict[str, list[torch.Tensor]] = {}
        labels: list[torch.Tensor] = []
        first_output, cuts, used, examples = None, {}, 0, 0
        _refuse_moving_data(batches)
        for batch in batches:
            if "labels" not in batch:
                raise NotCacheable("the batches have no labels")
            output = _output(model, backbone, batch)
            _refuse_not_finite(output, examples)
            if first_output is None:
                first_output, cuts = output, _what_the_head_reads(model, backbone, batch, output)
                read = {name: [] for name in cuts}
            for name, cut in cuts.items():
                part = output[name][:, :cut] if cut else output[name]
                if read[name] and part.shape[1:] != read[name][0].shape[1:]:
                    raise NotCacheable("the head reads sequences, whose length differs from batch to batch")
                read[name].append(part.clone())
                used += part.numel() * part.element_size()
            if used > CACHE_LIMIT:
                raise NotCacheable(f"the features take more than {CACHE_LIMIT / 2**30:.0f} GiB")
            labels.append(batch["labels"])
            examples += len(batch["labels"])
        if first_output is None:
            raise NotCacheable("there are no examples")
        return cls(first_output, {name: torch.cat(parts) for name, parts in read.items()}, torch.cat(labels))

    def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"labels": self._labels[rows.to(self._labels.device)]}

    @contextlib.contextmanager
    def instead_of(self, backbone: Any, rows: torch.Tensor) -> Iterator[None]:
        """Calls of `backbone` give the features of these rows."""
        read = {name: values[rows.to(values.device)] for name, values in self._read.items()}
        with _answering(backbone, _like(self._output, read, len(rows))):
            yield


def _output(model: Any, backbone: Any, batch: dict[str, torch.Tensor]) -> Any:
    """What the backbone gives the head, in a forward pass of the whole model."""
    seen = []
    handle = backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        handle.remove()
    if len(seen) != 1 or not hasattr(seen[0], "keys"):
        raise NotCacheable(f"the model calls its backbone {len(seen)} times, or not for named outputs")
    return seen[0]


def _like(output: Any, read: dict[str, torch.Tensor], size: int) -> Any:
    """An output of the same fields: those that are read, and placeholders that take no memory."""
    fields = {}
    for name, value in output.items():
        if name in read:
            fields[name] = read[name]
        elif isinstance(value, torch.Tensor):
            fields[name] = value.new_zeros(()).expand(size, *value.shape[1:])
        else:
            fields[name] = value
    return type(output)(**fields)


@contextlib.contextmanager
def _answering(backbone: Any, output: Any) -> Iterator[None]:
    def forward(*_: Any, **__: Any) -> Any:
        return output

    backbone.forward = forward
    try:
        yield
    finally:
        del backbone.forward


def _what_the_head_reads(model: Any, backbone: Any, batch: dict[str, torch.Tensor], output: Any) -> dict[str, int]:
    """Names of the outputs that the logits depend on, each with how many positions of its second dimension; 0: all.

    Raises:
        NotCacheable: the logits are not the same when the head is fed these alone.
    """
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    if not isinstance(batch["labels"], torch.Tensor):
        raise NotCacheable("the model has several heads")
    size = len(batch["labels"])
    with torch.enable_grad(), _answering(backbone, _like(output, leaves, size)):
        logits = model(**batch)["logits"]
        gradients = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    cuts = {}
    for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is None:
            continue
        only_first = value.dim() == 3 and not gradient[:, 1:].any()
        cuts[name] = 1 if only_first else 0
    fed = {name: output[name][:, :cut] if cut else output[name] for name, cut in cuts.items()}
    with torch.no_grad():
        expected = model(**batch)["logits"]
        try:
            with _answering(backbone, _like(output, fed, size)):
                given = model(labels=batch["labels"])["logits"]
        except (TypeError, ValueError, AttributeError) as error:
            raise NotCacheable(f"the head reads more than the backbone's output ({error})") from error
    if not torch.allclose(given, expected, rtol=1e-5, atol=1e-6):
        raise NotCacheable("the head reads more than the backbone's output")
    return cuts


def _refuse_not_finite(output: Any, before: int) -> None:
    for value in output.values():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            row = before + int((~torch.isfinite(value.flatten(1)).all(1)).nonzero()[0])
            raise PluginError(f"{NAME}: the features of row {row} are not finite. Look at that example.")


def _refuse_moving_data(batches: Iterable[dict[str, torch.Tensor]]) -> None:
    once, again = next(iter(batches), None), next(iter(batches), None)
    if once is None or again is None:
        return
    for name, value in once.items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, again[name]):
            raise NotCacheable(f"{name} differs from pass to pass, as augmented data do")
