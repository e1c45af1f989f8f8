"""Taking out the layers that a model needs least, so that what is left is right, saved and loaded: parts.

layers = choose_layers(model, batches, 2)
removal = remove_layers(model, layers)      # removal.restore() puts them back
verify_model(model)
"""

from ...lazy import lazily

_HOMES = {
    "GateCallback": "gate",
    "LayerRemoval": "technique",
    "block_stacks": "stacks",
    "choose_layers": "score",
    "distilling": "distill",
    "measure_curve": "curve",
    "measure_quality": "quality",
    "remove_layers": "remove",
    "save_curve": "curve",
    "score_layers": "score",
    "verify_model": "verify",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
