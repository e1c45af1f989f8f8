"""Text to text: collator and its objectives, batches by a budget of tokens, loss per real token, metrics."""

from ...lazy import lazily

_HOMES = {
    "Text2Text": "technique",
    "TextPairCollator": "collator",
    "TokenBudgetBatchSampler": "batches",
    "PooledBudgetBatches": "streaming",
    "TokenMeanLoss": "loss",
    "in_parts": "parts",
    "TokenTable": "tokens",
    "TextObjective": "texts",
    "Seq2SeqGenerationMetrics": "metrics",
    "generate_from_prompts": "generation",
    "pack_aware": "segments",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
