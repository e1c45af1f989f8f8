"""Behavioral fine-tuning: from what people did with a chatbot to a better chatbot."""

from ...lazy import lazily

_HOMES = {
    "Behavioral": "technique",
    "BehavioralPreferenceCollator": "collator",
    "Fitter": "fit_to_length",
    "MixedLabelSampler": "mixed_labels",
    "behavioral_forward": "model_forward",
    "fitted_dataset": "fit_to_length",
    "flip_probabilities": "flip_probabilities",
    "load_feedback": "..feedback",
    "load_good_answers": "..feedback",
    "preferences_from_log": "..feedback",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
