"""A read-out that a handful of labels can use: the last layer becomes a mean over tokens, and the head is solved.

    read_out(model, DataLoader(dataset, batch_size=64, collate_fn=collator))

Models of BERT's kind give their head one vector, that of the first token after the last layer. Where pretraining has
not taught it to sum up the text, a head learns little from it, and no schedule makes up for that; the mean over tokens
of the layer below tells much more. It is written into the model's own weights, so the saved model is one that
`from_pretrained` and `pipeline` know: in the last layer every token attends to all alike, values pass as they are, the
feed-forward part adds nothing, and the dense layer before the classifier passes on what comes. The classifier is the
solution of a ridge regression on the labels, its logits scaled by what it says of examples that are left out in turn.
All of it can learn afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models.heads import backbone_of
from ...models.inputs import bare
from ...progress import progress
from .features import refuse_moving_data
from .head_reading import without_labels
from .layers import NAME

MOST_EXAMPLES = 1000
RIDGE = 1.0  # of the mean squared length of the centred features
ATTENDED = 4.0  # weight of the mean over tokens beside the first token's own state
PASSED = 0.3  # of a normed state, so that an activation is nearly linear in it
LINEAR_FROM = 3.0  # where those activations are that bend at zero
ALIKE = 0.97  # correlation of what reaches the classifier with what is meant to
DEVIATIONS = 2.0  # by which a read-out must be better to be kept as it is
BY_CHANCE = 3.0  # standard deviations

_LAYERS = ("encoder.layer", "transformer.layer")
# Queries, keys, values, what follows attention, what ends the feed-forward part; and the two norms.
_PARTS = (
    (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm"),
    ),
    (
        *("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        *("attention.out_lin", "ffn.lin2", "sa_layer_norm", "output_layer_norm"),
    ),
)
_HEADS = (
    ("{backbone}.pooler.dense", "classifier"),
    ("classifier.dense", "classifier.out_proj"),
    ("pre_classifier", "classifier"),
)


class KeepsReadOut(Exception):
    """The read-out stays as it is; the message says why."""


@dataclass(frozen=True)
class ReadOut:
    """What was made of a model's read-out.

    Attributes:
        pooled: whether it is the mean over tokens now; else the head alone was solved.
        right, right_before: share of the examples that are classified rightly when left out of the fit in turn, by the
            read-out that was taken, and by the model's own.
    """

    pooled: bool
    right: float
    right_before: float


@dataclass(frozen=True)
class _Sites:
    """The modules that are written."""

    layer: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attended: nn.Linear
    fed_forward: nn.Linear
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    dense: nn.Linear
    classifier: nn.Linear

    def written(self) -> Iterator[nn.Parameter]:
        for module in (
            *(self.query, self.key, self.value, self.attended, self.fed_forward),
            *(*self.norms, self.dense, self.classifier),
        ):
            yield from module.parameters()


def read_out(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> ReadOut:
    """Give `model` the read-out that its training data ask for, in place.

    The model's own is kept where left-out examples say with some certainty that it is the better one.

    Args:
        model: of a text to one of several classes, with a head that has not learned these labels.
        batches: collated batches with `labels`, int64 [N], of all training data, on the model's device.

    Raises:
        KeepsReadOut: it is left as it was, and why.
        NotCacheable: the data differ from pass to pass.
    """
    sites = _sites_of(model)
    refuse_moving_data(batches)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _chosen(model, sites, _kept(batches))
    finally:
        model.train(training)


def written_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `read_out` may have written."""
    return list(_sites_of(model).written())


def _chosen(model: nn.Module, sites: _Sites, batches: list[dict[str, Tensor]]) -> ReadOut:
    labels = torch.cat([batch["labels"] for batch in batches])
    own, _, logits = _features(model, sites, batches)
    _refuse_learned_head(logits, labels)
    classes = sites.classifier.out_features
    own_errors, own_right, own_fit = _solved(own, labels, classes)
    before, pooled = [weight.clone() for weight in sites.written()], False
    try:
        errors, right, fit = _solved(_pooled(model, sites, batches), labels, classes)
        worse = errors - own_errors
        pooled = float(worse.mean()) <= DEVIATIONS * float(worse.std()) / len(worse) ** 0.5
    finally:
        if not pooled:
            for weight, value in zip(sites.written(), before, strict=True):
                weight.copy_(value)
    if pooled:
        _set_classifier(sites.classifier, *fit)
        return ReadOut(True, right, own_right)
    _set_classifier(sites.classifier, *own_fit)
    return ReadOut(False, own_right, own_right)


# ---- where ----


def _sites_of(model: nn.Module) -> _Sites:
    base: Any = bare(model)
    kind = getattr(base.config, "problem_type", None)
    if kind not in (None, "single_label_classification"):
        raise KeepsReadOut(f"problem_type is {kind}")
    backbone = backbone_of(model)
    layer = _last_layer(backbone)
    name = next((name for name, child in base.named_children() if child is backbone), "")
    for parts in _PARTS:
        for dense, classifier in _HEADS:
            modules = [_module(layer, part) for part in parts]
            modules += [_module(base, dense.format(backbone=name)), _module(base, classifier)]
            kinds = [type(one) for one in modules]
            if kinds == [nn.Linear] * 5 + [nn.LayerNorm] * 2 + [nn.Linear] * 2:
                query, key, value, attended, fed_forward, first, second, *head = modules
                sites = _Sites(layer, query, key, value, attended, fed_forward, (first, second), *head)
                _refuse_unfit(sites)
                return sites
    raise KeepsReadOut(f"a {type(base).__name__} is not built as BERT is")


def _last_layer(backbone: nn.Module) -> nn.Module | None:
    for path in _LAYERS:
        layers = _module(backbone, path)
        if isinstance(layers, nn.ModuleList) and len(layers) > 1:
            return layers[-1]
    return None


def _module(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def _refuse_unfit(sites: _Sites) -> None:
    width = sites.value.in_features
    squares = (sites.value, sites.attended, sites.dense)
    if any(one.weight.shape != (width, width) for one in squares) or sites.classifier.in_features != width:
        raise KeepsReadOut("its layers are not all of one width")
    if any(one.bias is None for one in (*squares, sites.query, sites.key, sites.fed_forward, sites.classifier)):
        raise KeepsReadOut("its layers have no biases")
    if sites.classifier.out_features < 2:
        raise KeepsReadOut("it has one output")
    if not all(weight.requires_grad for weight in sites.written()):
        raise KeepsReadOut("its last layer or its head is frozen or under an adapter")


def _kept(batches: Iterable[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    kept, count = [], 0
    for batch in batches:
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
            raise KeepsReadOut("its labels are not one class a text")
        count += len(labels)
        if count > MOST_EXAMPLES:
            raise KeepsReadOut(
                f"there are more than {MOST_EXAMPLES} examples, of which a last layer can learn: with many, "
                "training everything at once does as well"
            )
        kept.append(batch)
    if count < 4:
        raise KeepsReadOut("there are fewer than four examples")
    return kept


def _refuse_learned_head(logits: Tensor, labels: Tensor) -> None:
    right, count = float((logits.argmax(-1) == labels).sum()), len(labels)
    often = float(labels.bincount().max()) / count
    if right > count * often + BY_CHANCE * (count * often * (1 - often)) ** 0.5 and right >= count * 0.5:
        raise KeepsReadOut(f"its head knows these labels, of {right:.0f} of {count} examples")


# ---- the mean over tokens ----


def _write_mean(sites: _Sites, bend: float) -> None:
    width = sites.value.in_features
    unit = torch.eye(width).to(sites.value.weight)
    for module in (sites.query, sites.key, sites.fed_forward):
        module.weight.zero_()
        module.bias.zero_()
    for module, scale, shift in ((sites.value, 1.0, 0.0), (sites.attended, ATTENDED, 0.0), (sites.dense, PASSED, bend)):
        module.weight.copy_(scale * unit)
        module.bias.fill_(shift)
    for norm in sites.norms:
        norm.weight.fill_(1.0)
        norm.bias.zero_()


def _pooled(model: nn.Module, sites: _Sites, batches: list[dict[str, Tensor]]) -> Tensor:
    """What reaches the classifier when the last layer has become a mean over tokens."""
    for bend in (0.0, LINEAR_FROM):
        _write_mean(sites, bend)
        found, meant, _ = _features(model, sites, batches)
        if _correlation(found, meant) >= ALIKE:
            return found
    raise KeepsReadOut("its last layer does not pass a mean over tokens on")


def _features(model: nn.Module, sites: _Sites, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """What reaches the classifier, what the mean over tokens would be, each [N, width], and the logits."""
    found: dict[str, list[Tensor]] = {"read": [], "below": [], "logits": []}
    for batch in progress(batches, f"{NAME}: what the read-out sees", unit="batches"):
        with _watched(sites, found):
            output = model(**without_labels(batch))
        states = found["below"].pop()
        mask = batch.get("attention_mask")
        mask = torch.ones(states.shape[:2]).to(states) if mask is None or mask.dim() != 2 else mask.to(states)
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        found["below"].append(functional.layer_norm(states[:, 0] + ATTENDED * mean, states.shape[-1:]))
        found["logits"].append(output["logits"])
        if found["read"][-1].shape != mean.shape:
            raise KeepsReadOut("its classifier does not see one vector a text")
    read, meant, logits = (torch.cat(found[name]).float() for name in ("read", "below", "logits"))
    if not all(torch.isfinite(one).all() for one in (read, meant, logits)):
        raise KeepsReadOut("what its layers give is not finite")
    return read, meant, logits


@contextmanager
def _watched(sites: _Sites, found: dict[str, list[Tensor]]) -> Iterator[None]:
    def below(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found["below"].append(arguments[0] if arguments else named["hidden_states"])

    def read(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        found["read"].append(arguments[0])

    handles = [
        sites.layer.register_forward_pre_hook(below, with_kwargs=True),
        sites.classifier.register_forward_pre_hook(read),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _correlation(found: Tensor, meant: Tensor) -> float:
    centred = [(one - one.mean(0)).flatten() for one in (found, meant)]
    return float(functional.cosine_similarity(*centred, dim=0))


# ---- the head ----

Fit = tuple[Tensor, Tensor]


def _solved(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float, Fit]:
    """Ridge regression of the classes on the features.

    Returns:
        The squared error of each example when it is left out of the fit, [N]; the share of them that are classified
        rightly then; weight [classes, width] and bias [classes] of the fit to all, scaled to be logits.
    """
    rows, wanted = features.double().cpu(), functional.one_hot(labels.cpu(), classes).double()
    centre, usual = rows.mean(0), wanted.mean(0)
    rows = rows - centre
    products = rows @ rows.T
    size = products.diagonal().mean().clamp(min=1e-12)
    inverse = torch.linalg.inv(products / size + RIDGE * torch.eye(len(rows), dtype=torch.double))
    # Of a fit with a free mean, this is what each example says of its own prediction.
    hat = products / size @ inverse + 1 / len(rows)
    own = hat.diagonal()[:, None]
    left_out = (hat @ wanted - own * wanted) / (1 - own)
    weight = (inverse @ (wanted - usual)).T @ rows / size
    bias = usual - weight @ centre
    scale = _scale(left_out, labels.cpu())
    right = float((left_out.argmax(-1) == labels.cpu()).double().mean())
    return (wanted - left_out).square().sum(1), right, (scale * (weight - weight.mean(0)), scale * (bias - bias.mean()))


def _scale(scores: Tensor, labels: Tensor) -> float:
    """The factor that makes scores the most likely logits."""
    factors = torch.logspace(-1, 1.5, 40, dtype=torch.double)
    losses = [float(functional.cross_entropy(factor * scores, labels)) for factor in factors]
    return float(factors[losses.index(min(losses))])


def _set_classifier(classifier: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)
