"""`fit_probe`: train the head on features of the frozen backbone that are computed once.

    fit_probe(model, DataLoader(dataset, batch_size=64, collate_fn=collator))

Exact: the head sees what the frozen backbone in evaluation mode would give it, the model's own forward pass and loss
run on top, and on every batch it is checked that they give the same logits and loss. Where each token has a label and
the head looks at no other token, tokens are the examples. Where features would differ from pass to pass, or do not
suffice, `NotCacheable` says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.nn import Module

from ...models.heads import backbone_of, head_names
from ...models.inputs import bare
from ...progress import progress
from .features import Features
from .head_reading import Loss, NotCacheable
from .layers import NAME

BATCH = 256  # examples of one step of the head
TOKENS = 2048  # where these are the examples
PASSES = 40  # at least
# Three times what a head takes that learns in batches of a run's own size, alone and with a schedule.
LEARNING_RATE = 3e-3


def fit_probe(
    model: Module,
    batches: Iterable[dict[str, torch.Tensor]],
    *,
    loss: Loss | None = None,
    learning_rate: float = LEARNING_RATE,
    weight_decay: float = 0.0,
    steps: int = 100,
    seed: int = 0,
) -> list[float]:
    """Train the model's head, in place, by AdamW with a cosine schedule; the backbone is left as it is.

    Args:
        model: with a head outside its backbone (`heads.head_names`).
        batches: collated batches with `labels`, in the same order every time they are iterated, on the model's device.
        loss: of (model, batch); None: the model's own.
        steps: at least this many, of up to 256 examples (2048 tokens) each, and at least 40 passes.
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
            features = Features.of(model, backbone, batches, loss or _own_loss)
            model.train()
            backbone.eval()
            return _fitted(model, backbone, features, loss or _own_loss, learning_rate, weight_decay, steps)
        finally:
            model.train(was_training)


def _own_loss(model: Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch)["loss"]


def _fitted(
    model: Module,
    backbone: Module,
    features: Features,
    loss: Loss,
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> list[float]:
    named = dict(bare(model).named_parameters())
    head = [named[name] for name in head_names(model)]
    others = [weight for weight in model.parameters() if weight.requires_grad and not any(weight is h for h in head)]
    size = min(TOKENS if features.of_tokens else BATCH, len(features))
    number = max(steps, PASSES * -(-len(features) // size))
    optimizer = torch.optim.AdamW(head, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, number)
    losses = []
    for weight in others:
        weight.requires_grad_(False)
    try:
        drawn = _rows(len(features), size, number)
        for rows in progress(drawn, f"{NAME}: the head on cached features", total=number, unit="steps"):
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
