"""peft: one option string to a right adapter, quantised or not, and an exact way out of it."""

from ...lazy import lazily

_HOMES = {
    "Peft": "technique",
    "find_targets": "targets",
    "Targets": "targets",
    "make_config": "configuration",
    "quantize": "quantization",
    "dequantized": "quantization",
    "never_repack": "quantization",
    "loraplus": "optim",
    "fit_rate": "optim",
    "AdaLoraCallback": "optim",
    "ExportCallback": "export",
    "merge_exactly": "merge",
    "verified_merge": "merge",
    "logits_error": "merge",
    "plain_lora": "export",
    "save_adapter": "export",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
