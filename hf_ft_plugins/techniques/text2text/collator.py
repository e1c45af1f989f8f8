"""`TextPairCollator`: pairs of input and output text, or of their token ids, to a padded batch.

    Seq2SeqTrainer(..., data_collator=TextPairCollator(tokenizer, model))

Does what `DataCollatorForSeq2Seq` does, and truncates (keeping the end of sequence), tokenizes raw text in one call,
masks the prompt for causal models and makes prompt-only batches for generation.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ...errors import PluginError
from .arrays import Ragged
from .loss import IGNORED
from .packing import Flattener, PairPacker, new_packer
from .texts import TextObjective
from .tokens import Row, is_masked_copy

logger = logging.getLogger(__name__)

# Columns that say nothing that the ids do not, or that are no input of a model.
REDUNDANT = {"attention_mask", "token_type_ids", "special_tokens_mask", "length", "decoder_input_ids"}


@dataclass
class TextPairCollator:
    """Collates examples with `input_ids` and `labels`, or with two columns of text (or of ids).

    For an encoder-decoder, a batch holds, all int64: `input_ids`, `attention_mask` [B, S]; `labels`,
    `decoder_input_ids` [B, T]; -100 stands only in `labels`. For a causal model `input_ids`, `attention_mask`,
    `labels` [B, L]: prompt and target one after the other, padded on the right, labels -100 on the prompt. With
    `for_generation`, a causal batch holds the prompts only, padded on the left, and `labels` the targets [B, T].

    Attributes:
        tokenizer: pads with its `pad_token_id`; a row that ends in its `eos_token_id` still does when it is cut.
        model: gives the decoder's start token, and whether it is an encoder-decoder; not needed where `arch` and
            `decoder_start_token_id` are given.
        source, target: names of the columns of text; the target of ready token ids is `labels`.
        source_prefix: put before each source text ("translate English to French: ").
        max_source, max_target: longest source and target, in tokens; None: no limit.
        pad_to_multiple_of: round both widths up to a multiple.
        packing: "pairs" puts several pairs into a row, for an encoder-decoder (see `PairPacker`; the model must be
            `pack_aware`); "flatten" all pairs one after the other into one row, for a causal model (see `Flattener`).
            For training only.
        packer: what packs a batch, as `packing` says.
        objective: "seq2seq" for pairs; "prefix_lm" and "span_corruption" make pairs of texts, the column `source` or
            ready `input_ids` (see `TextObjective`).
        noise_density, mean_span_length: of span corruption.
        seed: of these objectives, with the epoch (`set_epoch`) and the example: its position in a `TokenTable`, else
            its ids. The same example of the same epoch is always treated alike.
        counts: what was cut or dropped so far, in this process: `sources cut`, `targets cut`, `texts cut`,
            `tokens cut`, `empty targets dropped`, `short texts dropped`.

    Raises:
        PluginError: a missing special token, a row without source or target, a column that cannot be batched.
    """

    tokenizer: Any
    model: Any = None
    arch: Literal["auto", "encoder-decoder", "causal"] = "auto"
    source: str = "source"
    target: str = "target"
    source_prefix: str = ""
    max_source: int | None = None
    max_target: int | None = None
    pad_to_multiple_of: int | None = None
    packing: Literal["none", "pairs", "flatten"] = "none"
    for_generation: bool = False
    decoder_start_token_id: int | None = None
    objective: Literal["seq2seq", "prefix_lm", "span_corruption"] = "seq2seq"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    packer: PairPacker | Flattener | None = field(default=None, init=False, repr=False)
    text_objective: TextObjective | None = field(default=None, init=False, repr=False, compare=False)
    # Shared, so that a worker process that lives for several epochs sees the present one.
    _epoch: torch.Tensor = field(
        default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_(),
        init=False,
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        config = getattr(self.model, "config", None)
        if self.arch == "auto":
            if config is None:
                raise PluginError("text2text: the collator needs the model, or arch='encoder-decoder' or 'causal'.")
            self.arch = "encoder-decoder" if config.is_encoder_decoder else "causal"
        if self.arch == "encoder-decoder" and self.decoder_start_token_id is None:
            self.decoder_start_token_id = getattr(config, "decoder_start_token_id", None)
            if self.decoder_start_token_id is None:
                raise PluginError(
                    "text2text: the model's config has no decoder_start_token_id, so the decoder's input cannot be "
                    "made from the labels. Set it (the tokenizer's pad_token_id for T5, bos_token_id for others)."
                )
        for option in ("max_source", "max_target"):
            longest = getattr(self, option)
            if longest is not None and longest < 1:
                raise PluginError(f"text2text: option {option}={longest} is not allowed: it must be 1 or more.")
        if self.tokenizer.pad_token_id is None:
            raise PluginError(
                "text2text: the tokenizer has no padding token. Set it: tokenizer.pad_token = tokenizer.eos_token."
            )
        if self.for_generation and self.packing != "none":
            raise PluginError(f"text2text: for_generation makes rows of one prompt each, not packing={self.packing!r}.")
        self.packer = new_packer(self.packing, self.arch, self.model)
        if self.objective != "seq2seq":
            self._make_objective(self.objective)
        self.model = None  # Only its config was needed; a collator goes to worker processes.

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose randomness counts from the next batch on; 0 until then."""
        self._epoch.fill_(epoch)

    def __call__(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        if self.text_objective is not None:
            return self._from_texts(self.text_objective, examples)
        first = examples[0]
        if not isinstance(first, Row) and "input_ids" in first and self._are_ready(examples):
            return self._padded_as_they_are(examples)
        sources, targets = self._pairs(examples)
        sources, targets = (
            self._cut(sources, self.max_source, "sources"),
            self._cut(targets, self.max_target, "targets"),
        )
        if not targets.lengths.all():
            sources, targets = self._without_empty(sources, targets)
        return (
            self._encoder_decoder(sources, targets)
            if self.arch == "encoder-decoder"
            else self._causal(sources, targets)
        )

    # ---- reading ----

    def _pairs(self, examples: Sequence[Any]) -> tuple[Ragged, Ragged]:
        if isinstance(examples[0], Row):
            return examples[0].table.gathered(examples)
        if "input_ids" in examples[0]:
            self._refuse_columns(examples[0])
            return self._ids(examples, "input_ids"), self._ids(examples, "labels")
        sources, targets = self._values(examples, self.source), self._values(examples, self.target)
        if isinstance(sources[0], str):
            return self.tokenized(sources, targets)
        return Ragged.from_rows(sources), Ragged.from_rows(targets)

    def tokenized(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[Ragged, Ragged]:
        """Token ids of texts, as the model is to see them; an empty or blank target has none."""
        sources = [self.source_prefix + source for source in sources]
        if self.arch == "causal":
            eos = self.tokenizer.eos_token_id
            if eos is None:
                raise PluginError("text2text: the tokenizer has no eos_token, so a target would have no end. Set it.")
            prompts = self.tokenizer(sources)["input_ids"]
            # Some tokenizers end every text; a prompt goes on.
            prompts = [ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids for ids in prompts]
            answers = [[*ids, eos] for ids in self.tokenizer(list(targets), add_special_tokens=False)["input_ids"]]
        else:
            prompts = self.tokenizer(sources)["input_ids"]
            answers = self.tokenizer(text_target=list(targets))["input_ids"]
        answers = [ids if text.strip() else [] for ids, text in zip(answers, targets, strict=True)]
        return Ragged.from_rows(prompts), Ragged.from_rows(answers)

    def _values(self, examples: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
        values = [example.get(column) for example in examples]
        # Not `None in values`: rows may be arrays, which compare one by one.
        row = next((row for row, value in enumerate(values) if value is None), None)
        if row is not None:
            raise PluginError(
                f"text2text: example {row} of the batch has no {column!r}, only {', '.join(examples[row])}. Name the "
                "columns with source=... and target=..., and drop rows without a value."
            )
        return values

    def _ids(self, examples: Sequence[Mapping[str, Any]], column: str) -> Ragged:
        return Ragged.from_rows(self._values(examples, column))

    def _refuse_columns(self, example: Mapping[str, Any]) -> None:
        unknown = set(example) - REDUNDANT - {"input_ids", "labels", self.source, self.target}
        unknown = {name for name in unknown if not isinstance(example[name], (str, int, float, type(None)))}
        if unknown:
            raise PluginError(
                f"text2text: the examples have the columns {', '.join(sorted(unknown))}, which the collator does not "
                "know how to batch. Remove them, or keep the script's own collator."
            )

    # ---- objectives that make pairs of texts ----

    def _make_objective(self, name: Literal["prefix_lm", "span_corruption"]) -> None:
        if self.source_prefix:
            raise PluginError(
                f"text2text: source_prefix={self.source_prefix!r} would be corrupted by objective={name}. Leave it out."
            )
        self.text_objective = TextObjective(
            name,
            self.tokenizer,
            causal=self.arch == "causal",
            max_source=self.max_source,
            max_target=self.max_target,
            noise_density=self.noise_density,
            mean_span_length=self.mean_span_length,
            seed=self.seed,
        )

    def texts(self, examples: Sequence[Any]) -> tuple[Ragged, np.ndarray | None]:
        """Token ids of texts, special tokens included, and the examples' numbers where they are rows of a table."""
        if isinstance(examples[0], Row):
            return examples[0].table.texts(examples)
        values = self._values(examples, "input_ids" if "input_ids" in examples[0] else self.source)
        return Ragged.from_rows(self.tokenizer(values)["input_ids"] if isinstance(values[0], str) else values), None

    def _from_texts(self, objective: TextObjective, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        sources, targets, counts = objective.pairs(*self.texts(examples), epoch=int(self._epoch))
        self.counts.update({what: number for what, number in counts.items() if number})
        if not len(targets.lengths):
            raise PluginError("text2text: every text of the batch has fewer than two tokens. Look at the data.")
        return (
            self._encoder_decoder(sources, targets)
            if self.arch == "encoder-decoder"
            else self._causal(sources, targets)
        )

    # ---- causal examples that hold prompt and target already, labels masked by the script ----

    def _are_ready(self, examples: Sequence[Any]) -> bool:
        return self.arch == "causal" and all(
            example.get("labels") is not None and is_masked_copy(example["input_ids"], example["labels"])
            for example in examples
        )

    def _padded_as_they_are(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        self._refuse_columns(examples[0])
        tokens, labels = self._ids(examples, "input_ids"), self._ids(examples, "labels")
        multiple = self.pad_to_multiple_of
        if isinstance(self.packer, Flattener):
            return self.packer(tokens, labels, padding=self.tokenizer.pad_token_id, multiple=multiple)
        return {
            "input_ids": tokens.padded(self.tokenizer.pad_token_id, multiple=multiple),
            "attention_mask": tokens.mask(multiple=multiple),
            "labels": labels.padded(IGNORED, multiple=multiple),
        }

    # ---- cutting and dropping ----

    def _cut(self, rows: Ragged, longest: int | None, what: str) -> Ragged:
        if longest is None:
            return rows
        result = rows.cut(longest, self.tokenizer.eos_token_id)
        lost = rows.lengths - result.lengths
        if lost.any():
            self.counts[f"{what} cut"] += int((lost > 0).sum())
            self.counts["tokens cut"] += int(lost.sum())
        return result

    def _without_empty(self, sources: Ragged, targets: Ragged) -> tuple[Ragged, Ragged]:
        kept = targets.lengths > 0
        self.counts["empty targets dropped"] += int((~kept).sum())
        if not kept.any():
            raise PluginError("text2text: every target of the batch is empty. Look at the column of targets.")
        return sources.kept(kept), targets.kept(kept)

    # ---- padding ----

    def _encoder_decoder(self, sources: Ragged, targets: Ragged) -> dict[str, torch.Tensor]:
        pad, multiple = self.tokenizer.pad_token_id, self.pad_to_multiple_of
        if isinstance(self.packer, PairPacker):
            start = self.decoder_start_token_id or 0
            return self.packer(sources, targets, padding=pad, start=start, multiple=multiple)
        labels = targets.padded(IGNORED, multiple=multiple)
        started = torch.full_like(labels, self.decoder_start_token_id or 0)
        started[:, 1:] = labels[:, :-1]
        return {
            "input_ids": sources.padded(pad, multiple=multiple),
            "attention_mask": sources.mask(multiple=multiple),
            "labels": labels,
            "decoder_input_ids": started.masked_fill(started == IGNORED, pad),
        }

    def _causal(self, sources: Ragged, targets: Ragged) -> dict[str, torch.Tensor]:
        pad, multiple = self.tokenizer.pad_token_id, self.pad_to_multiple_of
        if self.for_generation:
            return {
                "input_ids": sources.padded(pad, multiple=multiple, left=True),
                "attention_mask": sources.mask(multiple=multiple, left=True),
                "labels": targets.padded(IGNORED, multiple=multiple),
            }
        whole, labels = sources.beside(targets), sources.filled(IGNORED).beside(targets)
        if isinstance(self.packer, Flattener):
            return self.packer(whole, labels, padding=pad, multiple=multiple)
        return {
            "input_ids": whole.padded(pad, multiple=multiple),
            "attention_mask": whole.mask(multiple=multiple),
            "labels": labels.padded(IGNORED, multiple=multiple),
        }
