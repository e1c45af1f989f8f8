"""Text to text: collator, batches by a budget of tokens, the loss per real token, generation metrics."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Text2Text": "technique",
    "TextPairCollator": "collator",
    "TokenBudgetBatchSampler": "batches",
    "TokenMeanLoss": "loss",
    "TokenTable": "tokens",
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
