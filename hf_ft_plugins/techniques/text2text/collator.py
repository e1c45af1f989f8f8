"""`TextPairCollator`: pairs of input and output text, or of their token ids, to a padded batch.

    Seq2SeqTrainer(..., data_collator=TextPairCollator(tokenizer, model))

Does what `DataCollatorForSeq2Seq` does, and truncates (keeping the end of sequence), tokenizes raw text in one call,
masks the prompt for causal models and makes prompt-only batches for generation.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ... import mends
from ...errors import PluginError
from .architecture import DecoderStart, inputs_of, is_causal, new_decoder_start
from .arrays import Ragged
from .loss import IGNORED
from .packing import Flattener, PairPacker, new_packer
from .reading import LABELS, STARTED, column, padded, rows_of
from .rows import MASK, Rows, refuse_joined, refuse_packed, where
from .texts import TextObjective
from .tokens import Row

logger = logging.getLogger(__name__)


@dataclass
class TextPairCollator:
    """Collates examples with `input_ids` and `labels`, or with two columns of text (or of ids).

    For an encoder-decoder, a batch holds, all int64: `input_ids`, `attention_mask` [B, S]; `labels`,
    `decoder_input_ids` [B, T], made as the model makes them; -100 stands only in `labels`. For a causal model
    `input_ids`, `attention_mask`, `labels` [B, L]: prompt and target one after the other, padded on the right, labels
    -100 on the prompt; rows that hold both already, labels masked, stay as they are. With `for_generation`, a causal
    batch holds the prompts only, padded on the left, and `labels` the targets [B, T].

    What a row of token ids has beside them holds: its `attention_mask`, whatever padding it masks, labels of -100
    wherever they stand, and every column that the model takes by name (`decoder_attention_mask`, `position_ids`,
    `global_attention_mask`, `token_type_ids`, ...). Rows are padded on the tokenizer's side, as stock pads them.

    Attributes:
        tokenizer: pads with its `pad_token_id`; a row that ends in its `eos_token_id` still does when it is cut.
        model: tells what its decoder begins with, what it takes, and whether it is an encoder-decoder; not needed where
            `arch` and `decoder_start_token_id` are given.
        source, target: names of the columns of text; the target of ready token ids is `labels`.
        source_prefix: put before each source text ("translate English to French: ").
        max_source, max_target: longest source and target, in tokens; None: no limit.
        pad_to_multiple_of: round both widths up to a multiple.
        packing: "pairs" puts several pairs into a row, for an encoder-decoder (see `PairPacker`; the model must be
            `pack_aware`); "flatten" all pairs one after the other into one row, for a causal model (see `Flattener`).
            For training only.
        for_evaluation: no row is dropped: one without a target, or with a blank one, stays, and rows may have no labels
            at all.
        decoder_start_token_id: begins every row's `decoder_input_ids`; None: as the model does.
        given_decoder_inputs: whether a row's own `decoder_input_ids` hold; False: they are made anew of its labels, as
            `DataCollatorForSeq2Seq` with a model does.
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
    for_evaluation: bool = False
    decoder_start_token_id: int | None = None
    given_decoder_inputs: bool = True
    objective: Literal["seq2seq", "prefix_lm", "span_corruption"] = "seq2seq"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    packer: PairPacker | Flattener | None = field(default=None, init=False, repr=False)
    text_objective: TextObjective | None = field(default=None, init=False, repr=False, compare=False)
    _start: DecoderStart | None = field(default=None, init=False, repr=False, compare=False)
    _takes: frozenset[str] | None = field(default=None, init=False, repr=False, compare=False)
    # Shared, so that a worker process that lives for several epochs sees the present one.
    _epoch: torch.Tensor = field(
        default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_(),
        init=False,
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        if self.arch == "auto":
            if self.model is None:
                raise PluginError(
                    "text2text: the collator needs the model, or arch='encoder-decoder' or 'causal'.",
                    code="part-misused",
                )
            self.arch = "causal" if is_causal(self.model) else "encoder-decoder"
        for option in ("max_source", "max_target"):
            longest = getattr(self, option)
            if longest is not None and longest < 1:
                raise PluginError(
                    f"text2text: option {option}={longest} is not allowed: it must be 1 or more.",
                    code="option-value",
                    mend=[mends.remove_option("text2text", option)],
                )
        if self.tokenizer.pad_token_id is None:
            raise PluginError(
                "text2text: the tokenizer has no padding token. Set it: tokenizer.pad_token = tokenizer.eos_token.",
                code="tokenizer-unsuited",
            )
        if self.for_generation and self.packing != "none":
            raise PluginError(
                f"text2text: for_generation makes rows of one prompt each, not packing={self.packing!r}.",
                code="option-combination",
            )
        if self.arch == "encoder-decoder":
            self._make_start()
        self._takes = None if self.model is None else inputs_of(self.model)
        self.packer = new_packer(self.packing, self.arch, self.model)
        if self.objective != "seq2seq":
            self._make_objective(self.objective)
        self.model = None  # Only its class and config were needed; a collator goes to worker processes.

    def _make_start(self) -> None:
        if self.model is None and self.decoder_start_token_id is None:
            raise PluginError(
                "text2text: the collator needs the model, or decoder_start_token_id, to make the decoder's input of "
                "the labels.",
                code="part-misused",
            )
        self._start = new_decoder_start(self.model, self.decoder_start_token_id, self.tokenizer.pad_token_id)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = getattr(self.model.config, "decoder_start_token_id", None)

    def evaluating(self) -> TextPairCollator:
        """A copy that drops no row and packs none, and whose epoch stays the first: every evaluation is alike."""
        made = copy.copy(self)
        made.packing, made.packer, made.for_evaluation, made.counts = "none", None, True, Counter()
        made._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        return made

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose randomness counts from the next batch on; 0 until then."""
        self._epoch.fill_(epoch)

    def __call__(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        if self.text_objective is not None:
            return self._from_texts(self.text_objective, examples)
        rows = self.read(examples)
        if rows.targets is None:
            return self._sources_alone(rows)
        if self.arch == "causal" and rows.are_masked_copies():
            return self._as_they_are(rows)
        rows = self._cut(rows)
        if not self.for_evaluation and rows.targets is not None and not rows.targets.lengths.all():
            rows = self._without_empty(rows)
        return self._encoder_decoder(rows) if self.arch == "encoder-decoder" else self._causal(rows)

    # ---- reading ----

    def read(self, examples: Sequence[Any]) -> Rows:
        """The ids of examples, and what else they say."""
        if isinstance(examples[0], Row):
            return examples[0].table.rows(examples)
        if "input_ids" in examples[0]:
            label = next((name for name in LABELS if name in examples[0]), None)
            if label is not None and not self.for_evaluation:
                column(examples, label)
            rows = rows_of(examples, takes=self._takes, texts=(self.source, self.target))
            if not self.given_decoder_inputs:
                for beside in (rows.beside_source, rows.beside_target, rows.stacked):
                    beside.pop(STARTED, None)
            return rows
        sources = column(examples, self.source)
        if self.for_evaluation and all(example.get(self.target) is None for example in examples):
            ids = self.prompts(sources) if isinstance(sources[0], str) else Ragged.from_rows(sources)
            return Rows(ids, None, texts=True)
        if isinstance(sources[0], str):
            targets = [example.get(self.target) for example in examples]
            pairs = self.tokenized(sources, targets if self.for_evaluation else column(examples, self.target))
            return Rows(*pairs, texts=True)
        return Rows(Ragged.from_rows(sources), Ragged.from_rows(column(examples, self.target)), texts=True)

    def prompts(self, sources: Sequence[str]) -> Ragged:
        """Token ids of texts, as the model is to go on from them."""
        ids = self.tokenizer([self.source_prefix + source for source in sources])["input_ids"]
        if self.arch == "causal":
            # Some tokenizers end every text; a prompt goes on.
            eos = self.tokenizer.eos_token_id
            ids = [row[:-1] if len(row) > 1 and row[-1] == eos else row for row in ids]
        return Ragged.from_rows(ids)

    def tokenized(self, sources: Sequence[str], targets: Sequence[str | None]) -> tuple[Ragged, Ragged]:
        """Token ids of texts, as the model is to see them.

        An empty or blank target has none; for evaluation, those that the tokenizer gives it. None has none.
        """
        texts = ["" if target is None else target for target in targets]
        if self.arch == "causal":
            eos = self.tokenizer.eos_token_id
            if eos is None:
                raise PluginError(
                    "text2text: the tokenizer has no eos_token, so a target would have no end. Set it.",
                    code="tokenizer-unsuited",
                )
            answers = [[*ids, eos] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        else:
            answers = self.tokenizer(text_target=texts)["input_ids"]
        none = [target is None or not (target.strip() or self.for_evaluation) for target in targets]
        answers = [[] if empty else ids for ids, empty in zip(answers, none, strict=True)]
        return self.prompts(sources), Ragged.from_rows(answers)

    # ---- objectives that make pairs of texts ----

    def _make_objective(self, name: Literal["prefix_lm", "span_corruption"]) -> None:
        if self.source_prefix:
            raise PluginError(
                f"text2text: source_prefix={self.source_prefix!r} would be corrupted by objective={name}. Leave it "
                "out.",
                code="option-combination",
                mend=[mends.remove_option("text2text", "source_prefix")],
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
        if "input_ids" in examples[0]:
            rows = rows_of([{name: one.get(name) for name in ("input_ids", MASK)} for one in examples], takes=None)
            return where(rows.sources, rows.real()), None
        values = column(examples, self.source)
        return Ragged.from_rows(self.tokenizer(values)["input_ids"] if isinstance(values[0], str) else values), None

    def _from_texts(self, objective: TextObjective, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        sources, targets, counts = objective.pairs(*self.texts(examples), epoch=int(self._epoch))
        self.counts.update({what: number for what, number in counts.items() if number})
        if not len(targets.lengths):
            raise PluginError(
                "text2text: every text of the batch has fewer than two tokens. Look at the data.", code="data-rows"
            )
        rows = Rows(sources, targets, texts=True)
        return self._encoder_decoder(rows) if self.arch == "encoder-decoder" else self._causal(rows)

    # ---- cutting and dropping ----

    def _cut(self, rows: Rows) -> Rows:
        rows, lost = rows.cut(self.max_source, self.max_target, self.tokenizer.eos_token_id)
        for what, each in zip(("sources", "targets"), lost, strict=True):
            if each.any():
                self.counts[f"{what} cut"] += int((each > 0).sum())
                self.counts["tokens cut"] += int(each.sum())
        return rows

    def _without_empty(self, rows: Rows) -> Rows:
        assert rows.targets is not None
        kept = rows.targets.lengths > 0
        self.counts["empty targets dropped"] += int((~kept).sum())
        if not kept.any():
            raise PluginError(
                "text2text: every target of the batch is empty. Look at the column of targets.", code="data-rows"
            )
        return rows.kept(kept)

    # ---- padding ----

    def _sides(self) -> dict[str, Any]:
        return {"multiple": self.pad_to_multiple_of, "left": getattr(self.tokenizer, "padding_side", "right") == "left"}

    def _padded_sources(self, rows: Rows, **side: Any) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        fills = {"token_type_ids": getattr(self.tokenizer, "pad_token_type_id", 0)}
        batch = {"input_ids": rows.sources.padded(pad, **side)}
        batch[MASK] = (rows.mask.padded(0, **side)) if rows.mask is not None else rows.sources.mask(**side)
        for name, values in rows.beside_source.items():
            batch[name] = padded(values, fills.get(name, 0), **side)
        return batch | rows.stacked

    def _sources_alone(self, rows: Rows) -> dict[str, torch.Tensor]:
        rows = self._cut(rows)
        side = self._sides()
        if self.arch == "causal" and (rows.texts or self.for_generation):
            side["left"] = True
        return self._padded_sources(rows, **side)

    def _as_they_are(self, rows: Rows) -> dict[str, torch.Tensor]:
        assert rows.targets is not None
        if isinstance(self.packer, Flattener):
            return self._flattened(rows, rows.sources, rows.targets, rows.mask)
        side = self._sides()
        return self._padded_sources(rows, **side) | {"labels": rows.targets.padded(IGNORED, **side)}

    def _encoder_decoder(self, rows: Rows) -> dict[str, torch.Tensor]:
        assert rows.targets is not None
        assert self._start is not None
        pad, side = self.tokenizer.pad_token_id, self._sides()
        if isinstance(self.packer, PairPacker):
            refuse_packed(rows, holes=True)
            sources, targets, counted = rows.packable()
            start, multiple = self.decoder_start_token_id or 0, self.pad_to_multiple_of
            return self.packer(sources, targets, padding=pad, start=start, multiple=multiple, counted=counted)
        batch = self._padded_sources(rows, **side)
        labels = rows.targets.padded(IGNORED, **side)
        if not labels.shape[1]:
            # A decoder needs a token to begin with, even where none of the rows has a reference.
            labels = torch.full((len(labels), 1), IGNORED)
        batch["labels"] = labels
        for name, values in rows.beside_target.items():
            batch[name] = padded(values, pad if name == STARTED else 0, width=labels.shape[1], **side)
        if STARTED not in batch:
            batch[STARTED] = self._start(labels)
        return batch

    def _causal(self, rows: Rows) -> dict[str, torch.Tensor]:
        pad, multiple = self.tokenizer.pad_token_id, self.pad_to_multiple_of
        refuse_joined(rows)
        sources, targets, counted = rows.stripped()
        seen = None if counted is None else Ragged(counted.astype(np.int64), sources.lengths)
        if self.for_generation:
            side: dict[str, Any] = {"multiple": multiple, "left": True}
            return {
                "input_ids": sources.padded(pad, **side),
                MASK: sources.mask(**side) if seen is None else seen.padded(0, **side),
                "labels": targets.padded(IGNORED, multiple=multiple),
            }
        whole, labels = sources.beside(targets), sources.filled(IGNORED).beside(targets)
        mask = None if seen is None else seen.beside(targets.filled(1))
        if isinstance(self.packer, Flattener):
            return self._flattened(rows, whole, labels, mask)
        return {
            "input_ids": whole.padded(pad, multiple=multiple),
            MASK: whole.mask(multiple=multiple) if mask is None else mask.padded(0, multiple=multiple),
            "labels": labels.padded(IGNORED, multiple=multiple),
        }

    def _flattened(self, rows: Rows, tokens: Ragged, labels: Ragged, mask: Ragged | None) -> dict[str, Any]:
        refuse_packed(rows)
        if mask is not None:
            counted = mask.values != 0
            tokens, labels = where(tokens, counted), where(labels, counted)
        padding, multiple = self.tokenizer.pad_token_id, self.pad_to_multiple_of
        assert isinstance(self.packer, Flattener)
        return self.packer(tokens, labels, padding=padding, multiple=multiple)
