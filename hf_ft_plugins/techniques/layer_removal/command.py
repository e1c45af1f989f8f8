"""`hf-ft layer-removal curve`: what each layer of a model does, and what it costs to do without; trains nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ...errors import PluginError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


app = typer.Typer(
    help="Layers of a model: what they do, and what it costs to do without.", no_args_is_help=True, add_completion=False
)
console = Console()

BATCH = 8
FEWEST_TOKENS = 8
Method = Annotated[str, typer.Option(help="perplexity, block_influence, angular, taylor, last or random.")]


@app.callback()
def layer_removal() -> None:
    """Layers of a model: what they do, and what it costs to do without."""


@app.command()
def curve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, or its name on the hub.")],
    data: Annotated[Path | None, typer.Option(help="Text that it is for: .txt, .jsonl or .jsonl.gz.")] = None,
    column: Annotated[str, typer.Option(help="Of .jsonl: the column of the text.")] = "text",
    target_column: Annotated[str | None, typer.Option(help="Of .jsonl, for an encoder-decoder: of its output.")] = None,
    method: Method = "perplexity",
    most: Annotated[int | None, typer.Option(help="Remove up to so many; else up to half.")] = None,
    side: Annotated[str, typer.Option(help="Of an encoder-decoder: encoder or decoder.")] = "",
    rows: Annotated[int, typer.Option(help="Rows to choose by, and as many others to measure on.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 128,
    out: Annotated[Path, typer.Option(help="Folder for the curve, as PNG and JSON.")] = Path("layers"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score the layers of a model, and draw what it costs to remove 1, 2, 3, ... of them. Nothing is trained."""
    found = examine(
        model,
        data,
        column=column,
        target_column=target_column,
        method=method,
        most=most,
        side=side,
        rows=rows,
        max_length=max_length,
        out=out,
    )
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("layer", "turns states by", "loss without it", box=None, header_style="bold")
    losses = found["scores"].get("loss") or [None] * len(found["scores"]["block_influence"])
    for layer, (turned, loss) in enumerate(zip(found["scores"]["block_influence"], losses, strict=True)):
        table.add_row(str(layer), f"{turned:.4f}", "" if loss is None else f"{loss:.4f}")
    console.print(table)
    if "curve" not in found:
        console.print("This model gives no loss of plain text: the layers that turn states least do least.")
        return
    table = Table("removed", "layers", "perplexity", "repeats", "as the whole model", box=None, header_style="bold")
    for point in found["curve"]:
        shares = (f"{point[name]:.0%}" if name in point else "" for name in ("repetition", "match"))
        table.add_row(str(point["removed"]), "+".join(map(str, point["layers"])), f"{point['perplexity']:.2f}", *shares)
    console.print(table)
    console.print(f"Without healing; the curve is in {found['picture']}. To train without, say, the first two:")
    layers = "+".join(map(str, found["curve"][min(2, len(found["curve"]) - 1)]["layers"]))
    console.print(f"  hf-ft run --with layer-removal:layers={layers} SCRIPT", highlight=False)


def examine(
    model: str,
    data: Path | None,
    *,
    column: str = "text",
    target_column: str | None = None,
    method: str = "perplexity",
    most: int | None = None,
    side: str = "",
    rows: int = 32,
    max_length: int = 128,
    out: Path = Path("layers"),
) -> dict[str, Any]:
    """Scores of each layer and, of a model with a loss of text, the curve.

    The arguments are those of `hf-ft layer-removal curve`, whose `--help` explains them.

    Raises:
        PluginError: no data, no model, or no tokenizer, or the column is not there.
    """
    import torch
    import transformers

    from ...models.classes import class_of
    from .curve import measure_curve, save_curve
    from .score import score_layers
    from .stacks import NAME, find_stack, usual_side
    from .surgery import prompts_of

    texts = _read(data, column, target_column, 2 * rows)
    try:
        config = transformers.AutoConfig.from_pretrained(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise PluginError(
            f"{NAME}: MODEL={model} has no configuration and tokenizer that can be read: {error}",
            code="model-unreadable",
        ) from error
    cls = class_of(config)
    network = cls.from_pretrained(model, dtype="auto").eval()
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    side = usual_side(network, side)
    if network.config.is_encoder_decoder and target_column is None:
        raise PluginError(
            f"{NAME}: {cls.__name__} writes one text for another: name its column, --target-column.",
            code="command-line",
        )
    batches = _batches(tokenizer, texts, max_length, network)
    middle = (len(batches) + 1) // 2
    chosen_by, held_out = batches[:middle], batches[middle:] or batches
    scores = score_layers(network, chosen_by, side=side)
    found: dict[str, Any] = {"model": model, "rows": len(texts), "scores": scores}
    if not scores["loss"]:
        return found
    depth = len(find_stack(network, side).layers)
    curve = measure_curve(
        network,
        chosen_by,
        most=min(most or depth // 2, depth - 2),
        method=method,
        side=side,
        held_out=held_out,
        prompts=prompts_of(network, held_out),
    )
    return found | {"curve": curve, "picture": str(save_curve(curve, out))}


def _read(data: Path | None, column: str, target_column: str | None, most: int) -> list[tuple[str, str | None]]:
    from .stacks import NAME

    if data is None:
        raise PluginError(
            f"{NAME}: which layers are needed depends on the text: --data FILE, a .txt or .jsonl of it.",
            code="command-line",
        )
    if not data.is_file():
        raise PluginError(f"{NAME}: --data {data} is no file.", code="file-unusable")
    found: list[tuple[str, str | None]] = []
    with (gzip.open if data.suffix == ".gz" else open)(data, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if len(found) == most:
                break
            if ".jsonl" not in data.suffixes:
                found += [(line, None)] if line.strip() else []
                continue
            row = json.loads(line)
            for name in filter(None, (column, target_column)):
                if name not in row:
                    raise PluginError(
                        f"{NAME}: --data {data}, line {number}: there is no column {name!r}; there are "
                        f"{', '.join(row)}. Name one: --column, --target-column.",
                        code="data-columns",
                    )
            found.append((str(row[column]), str(row[target_column]) if target_column else None))
    if not found:
        raise PluginError(f"{NAME}: --data {data} holds no text.", code="data-missing")
    return found


def _batches(
    tokenizer: Any, texts: list[tuple[str, str | None]], max_length: int, model: PreTrainedModel
) -> list[dict[str, Any]]:
    from .stacks import NAME

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    kept = []
    for text, target in texts:
        # A long text is cut before it is tokenized, to as many characters as max_length tokens can need.
        ids = tokenizer(text[: 20 * max_length], truncation=True, max_length=max_length)
        if len(ids["input_ids"]) >= FEWEST_TOKENS or target is not None:
            kept.append((ids, target))
    if not kept:
        raise PluginError(
            f"{NAME}: no row of --data has {FEWEST_TOKENS} tokens; a .txt needs a paragraph on each line.",
            code="data-missing",
        )
    batches = []
    for start in range(0, len(kept), BATCH):
        part = kept[start : start + BATCH]
        batch = dict(tokenizer.pad([ids for ids, _ in part], return_tensors="pt"))
        batch.pop("token_type_ids", None)
        if model.config.is_encoder_decoder:
            targets = tokenizer(
                text_target=[target for _, target in part],
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            )
            batch["labels"] = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        elif model.can_generate():
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batches.append({name: value.to(model.device) for name, value in batch.items()})
    return batches
