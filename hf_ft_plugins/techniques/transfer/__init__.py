"""Transfer: a pretrained model on a new, smaller data set; which layers learn, when, and how fast."""

from ...lazy import lazily

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
__getattr__ = lazily(__name__, _HOMES)
