"""What each layer more that is removed costs, as numbers and as a picture from which to choose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...models.unchanged import evaluating, unchanged_on_error
from ...progress import progress
from .quality import measure_quality, perplexity_of
from .remove import remove_layers
from .score import Batches, choose_layers, mean_loss, removal_order
from .stacks import NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FILE = "layer_removal_curve"


def measure_curve(
    model: PreTrainedModel,
    batches: Batches,
    *,
    most: int,
    method: str = "perplexity",
    side: str = "",
    protect_first: int = 1,
    protect_last: int = 1,
    held_out: Batches | None = None,
    prompts: torch.Tensor | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The model without 0, 1, ..., `most` layers, before any healing.

    Args:
        model: a `PreTrainedModel`; it is as before afterwards.
        batches: to choose by, as for `choose_layers`; held_out: to measure on, or None for the same.
        prompts: int64 [B, L]; with them, how the model writes is measured too.

    Returns:
        for each number: `removed`, `layers`, `loss`, `perplexity`, and with prompts `repetition` and `match` (with the
        whole model's continuations).
    """
    protected = {"protect_first": protect_first, "protect_last": protect_last, "seed": seed}
    if method == "angular":
        chosen = [
            choose_layers(model, batches, number, method=method, side=side, **protected)
            for number in range(1, most + 1)
        ]
    else:
        order = removal_order(model, batches, most, method, side, **protected)
        chosen = [sorted(order[:number]) for number in range(1, most + 1)]
    return measure_choices(model, chosen, batches if held_out is None else held_out, side=side, prompts=prompts)


def measure_choices(
    model: PreTrainedModel,
    choices: Sequence[Sequence[int]],
    held_out: Batches,
    *,
    side: str = "",
    prompts: torch.Tensor | None = None,
) -> list[dict[str, Any]]:
    """The points of a curve for layers that are chosen already; the whole model is the first."""
    points, original = [], None
    for layers in progress(([], *choices), f"{NAME}: what each number of layers costs", unit="models"):
        with unchanged_on_error(model), evaluating(model), torch.no_grad():
            removal = remove_layers(model, layers, side=side, check=False) if layers else None
            loss = mean_loss(model, held_out)
            point: dict[str, Any] = {"removed": len(layers), "layers": list(layers), "loss": loss}
            point["perplexity"] = perplexity_of(loss)
            if prompts is not None:
                quality = measure_quality(model, [], prompts)
                original = original or quality
                point |= {"repetition": quality.repetition, "match": quality.match(original)}
            if removal is not None:
                removal.restore()
        points.append(point)
    return points


def save_curve(points: Sequence[dict[str, Any]], folder: Path, name: str = FILE) -> Path:
    """Write `NAME.json` and draw `NAME.png`, whose path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(list(points), indent=1), encoding="utf-8")
    # Not pyplot: a notebook's own backend stays as it is.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    removed = [point["removed"] for point in points]
    panels = [
        ("perplexity, before healing", {"perplexity": [point["perplexity"] for point in points]}),
    ]
    if all("repetition" in point for point in points):
        shares = {"repeated 4-grams": "repetition", "as the whole model writes, until it differs": "match"}
        panels.append(
            ("share", {label: [point[key] for point in points] for label, key in shares.items()}),
        )
    figure = Figure(figsize=(5.2 * len(panels), 4))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (label, lines) in zip(axes[0], panels, strict=True):
        for line, values in lines.items():
            axis.plot(removed, values, marker="o", label=line)
        axis.set(xlabel="layers removed", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.margins(y=0.15)
        if len(lines) > 1:
            axis.set_ylim(-0.03, 1.03)
            axis.legend()
    first = axes[0][0]
    first.axhline(points[0]["perplexity"], linestyle=":", color="grey")
    if max(first.get_ylim()) > 10 * points[0]["perplexity"]:
        first.set_yscale("log")
    gone: list[int] = []
    for point in points[1:]:
        new = sorted(set(point["layers"]) - set(gone))
        label = "+".join(map(str, new if set(gone) < set(point["layers"]) else point["layers"]))
        first.annotate(label, (point["removed"], point["perplexity"]), (0, 8), textcoords="offset points", ha="center")
        gone = point["layers"]
    first.set_title("at each point, the layer that goes", fontsize=9)
    figure.tight_layout()
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=120)
    return file
