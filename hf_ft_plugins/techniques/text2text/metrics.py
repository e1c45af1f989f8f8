"""`Seq2SeqGenerationMetrics`: BLEU, chrF and exact match of generated text, over the whole set at once.

    Seq2SeqTrainer(..., compute_metrics=Seq2SeqGenerationMetrics(tokenizer))

Scores are sacrebleu's (Post 2018, arXiv:1804.08771), whose signatures say how they were computed; a mean of the scores
of batches is no corpus score.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)


@dataclass
class Seq2SeqGenerationMetrics:
    """A `compute_metrics` for generated ids (`predict_with_generate=True`).

    Attributes:
        tokenizer: decodes predictions and labels; -100 in either counts as padding.
        shown: how many examples (source, where the arguments' `include_for_metrics` has "inputs"; reference;
            prediction) go to the log after each evaluation.
        signatures: sacrebleu's, of the latest scores, by metric.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    tokenizer: Any
    shown: int = 2
    signatures: dict[str, str] = field(default_factory=dict)

    def __call__(self, prediction: Any) -> dict[str, float]:
        """`bleu` and `chrf` in 0 to 100, `exact_match` in 0 to 1, `gen_len` in tokens (mean, without padding)."""
        from sacrebleu.metrics import BLEU, CHRF

        generated = prediction.predictions
        generated = generated[0] if isinstance(generated, tuple) else generated
        texts, references = self._texts(generated), self._texts(prediction.label_ids)
        scores = {}
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            scores[name] = metric.corpus_score(texts, [references]).score
            self.signatures[name] = str(metric.get_signature())
        scores["exact_match"] = float(
            np.mean([text == reference for text, reference in zip(texts, references, strict=True)])
        )
        scores["gen_len"] = float(np.mean((self._ids(generated) != self.tokenizer.pad_token_id).sum(axis=1)))
        self._show(texts, references, getattr(prediction, "inputs", None))
        return scores

    def _ids(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids < 0, self.tokenizer.pad_token_id, ids)

    def _texts(self, ids: np.ndarray) -> list[str]:
        return [text.strip() for text in self.tokenizer.batch_decode(self._ids(ids), skip_special_tokens=True)]

    def _show(self, texts: list[str], references: list[str], inputs: np.ndarray | None) -> None:
        sources = self._texts(inputs[: self.shown]) if inputs is not None else [""] * self.shown
        for source, reference, text in zip(sources, references, texts, strict=False):
            logger.info("text2text: source %r, reference %r, prediction %r", source, reference, text)
