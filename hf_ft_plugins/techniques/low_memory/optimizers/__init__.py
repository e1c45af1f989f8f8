"""Optimizers that keep little or no state, each usable alone in any training loop."""
