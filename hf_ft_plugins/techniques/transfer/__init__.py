"""Transfer: a pretrained model on a new, smaller data set; which layers learn, when, and how fast."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Transfer": "technique",
    "GradualUnfreezing": "unfreezing",
    "LayerGroup": "layers",
    "layer_groups": "layers",
    "layerwise_lr": "layers",
    "freeze": "layers",
    "fit_probe": "probe",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Lazily: `hf-ft list` reads the technique and needs no torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
