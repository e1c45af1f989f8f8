"""Behavioral fine-tuning: from what people did with a chatbot to a better chatbot."""

from ...lazy import lazily

_HOMES = {
    "Behavioral": "technique",
    "BehavioralPreferenceCollator": "collator",
    "Fitter": "fit",
    "MixedLabelSampler": "label_order",
    "behavioral_forward": "forward",
    "fitted_dataset": "fit",
    "flip_probabilities": "flips",
    "load_feedback": "preferences",
    "load_good_answers": "preferences",
    "preferences_from_log": "preferences",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
