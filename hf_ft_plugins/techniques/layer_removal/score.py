"""Which layers are needed least, on a few batches of the data that the model is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...errors import OptionError, PluginError
from ...models.unchanged import evaluating, unchanged_on_error
from ...near import nearest_value
from ...progress import progress
from .remove import Removal, refuse_architecture, remove_layers
from .stacks import NAME, Stack, find_stack
from .trial_inputs import takes_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Batches = Sequence[dict[str, torch.Tensor]]
IGNORED = -100
SOUND = {"input_values", "input_features"}


def choose_layers(
    model: PreTrainedModel,
    batches: Batches,
    number: int,
    *,
    method: str = "perplexity",
    side: str = "",
    protect_first: int = 1,
    protect_last: int = 1,
    seed: int = 0,
) -> list[int]:
    """The layers to remove, ascending.

    Args:
        model: a `PreTrainedModel`; it is as before afterwards.
        batches: what `model(**batch)` takes, with labels where the method needs a loss; on any device.
        number: of layers to remove.
        method: a key of `METHODS`. perplexity: of all that are left, that without which the loss is lowest, again and
            again (as SLEB, Song et al. 2024, which scores by perplexity too). block_influence: those that turn hidden
            states least (ShortGPT, Men et al. 2024, equation 1). angular: the run of layers over which they turn least
            (Gromov et al. 2024, equation 5). taylor: the sum of |weight x gradient| over a layer's parameters, a first
            guess of what the loss loses (Kim et al. 2024, arXiv:2402.02834, section 3.1; they keep the first and last
            layers too). last, random: controls.
        protect_first, protect_last: layers at the ends that stay.

    Raises:
        OptionError: an option is out of range, or too few layers are left to choose from.
    """
    return sorted(removal_order(model, batches, number, method, side, protect_first, protect_last, seed))


def removal_order(
    model: PreTrainedModel,
    batches: Batches,
    number: int,
    method: str,
    side: str = "",
    protect_first: int = 1,
    protect_last: int = 1,
    seed: int = 0,
) -> list[int]:
    """`choose_layers`, in the order in which they go; but for angular, fewer layers are the first of these."""
    stack = find_stack(model, side)
    depth = len(stack.layers)
    if method not in METHODS:
        raise OptionError(
            f"{NAME}: method={method!r}; there are {', '.join(METHODS)}.",
            mend=nearest_value(NAME, "method", method, METHODS),
        )
    free = _allowed(model, stack, side, range(protect_first, depth - protect_last))
    if not 1 <= number <= len(free):
        raise OptionError(
            f"{NAME}: {number} layers of {depth} cannot be removed with protect_first={protect_first} and "
            f"protect_last={protect_last}: there are {len(free)} to choose from.",
            code="option-combination",
        )
    if method not in ("last", "random") and not len(batches):
        raise OptionError(
            f"{NAME}: method={method!r} needs batches of data to choose by; there are none.", code="data-missing"
        )
    with unchanged_on_error(model), evaluating(model), torch.no_grad():
        return list(METHODS[method](model, batches, number, side, free, seed))


def _allowed(model: PreTrainedModel, stack: Stack, side: str, layers: Iterable[int]) -> list[int]:
    """Those that this architecture can lose."""
    allowed, refused = [], None
    for layer in layers:
        try:
            refuse_architecture(model, stack, side, [layer])
            allowed.append(layer)
        except PluginError as error:
            refused = error
    if not allowed and refused is not None:
        raise refused
    return allowed


def mean_loss(model: PreTrainedModel, batches: Batches) -> float:
    """The loss per label of all batches, labels of -100 left out; per row where a loss is of no `labels`.

    Batches that give no loss do not count; nan if none does.
    """
    total, count = 0.0, 0
    for batch in batches:
        scored = _scored(model, batch)
        loss = getattr(_forward(model, batch), "loss", None) if scored else None
        if loss is not None:
            total, count = total + scored * float(loss), count + scored
    return total / count if count else math.nan


def gives_loss(model: PreTrainedModel, batches: Batches) -> bool:
    """Whether the model gives a loss of at least one of the batches."""
    with torch.no_grad(), evaluating(model):
        return any(_scored(model, one) and getattr(_forward(model, one), "loss", None) is not None for one in batches)


def failure_of(model: PreTrainedModel, batches: Batches) -> Exception | None:
    """What the model raises when it is called with one of the batches; None if it takes them all."""
    with torch.no_grad(), evaluating(model):
        for batch in progress(batches, f"{NAME}: trying the data", unit="batches"):
            try:
                _forward(model, batch)
            except Exception as error:
                return error
    return None


def _scored(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> int:
    """How many labels a batch has; where its loss is of something else, how many rows."""
    labels: Any = batch.get("labels")
    if not torch.is_tensor(labels):
        return next((len(value) for value in batch.values() if torch.is_tensor(value) and value.dim()), 1)
    causal = model.can_generate() and not model.config.is_encoder_decoder and labels.dim() > 1
    scored: torch.Tensor = (labels[..., 1:] if causal else labels) != IGNORED
    return int(scored.sum())


def score_layers(model: PreTrainedModel, batches: Batches, *, side: str = "") -> dict[str, list[float]]:
    """What each layer does, for people to look at.

    Returns:
        `loss`: of the model without this layer alone, empty where the batches have no labels; `block_influence`: 1 -
        cosine between what goes in and what comes out, mean over tokens.
    """
    with unchanged_on_error(model), evaluating(model), torch.no_grad():
        depth = len(find_stack(model, side).layers)
        labelled = gives_loss(model, batches)
        layers = progress(range(depth if labelled else 0), f"{NAME}: loss without each layer", unit="layers")
        losses = [_loss_without(model, batches, [layer], side) for layer in layers]
        turned = _turned(model, batches, side, 1)
    return {"loss": losses, "block_influence": turned}


def _by_perplexity(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    gone: list[int] = []
    losses: dict[int, float] = {}
    trials = number * len(free) - number * (number - 1) // 2
    for layer in progress(_left(free, gone, number), f"{NAME}: choosing layers", total=trials, unit="trials"):
        losses[layer] = _loss_without(model, batches, [*gone, layer], side)
        if len(losses) == len(free) - len(gone):
            gone.append(min(losses, key=lambda layer: (losses[layer], layer)))
            losses.clear()
    return gone


def _left(free: list[int], gone: list[int], number: int) -> Iterator[int]:
    """The layers that are not gone, as many times as layers are to go; `gone` grows meanwhile."""
    for _ in range(number):
        yield from [layer for layer in free if layer not in gone]


def _loss_without(model: PreTrainedModel, batches: Batches, layers: list[int], side: str) -> float:
    removal: Removal = remove_layers(model, layers, side=side, check=False)
    try:
        return mean_loss(model, batches)
    finally:
        removal.restore()


def _by_influence(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    turned = _turned(model, batches, side, 1)
    return sorted(free, key=lambda layer: (turned[layer], layer))[:number]


def _by_angle(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    turned = _turned(model, batches, side, number)
    starts = [layer for layer in free if layer + number - 1 <= free[-1]]
    start = min(starts, key=lambda layer: (turned[layer], layer))
    return range(start, start + number)


def _turned(model: PreTrainedModel, batches: Batches, side: str, over: int) -> list[float]:
    """1 - cosine between the states before layer n and after layer n + over - 1, mean over real tokens, for each n."""
    stack = find_stack(model, side)
    layers = stack.layers
    totals, tokens = [0.0] * (len(layers) - over + 1), 0
    states: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        given = (*args, kwargs.get("hidden_states"), *kwargs.values())
        states.append(next(one for one in given if torch.is_tensor(one)))

    def note_last(module: Any, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(note_last))
    try:
        for batch in progress(batches, f"{NAME}: what each layer turns", unit="batches"):
            states.clear()
            _forward(model, batch)
            real = _real(batch, states[0], model.config.is_encoder_decoder and stack.half == "decoder")
            tokens += int(real.sum())
            for start in range(len(totals)):
                before, after = states[start].float(), states[start + over].float()
                totals[start] += float((1 - torch.cosine_similarity(before, after, dim=-1))[real].sum())
    finally:
        for hook in hooks:
            hook.remove()
    return [total / tokens for total in totals]


def _real(batch: dict[str, torch.Tensor], states: torch.Tensor, decoding: bool) -> torch.Tensor:
    """Which states are no padding, bool, the shape of the states but for the last dimension.

    All, where a mask is of something else.
    """
    shape = states.shape[:-1]
    mask = batch.get("decoder_attention_mask" if decoding else "attention_mask")
    labels = batch.get("labels")
    if mask is None and decoding and labels is not None:
        mask = labels != IGNORED
    if mask is not None and mask.dim() > len(shape):
        # Multiple choice: each choice is a row of the states.
        mask = mask.flatten(0, mask.dim() - len(shape))
    if mask is not None and not decoding and SOUND & batch.keys() and mask.dim() == 2 and mask.shape[1] > shape[1]:
        # One state stands for many audio samples.
        mask = mask[:, torch.arange(shape[1], device=mask.device) * mask.shape[1] // shape[1]]
    if mask is None or mask.shape != shape:
        return torch.ones(shape, dtype=torch.bool, device=states.device)
    return mask.to(states.device).bool()


def _by_taylor(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    layers = find_stack(model, side).layers
    learned = {name: weight.requires_grad for name, weight in model.named_parameters()}
    kept = {name: weight.grad for name, weight in model.named_parameters()}
    totals = [0.0] * len(layers)
    try:
        for weight in model.parameters():
            weight.grad = None
            weight.requires_grad_(weight.is_floating_point())
        for batch in progress(batches, f"{NAME}: gradients of each layer", unit="batches"):
            with torch.enable_grad():
                loss = getattr(_forward(model, batch), "loss", None)
                if loss is not None:
                    loss.backward()
        for layer, module in enumerate(layers):
            gradients = [(weight, weight.grad) for weight in module.parameters() if weight.grad is not None]
            totals[layer] = sum(float((weight * gradient).abs().sum()) for weight, gradient in gradients)
    finally:
        for name, weight in model.named_parameters():
            weight.requires_grad_(learned[name])
            weight.grad = kept[name]
    return sorted(free, key=lambda layer: (totals[layer], layer))[:number]


def _last(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    return free[::-1][:number]


def _random(
    model: PreTrainedModel, batches: Batches, number: int, side: str, free: list[int], seed: int
) -> Iterable[int]:
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    return [free[place] for place in order[:number]]


def _forward(model: PreTrainedModel, batch: dict[str, Any]) -> Any:
    cached = {"use_cache": False} if model.can_generate() and takes_cache(model) else {}
    moved = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    return model(**moved, **cached)


METHODS: dict[str, Callable[..., Iterable[int]]] = {
    "perplexity": _by_perplexity,
    "block_influence": _by_influence,
    "angular": _by_angle,
    "taylor": _by_taylor,
    "last": _last,
    "random": _random,
}
