"""`fit_probe`: train the head on features of the frozen backbone that are computed once.

    fit_probe(model, DataLoader(dataset, batch_size=64, collate_fn=collator))

Exact: the head sees what the frozen backbone in evaluation mode would give it, the model's own forward pass and loss
run on top, and on every batch it is checked that they give the same logits and loss. Where each token has a label and
the head looks at no other token, tokens are the examples. Where features would differ from pass to pass, or do not
suffice, `NotCacheable` says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from ...errors import PluginError
from ...models.heads import backbone_of, head_names
from ...models.inputs import bare
from ...models.labels import IGNORED
from .layers import NAME

CACHE_LIMIT = 2 * 2**30  # bytes
BATCH = 256  # examples of one step of the head
TOKENS = 2048  # where these are the examples
READ_TWICE = 4  # batches
STIRRED = 0.1

Loss = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]


class NotCacheable(PluginError):
    """The features cannot be computed once; the message says why."""


def fit_probe(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    loss: Loss | None = None,
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
        steps: at least this many, of up to 256 examples (2048 tokens) each, and at least five passes.
        seed: of the order of examples and of the head's dropout; the global random state is left as it was.

    Returns:
        The loss of every step.

    Raises:
        NotCacheable: the data differ from pass to pass, the head reads more than the features, or they take too much
            memory.
        PluginError: features that are not finite.
    """
    backbone, was_training = backbone_of(model), model.training
    if backbone is bare(model):
        raise NotCacheable("the model names no backbone apart from its head")
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        model.eval()
        try:
            features = _Features.of(model, backbone, batches, loss or _own_loss)
            model.train()
            backbone.eval()
            return _fitted(model, backbone, features, loss or _own_loss, learning_rate, weight_decay, steps)
        finally:
            model.train(was_training)


def _own_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch)["loss"]


def _fitted(
    model: Any,
    backbone: Any,
    features: _Features,
    loss: Loss,
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> list[float]:
    named = dict(bare(model).named_parameters())
    head = [named[name] for name in head_names(model)]
    others = [weight for weight in model.parameters() if weight.requires_grad and not any(weight is h for h in head)]
    size = min(TOKENS if features.of_tokens else BATCH, len(features))
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

    def __init__(self, output: Any, read: dict[str, torch.Tensor], labels: torch.Tensor, of_tokens: bool) -> None:
        self._output = output
        self._read = read
        self._labels = labels
        self.of_tokens = of_tokens

    def __len__(self) -> int:
        return len(self._labels)

    @classmethod
    def of(cls, model: Any, backbone: Any, batches: Iterable[dict[str, torch.Tensor]], loss: Loss) -> _Features:
        read: dict[str, list[torch.Tensor]] = {}
        labels: list[torch.Tensor] = []
        first_output, reading, used, examples = None, _Reading({}, False), 0, 0
        _refuse_moving_data(batches)
        with _stirred(model):
            for batch in batches:
                if not isinstance(batch.get("labels"), torch.Tensor) or not batch["labels"].dim():
                    raise NotCacheable("the batches have no labels, or those of several heads")
                output, logits = _output(model, backbone, batch)
                _refuse_not_finite(output, examples)
                if first_output is None:
                    first_output = output
                    reading = _what_the_head_reads(model, backbone, batch, output, logits, loss)
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
    def instead_of(self, backbone: Any, rows: torch.Tensor) -> Iterator[None]:
        """Calls of `backbone` give the features of these rows."""
        read = {name: values[rows.to(values.device)] for name, values in self._read.items()}
        with _answering(backbone, _like(self._output, read, len(rows))):
            yield


def _output(model: Any, backbone: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """What the backbone gives the head, in a forward pass of the whole model, and the logits that this gives."""
    seen = []
    handle = backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            given = model(**_without_labels(batch))
    finally:
        handle.remove()
    if len(seen) != 1 or not hasattr(seen[0], "keys"):
        raise NotCacheable(f"the model calls its backbone {len(seen)} times, or not for named outputs")
    logits = given.get("logits") if hasattr(given, "get") else None
    if not isinstance(logits, torch.Tensor):
        raise NotCacheable("the model gives no logits by that name")
    return seen[0], logits


def _without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


@contextlib.contextmanager
def _stirred(model: Any) -> Iterator[None]:
    """The head's weights are off the values that they begin with, such as zeros, which would hide what it reads."""
    named = dict(bare(model).named_parameters())
    head = [named[name] for name in head_names(model)]
    before = [weight.detach().clone() for weight in head]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head:
            weight.add_(STIRRED * torch.randn(weight.shape, generator=generator).to(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(head, before, strict=True):
                weight.copy_(value)


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


class _Reading:
    """What of the backbone's output the head reads.

    Attributes:
        cuts: names of the outputs, each with how many positions of its second dimension; 0: all.
        of_tokens: whether each token with a label is an example of its own.
    """

    def __init__(self, cuts: dict[str, int], of_tokens: bool) -> None:
        self.cuts, self.of_tokens = cuts, of_tokens

    def cut(self, output: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.of_tokens:
            return {name: output[name][labels != IGNORED][:, None] for name in self.cuts}
        return {name: output[name][:, :cut] if cut else output[name] for name, cut in self.cuts.items()}

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[labels != IGNORED][:, None] if self.of_tokens else labels

    def check(self, model: Any, backbone: Any, batch: dict[str, torch.Tensor], output: Any, expected: Any) -> None:
        """Raise `NotCacheable` where the head gives other logits when it is fed these alone."""
        labels = batch["labels"]
        fed = self.cut(output, labels)
        if self.of_tokens:
            expected = expected[labels != IGNORED][:, None]
        if not len(expected):
            return
        if any(len(part) != len(expected) for part in fed.values()):
            raise NotCacheable("the head reads several rows of features for an example")
        with self._fed(backbone, output, fed):
            given = model()["logits"]
        near = max(1e-5, 4 * torch.finfo(expected.dtype).eps)
        scale = float(expected.abs().max())
        if given.shape != expected.shape or not torch.allclose(given, expected, rtol=near, atol=near * scale):
            raise NotCacheable("the head reads more than the backbone's output, such as the padding mask")

    def check_loss(self, model: Any, backbone: Any, batch: dict[str, torch.Tensor], output: Any, loss: Loss) -> None:
        """The same of the loss, which may look at the places of labels, as one that shifts them does."""
        if not (batch["labels"] != IGNORED).any():
            return
        with torch.no_grad(), _answering(backbone, output):
            expected = float(loss(model, dict(batch)))
        with self._fed(backbone, output, self.cut(output, batch["labels"])):
            given = float(loss(model, {"labels": self.labels(batch["labels"])}))
        if not abs(given - expected) <= 1e-2 * abs(expected):
            raise NotCacheable("the loss reads more than the head's output and the labels")

    @contextlib.contextmanager
    def _fed(self, backbone: Any, output: Any, fed: dict[str, torch.Tensor]) -> Iterator[None]:
        size = len(next(iter(fed.values())))
        try:
            with torch.no_grad(), _answering(backbone, _like(output, fed, size)):
                yield
        except Exception as error:
            # Whatever it is, the head asked for something that is not there.
            raise NotCacheable(f"the head reads more than the backbone's output ({error})") from error


def _what_the_head_reads(
    model: Any, backbone: Any, batch: dict[str, torch.Tensor], output: Any, logits: torch.Tensor, loss: Loss
) -> _Reading:
    """Raises `NotCacheable` where the logits are not the same when the head is fed these alone."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with torch.enable_grad(), _answering(backbone, type(output)(**{**output, **leaves})):
        again = model(**_without_labels(batch))["logits"]
        if not again.requires_grad:
            raise NotCacheable("the head reads nothing of the backbone's output")
        gradients = torch.autograd.grad(again.sum(), list(leaves.values()), allow_unused=True)
    cuts = {}
    for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is None:
            continue
        only_first = value.dim() == 3 and not gradient[:, 1:].any()
        cuts[name] = 1 if only_first else 0
    if not cuts:
        raise NotCacheable("the head reads none of the backbone's named outputs, such as the states of all layers")
    labels = batch["labels"]
    if labels.dim() == 2 and all(output[name].shape[:2] == labels.shape == logits.shape[:2] for name in cuts):
        tokens = _Reading(cuts, of_tokens=True)
        with contextlib.suppress(NotCacheable):  # Then it looks at whole sequences.
            tokens.check(model, backbone, batch, output, logits)
            tokens.check_loss(model, backbone, batch, output, loss)
            return tokens
    sequences = _Reading(cuts, of_tokens=False)
    sequences.check(model, backbone, batch, output, logits)
    sequences.check_loss(model, backbone, batch, output, loss)
    return sequences


def _refuse_not_finite(output: Any, before: int) -> None:
    for value in output.values():
        if isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            row = before + int((~torch.isfinite(value.flatten(1)).all(1)).nonzero()[0])
            raise PluginError(f"{NAME}: the features of row {row} are not finite. Look at that example.")


def _refuse_moving_data(batches: Iterable[dict[str, torch.Tensor]]) -> None:
    passes = [list(islice(iter(batches), READ_TWICE)) for _ in range(2)]
    for once, again in zip(*passes, strict=True):
        for name, value in once.items():
            if isinstance(value, torch.Tensor) and not torch.equal(value, again[name]):
                raise NotCacheable(f"{name} differs from pass to pass, as augmented data do")
