"""What of the backbone's output a head reads: found by its gradients, then checked by feeding it that alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Module

from ...errors import PluginError
from ...models.labels import IGNORED

Loss = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]


class NotCacheable(PluginError):
    """The features cannot be computed once; the message says why."""

    DEFAULT_CODE = "model-unsuited"


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def output_of(output: Any, read: dict[str, torch.Tensor], size: int) -> Any:
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
def answering(backbone: Module, output: Any) -> Iterator[None]:
    def forward(*_: Any, **__: Any) -> Any:
        return output

    backbone.forward = forward
    try:
        yield
    finally:
        del backbone.forward


class HeadReading:
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

    def check(
        self, model: Module, backbone: Module, batch: dict[str, torch.Tensor], output: Any, expected: Any
    ) -> None:
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

    def check_loss(
        self, model: Module, backbone: Module, batch: dict[str, torch.Tensor], output: Any, loss: Loss
    ) -> None:
        """The same of the loss, which may look at the places of labels, as one that shifts them does."""
        if not (batch["labels"] != IGNORED).any():
            return
        with torch.no_grad(), answering(backbone, output):
            expected = float(loss(model, dict(batch)))
        with self._fed(backbone, output, self.cut(output, batch["labels"])):
            given = float(loss(model, {"labels": self.labels(batch["labels"])}))
        if not abs(given - expected) <= 1e-2 * abs(expected):
            raise NotCacheable("the loss reads more than the head's output and the labels")

    @contextlib.contextmanager
    def _fed(self, backbone: Module, output: Any, fed: dict[str, torch.Tensor]) -> Iterator[None]:
        size = len(next(iter(fed.values())))
        try:
            with torch.no_grad(), answering(backbone, output_of(output, fed, size)):
                yield
        except Exception as error:
            # Whatever it is, the head asked for something that is not there.
            raise NotCacheable(f"the head reads more than the backbone's output ({error})") from error


def what_the_head_reads(
    model: Module, backbone: Module, batch: dict[str, torch.Tensor], output: Any, logits: torch.Tensor, loss: Loss
) -> HeadReading:
    """Raises `NotCacheable` where the logits are not the same when the head is fed these alone."""
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    with torch.enable_grad(), answering(backbone, type(output)(**{**output, **leaves})):
        again = model(**without_labels(batch))["logits"]
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
        tokens = HeadReading(cuts, of_tokens=True)
        with contextlib.suppress(NotCacheable):  # Then it looks at whole sequences.
            tokens.check(model, backbone, batch, output, logits)
            tokens.check_loss(model, backbone, batch, output, loss)
            return tokens
    sequences = HeadReading(cuts, of_tokens=False)
    sequences.check(model, backbone, batch, output, logits)
    sequences.check_loss(model, backbone, batch, output, loss)
    return sequences
