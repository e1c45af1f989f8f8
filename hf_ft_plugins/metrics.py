"""What a metric's name tells about it."""

from __future__ import annotations

LOWER_IS_BETTER = ("loss", "perplexity", "ppl", "nll", "error", "wer", "cer", "mse", "rmse", "mae", "brier", "ece")


def greater_is_better(metric: str) -> bool:
    """Guess a metric's direction from its name: `eval_loss`, `wer`, `perplexity`, ... are better when lower."""
    words = metric.lower().replace("-", "_").split("_")
    return not any(word in LOWER_IS_BETTER for word in words)
