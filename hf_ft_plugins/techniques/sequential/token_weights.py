"""Losses in which some tokens count less: what the model is sure of otherwise, or finds unlikely, changes it most.

    with weighing(model, "entropy"):
        loss = model(**batch).loss          # sum of weight x token's loss, divided as the model divides its own

`entropy`: entropy-adaptive fine-tuning (arXiv:2601.02151). A token weighs the entropy of the model's distribution over
its `top_k` likeliest tokens, divided by ln(top_k): little where the model is sure, so that a label against its
conviction moves it little. The authors' code divides by 3, which is ln(20) rounded. Deviation: TRL's fused head never
builds the logits and gives the entropy over all tokens; there the weight is that one's, and 1 at most. Of models that
are seldom sure it tells less apart: measured on 256 tokens of Shakespeare, the two correlate by 0.98 and 0.87 where
27 % and 81 % of the tokens come to weigh 1.

`probability`: token-adaptive loss reweighting (arXiv:2509.20758). A token of probability p weighs p^(1 / tau), and
`floor` at least. Deviations: the paper's tau is the median of the mean losses of a batch's sequences, anew in each
batch; here each sequence's tau is its own mean loss (the same where a batch holds one), so that accumulation, ranks and
packing change nothing. Where sequences have one scored token each, all then weigh alike; a number for `tau` tells them
apart (1 is dynamic fine-tuning, arXiv:2508.05629). The paper derives weights that sum to 1; these do not, so that a
token's weight does not depend on how many others there are.

The weights get no gradients. Evaluation is not weighted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...models.inputs import bare
from ...models.scored import (
    IGNORED,
    aligned,
    are_of_tokens,
    divisor,
    is_causal,
    plain_loss,
    router_loss,
    token_losses,
)
from ...near import nearest_value
from .settings import NAME

KINDS = ("entropy", "probability")
# Of a model's loss from the mean over its tokens: what half precision rounds is less, any other loss more.
RELATIVE, ABSOLUTE = 0.05, 0.02


@dataclass(frozen=True)
class TokenWeights:
    """How tokens are weighted.

    Attributes:
        kind: entropy or probability.
        top_k: of entropy, how many of the likeliest tokens count.
        tau: of probability, the temperature in nats; None for the mean loss of the token's sequence.
        floor: of probability, the least that a token weighs.
    """

    kind: str
    top_k: int = 20
    tau: float | None = None
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PluginError(
                f"{NAME}: token_weights={self.kind!r}: there are none, {', '.join(KINDS)}.",
                code="option-value",
                mend=nearest_value(NAME, "token_weights", self.kind, KINDS),
            )
        if self.top_k < 2 or not 0 <= self.floor <= 1 or (self.tau is not None and self.tau <= 0):
            raise PluginError(
                f"{NAME}: token_weights={self.kind} with top_k={self.top_k}, tau={self.tau}, floor={self.floor}: "
                "top_k must be 2 or more, tau above 0, floor between 0 and 1.",
                code="option-value",
            )


@contextmanager
def weighing(model: Any, kind: str, **settings: Any) -> Iterator[None]:
    """While it lasts, `model(**batch)` weights the tokens of `outputs.loss` wherever gradients are on.

    Of a model with TRL's fused head, the tokens of `outputs.log_probs` are weighted, too, of which SFTTrainer makes the
    loss. What experts' routers add to a loss stays.

    Args:
        model: what the trainer calls, with or without an adapter, not yet wrapped for several processes.
        settings: of `TokenWeights`.

    Raises:
        PluginError: from the call, if it has no labels or gives no logits, or its loss is no mean over tokens.
    """
    weights = TokenWeights(kind, **settings)

    def weigh(module: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if torch.is_grad_enabled():
            (_weigh_fused if kwargs.get("fused_lm_head") else _weigh_logits)(weights, module, kwargs, outputs)
        return outputs

    # Before what others add to the loss.
    handle = model.register_forward_hook(weigh, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


# ---- weights ----


@torch.no_grad()
def entropy_weights(logits: torch.Tensor, top_k: int = 20) -> torch.Tensor:
    """Entropy over the `top_k` likeliest of V, in units of its largest: 0 to 1, float [...].

    Args:
        logits: float [..., V].
    """
    likeliest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values
    logs = likeliest.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1) / math.log(logs.shape[-1])


@torch.no_grad()
def probability_weights(
    losses: torch.Tensor,
    scored: torch.Tensor,
    sequences: torch.Tensor | None = None,
    *,
    tau: float | None = None,
    floor: float = 0.01,
) -> torch.Tensor:
    """p^(1 / tau) of each token, `floor` at least, float [B, T].

    Args:
        losses: float [B, T], -ln(p).
        scored: bool [B, T].
        sequences: int64 [B, T], the number of the token's sequence within its row; None where a row is one.
        tau: in nats; None for the mean loss of each sequence's scored tokens.
    """
    if tau is not None:
        return (-losses / tau).exp().clamp(min=floor)
    rows, tokens = losses.shape
    groups = torch.arange(rows, device=losses.device)[:, None] * tokens
    groups = (groups + (0 if sequences is None else sequences)).expand_as(losses).flatten()
    empty = losses.new_zeros(rows * tokens)
    totals = empty.index_add(0, groups, (losses * scored).flatten())
    counts = empty.index_add(0, groups, scored.flatten().to(losses.dtype))
    means = (totals / counts.clamp(min=1))[groups].view_as(losses)
    # A sequence that is known by heart has a mean of 0.
    return (-losses / means.clamp(min=torch.finfo(losses.dtype).tiny)).exp().clamp(min=floor)


def _sequences(kwargs: dict[str, Any], rows: int, tokens: int, *, shifted: bool) -> torch.Tensor | None:
    """Which sequence of its row a label belongs to, int64 [B, T]: each begins at position 0 where rows are packed."""
    positions: torch.Tensor | None = kwargs.get("position_ids")
    if positions is None or positions.dim() != 2 or positions.shape[1] != tokens + int(shifted):
        return None
    numbers = (positions.eq(0).cumsum(-1) - 1).clamp(min=0)
    # One too many only where each token of a row begins a sequence: padding.
    return (numbers[:, 1:] if shifted else numbers).clamp(max=tokens - 1).expand(rows, -1)


# ---- losses ----


def _weigh_logits(weights: TokenWeights, model: Any, kwargs: dict[str, Any], outputs: Any) -> None:
    logits, labels, shifted = getattr(outputs, "logits", None), kwargs.get("labels"), is_causal(model)
    if kwargs.get("shift_labels") is not None:
        labels, shifted = kwargs["shift_labels"], False
    if logits is None or labels is None or getattr(outputs, "loss", None) is None:
        raise PluginError(
            f"{NAME}: token_weights={weights.kind} needs a model called with labels that gives loss and logits, and "
            f"{type(model).__name__} did not (kernels that fuse head and loss give no logits: use_liger_kernel=False). "
            "Set token_weights=none.",
            code="model-unsuited",
            mend=[mends.set_argument("use_liger_kernel", False), mends.set_option(NAME, "token_weights", "none")],
        )
    if not are_of_tokens(logits, labels):
        raise PluginError(
            f"{NAME}: token_weights={weights.kind} weights tokens, and {type(model).__name__} gives logits "
            f"{list(logits.shape)} for labels {list(labels.shape)}. Set token_weights=none.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "token_weights", "none")],
        )
    logits, labels = aligned(logits, labels, shifted=shifted)
    losses, scored = token_losses(logits, labels), labels != IGNORED
    routers = router_loss(model, outputs)
    own = plain_loss(outputs) - routers.detach()
    total = losses.detach().sum()
    divided = divisor(own, total, scored.sum(), kwargs.get("num_items_in_batch"))
    _refuse_other_loss(weights, model, own, total / divided)
    if weights.kind == "entropy":
        each = entropy_weights(logits, weights.top_k)
    else:
        each = _by_probability(weights, losses.detach(), scored, kwargs, shifted)
    outputs["loss"] = (each * losses).sum() / divided + routers


def _weigh_fused(weights: TokenWeights, model: Any, kwargs: dict[str, Any], outputs: Any) -> None:
    scored, entropy = outputs.label_mask, outputs.entropy
    if weights.kind == "entropy":
        if entropy is None:
            raise PluginError(
                f"{NAME}: token_weights=entropy needs the entropy that TRL's fused head gives SFTTrainer, and "
                "this one was added without. add_fused_lm_head(model, outputs=('log_probs', 'entropy')), or set "
                "token_weights=probability.",
                code="part-misused",
                mend=[mends.set_option(NAME, "token_weights", "probability")],
            )
        vocabulary = bare(model).config.get_text_config().vocab_size
        each = (entropy.detach() / math.log(min(weights.top_k, vocabulary))).clamp(max=1)
    else:
        shifted = kwargs.get("shift_labels") is None
        each = _by_probability(weights, -outputs.log_probs.detach(), scored, kwargs, shifted)
    outputs["log_probs"] = each * outputs.log_probs
    items = kwargs.get("num_items_in_batch")
    divided = scored.sum().clamp(min=1) if items is None else items
    outputs["loss"] = -outputs.log_probs.sum() / divided + router_loss(model, outputs)


def _by_probability(
    weights: TokenWeights, losses: torch.Tensor, scored: torch.Tensor, kwargs: dict[str, Any], shifted: bool
) -> torch.Tensor:
    sequences = _sequences(kwargs, *losses.shape, shifted=shifted)
    return probability_weights(losses, scored, sequences, tau=weights.tau, floor=weights.floor)


def _refuse_other_loss(weights: TokenWeights, model: Any, own: torch.Tensor, mean: torch.Tensor) -> None:
    difference, loss = (own - mean).abs().item(), own.abs().item()
    if math.isfinite(difference) and difference > RELATIVE * loss + ABSOLUTE:
        raise PluginError(
            f"{NAME}: token_weights={weights.kind} weights the mean over tokens, and {type(model).__name__} computes a "
            f"loss of its own ({loss:.6g}; the mean is {mean.item():.6g}). Set token_weights=none.",
            code="model-unsuited",
            mend=[mends.set_option(NAME, "token_weights", "none")],
        )
