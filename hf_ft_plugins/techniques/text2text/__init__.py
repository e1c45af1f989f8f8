"""Text to text: collator and its objectives, batches by a budget of tokens, loss per real token, metrics."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Text2Text": "technique",
    "TextPairCollator": "collator",
    "TokenBudgetBatchSampler": "batches",
    "PooledBudgetBatches": "streaming",
    "TokenMeanLoss": "loss",
    "TokenTable": "tokens",
    "TextObjective": "texts",
    "Seq2SeqGenerationMetrics": "metrics",
    "generate_from_prompts": "generation",
    "pack_aware": "segments",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Lazily: `hf-ft list` reads the technique and needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
