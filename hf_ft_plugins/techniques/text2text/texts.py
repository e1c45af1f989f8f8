"""`TextObjective`: what `TextPairCollator` needs to make pairs of single texts, and what that means for a data set."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ... import mends
from ...errors import PluginError
from . import objectives
from .arrays import Ragged, positions
from .randomness import digests, states
from .tokens import ends_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextObjective:
    """Makes pairs of texts of token ids, special tokens included.

    A text's end of sequence, and a begin of sequence, are never corrupted, split off or cut. A target ends with the end
    of sequence; so does a source of an encoder-decoder. A begin of sequence that a text has stands before its source
    and, for an encoder-decoder, before its target.

    Attributes:
        name: the objective.
        tokenizer: names the special tokens, and the sentinels `<extra_id_0>`, `<extra_id_1>`, ...
        causal: whether source and target are to be one sequence.
        max_source, max_target: longest source and target with special tokens; None: no limit. A text is cut to what
            gives no longer ones.
        noise_density, mean_span_length: of span corruption: the share of tokens taken out, and their mean number in a
            span (T5: 3 pieces; ByT5, arXiv:2105.13626: 20 bytes).
        seed: of the randomness, with the epoch and the example.

    Raises:
        PluginError: the tokenizer lacks a token that the objective needs, span corruption of a causal model, or limits
            that no text can keep.
    """

    name: Literal["prefix_lm", "span_corruption"]
    tokenizer: Any
    causal: bool
    max_source: int | None = None
    max_target: int | None = None
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    seed: int = 0
    sentinels: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
            raise PluginError(
                f"text2text: noise_density={self.noise_density} must lie between 0 and 1, and "
                f"mean_span_length={self.mean_span_length} must be 1 or more.",
                code="option-value",
            )
        if self.tokenizer.eos_token_id is None:
            raise PluginError(
                f"text2text: the tokenizer has no eos_token, which objective={self.name} needs. Set it.",
                code="tokenizer-unsuited",
            )
        if self.name == "span_corruption" and self.causal:
            raise PluginError(
                "text2text: objective=span_corruption is for encoder-decoders: a causal model does not see what stands "
                "after a sentinel. Use objective=prefix_lm, or a T5-like model.",
                code="model-unsuited",
                mend=[mends.set_option("text2text", "objective", "prefix_lm")],
            )
        object.__setattr__(self, "sentinels", _sentinels(self.tokenizer) if self.name == "span_corruption" else None)
        begun = np.ones(1, dtype=np.int64)
        longest, most = self.longest_text(begun), self._most(begun)
        if (longest is not None and longest[0] < objectives.SHORTEST) or any(
            each is not None and each[0] < 1 for each in most.values()
        ):
            raise PluginError(
                f"text2text: no text fits max_source={self.max_source} and max_target={self.max_target} with "
                f"objective={self.name}. Raise them.",
                code="option-value",
            )

    def pairs(self, texts: Ragged, examples: np.ndarray | None, epoch: int) -> tuple[Ragged, Ragged, dict[str, int]]:
        """Sources and targets of the texts of two tokens or more, and what was dropped and cut, as numbers by name.

        Args:
            texts: with special tokens.
            examples: a number for each, the same whenever the example comes; None: a digest of its ids.
        """
        examples = digests(texts) if examples is None else examples
        begun, inner = self._inner(texts)
        kept = inner.lengths >= objectives.SHORTEST
        counts = {"short texts dropped": int((~kept).sum())}
        begun, inner, examples = begun[kept], inner.kept(kept), examples[kept]
        longest = self.longest_text(begun)
        if longest is not None:
            cut = np.minimum(inner.lengths, longest)
            counts["texts cut"] = int((cut < inner.lengths).sum())
            counts["tokens cut"] = int((inner.lengths - cut).sum())
            inner = Ragged(inner.values[positions(inner.starts(), cut)], cut)
        drawn = states(self.seed, epoch, examples)
        if self.name == "span_corruption":
            sources, targets = objectives.span_corruption(
                inner,
                drawn,
                self.sentinels,
                noise_density=self.noise_density,
                mean_span_length=self.mean_span_length,
            )
        else:
            sources, targets = objectives.prefix_lm(inner, drawn, **self._most(begun))
        return (
            self._framed(sources, begun, not self.causal),
            self._framed(targets, np.zeros_like(begun) if self.causal else begun, True),
            counts,
        )

    def lengths(self, inner: np.ndarray, begun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and target tokens, as `pairs` leaves them, of texts of 2 tokens or more without special ones.

        Exact for span corruption. For prefix_lm of an encoder-decoder the most that each can be; for a causal model
        half of the text each, whose sum is exact.

        Args:
            inner: int64 [rows], tokens without special ones.
            begun: int64 [rows], 1 where a begin of sequence stands before them.
        """
        longest = self.longest_text(begun)
        inner = inner if longest is None else np.minimum(inner, longest)
        return self._lengths(inner, begun)

    def _lengths(self, inner: np.ndarray, begun: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.name == "span_corruption":
            noise, spans = objectives.noise_counts(
                inner,
                noise_density=self.noise_density,
                mean_span_length=self.mean_span_length,
                most_spans=len(self.sentinels),
            )
            return inner - noise + spans + 1 + begun, noise + spans + 1 + begun
        if self.causal:
            return inner // 2 + begun, inner - inner // 2 + 1
        each = inner - 1 + 1 + begun
        limits = (self.max_source or each, self.max_target or each)
        return np.minimum(each, limits[0]), np.minimum(each, limits[1])

    def longest_text(self, begun: np.ndarray) -> np.ndarray | None:
        """The longest texts that keep both limits, in tokens without special ones; None where there is no limit."""
        if self.max_source is None and self.max_target is None:
            return None
        if self.name == "prefix_lm":
            source, target = self._most(begun).values()
            return None if source is None or target is None else source + target
        most_source, most_target = self.max_source or math.inf, self.max_target or math.inf
        # Both lengths grow with the text's. Beyond this bound at least one of them is over its limit.
        share = min(self.noise_density, 1 - self.noise_density)
        bound = math.ceil((max(self.max_source or 0, self.max_target or 0) + 1) / share)
        inner = np.arange(objectives.SHORTEST, bound + 1)
        sources, targets = self._lengths(inner, np.zeros_like(inner))
        fits = [((sources + begin <= most_source) & (targets + begin <= most_target)).sum() for begin in (0, 1)]
        return np.array(fits)[begun] + objectives.SHORTEST - 1

    def _most(self, begun: np.ndarray) -> dict[str, np.ndarray | None]:
        """How many of a text's tokens the limits leave room for."""
        return {
            "most_source": None if self.max_source is None else self.max_source - begun - int(not self.causal),
            "most_target": None if self.max_target is None else self.max_target - begun * int(not self.causal) - 1,
        }

    # ---- special tokens ----

    def inner_lengths(
        self, lengths: np.ndarray, firsts: np.ndarray, lasts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens without the begin and the end of sequence, and 1 where there is a begin; int64 [rows] each.

        Args:
            lengths, firsts, lasts: int64 [rows], each text's number of ids, first id and last id.
        """
        begin = self._begin()
        begun = ((firsts == begin) & (lengths > 0)).astype(np.int64) if begin is not None else np.zeros_like(lengths)
        ended = (lasts == self.tokenizer.eos_token_id) & (lengths > begun)
        return lengths - begun - ended, begun

    def _begin(self) -> int | None:
        token = self.tokenizer.bos_token_id
        begin: int | None = self.tokenizer.cls_token_id if token is None else token
        return begin

    def _inner(self, texts: Ragged) -> tuple[np.ndarray, Ragged]:
        firsts, lasts = texts.ends()
        inner, begun = self.inner_lengths(texts.lengths, firsts, lasts)
        return begun, Ragged(texts.values[positions(texts.starts() + begun, inner)], inner)

    def _framed(self, rows: Ragged, begun: np.ndarray, ended: bool) -> Ragged:
        begins = Ragged(np.full(int(begun.sum()), self._begin() or 0, dtype=np.int64), begun)
        ends = np.full(len(rows.lengths), int(ended), dtype=np.int64)
        eos = np.full(int(ends.sum()), self.tokenizer.eos_token_id, dtype=np.int64)
        return begins.beside(rows).beside(Ragged(eos, ends))


def _sentinels(tokenizer: Any) -> np.ndarray:
    known = tokenizer.get_vocab()
    found: list[int] = []
    while f"<extra_id_{len(found)}>" in known:
        found.append(known[f"<extra_id_{len(found)}>"])
    if not found:
        raise PluginError(
            f"text2text: objective=span_corruption needs the sentinels <extra_id_0>, <extra_id_1>, ..., and "
            f"{type(tokenizer).__name__} has no token <extra_id_0>. Use a T5 or ByT5 tokenizer, or add the tokens: "
            "tokenizer.add_tokens([f'<extra_id_{i}>' for i in range(100)], special_tokens=True), and "
            "model.resize_token_embeddings(len(tokenizer)).",
            code="tokenizer-unsuited",
        )
    return np.array(found, dtype=np.int64)


# ---- a data set of texts ----


def text_lengths(objective: TextObjective, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Source and target tokens that `objective` makes of every text of a data set; int64 [rows] each."""
    inner, begun = objective.inner_lengths(*ends_of(dataset))
    return objective.lengths(np.maximum(inner, objectives.SHORTEST), begun)
