"""`Seq2SeqGenerationMetrics`: BLEU, chrF, ROUGE and exact match of generated text, over the whole set at once.

    Seq2SeqTrainer(..., compute_metrics=Seq2SeqGenerationMetrics(tokenizer))

BLEU and chrF are sacrebleu's (Post 2018, arXiv:1804.08771), whose signatures say how they were computed; a mean of the
scores of batches is no corpus score. ROUGE (Lin 2004) is rouge_score's, where that is installed: F1 without stemming,
the mean over pairs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)
ROUGE = ("rouge1", "rouge2", "rougeL")


def decoded(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text of each row of ids [B, T], without special tokens; negative ids, such as the masks of labels, are none.

    A causal model's labels are masked on the prompt, so what remains is the target.
    """
    rows = [row[row >= 0].tolist() for row in ids]
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


@dataclass
class Seq2SeqGenerationMetrics:
    """A `compute_metrics` for generated ids (`predict_with_generate=True`).

    Attributes:
        tokenizer: decodes predictions and labels; -100 in either counts as padding.
        signatures: sacrebleu's, of the latest scores, by metric.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    tokenizer: Any
    signatures: dict[str, str] = field(default_factory=dict)

    def __call__(self, prediction: Any) -> dict[str, float]:
        """`bleu`, `chrf` and `rouge...` in 0 to 100, `exact_match` in 0 to 1, `gen_len` in tokens (mean).

        A row whose labels hold no token has no reference: it counts for `gen_len` alone. A blank reference is one.
        """
        generated = prediction.predictions
        generated = generated[0] if isinstance(generated, tuple) else generated
        padding = (generated < 0) | (generated == self.tokenizer.pad_token_id)
        scores = {"gen_len": float(np.mean((~padding).sum(axis=1)))}
        labels = np.asarray(prediction.label_ids)
        # Trainer fills labels up with the padding token.
        referred = ((labels >= 0) & (labels != self.tokenizer.pad_token_id)).any(axis=1)
        if not referred.all():
            logger.warning(
                "text2text: %d of %d rows have no reference, and no score.", int((~referred).sum()), len(labels)
            )
        return self._scores(generated[referred], labels[referred]) | scores if referred.any() else scores

    def _scores(self, generated: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from sacrebleu.metrics import BLEU, CHRF

        texts, references = (decoded(self.tokenizer, ids) for ids in (generated, labels))
        scores = {}
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            scores[name] = metric.corpus_score(texts, [references]).score
            self.signatures[name] = str(metric.get_signature())
        if find_spec("rouge_score"):
            scores |= _rouge(texts, references)
        scores["exact_match"] = float(
            np.mean([text == reference for text, reference in zip(texts, references, strict=True)])
        )
        return scores


def _rouge(texts: list[str], references: list[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE))
    pairs = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: 100 * float(np.mean([pair[name].fmeasure for pair in pairs])) for name in ROUGE}
