"""The kind of task that peft is told, which decides how the adapted model is called.

peft's class for a kind of task takes token ids by name and hands the model `input_ids`, `inputs_embeds` and more,
whether it was given them or not. A model that hears, sees or measures takes none of these; told no task, peft hands on
what it is given.
"""

from __future__ import annotations

import inspect
from typing import Any

from ...models.inputs import main_input_name

TASKS = {
    "CausalLM": "CAUSAL_LM",
    "LMHead": "CAUSAL_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}
# What peft's classes hand to the model by name; these a `**kwargs` takes, too.
ALWAYS = ("input_ids", "attention_mask", "inputs_embeds")
SWITCHES = ("output_attentions", "output_hidden_states", "return_dict")
OWN = {
    "SEQ_2_SEQ_LM": ("labels", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds"),
    "QUESTION_ANS": ("start_positions", "end_positions"),
}
# peft's class does not hand it `inputs_embeds`.
WITHOUT_EMBEDDINGS = ("mpt",)


def task_of(model: Any) -> str | None:
    """peft's name of what a model does, where its forward pass takes what peft then hands it; else None."""
    task = _by_name(model)
    return task if task is not None and _takes(model, task) else None


def _by_name(model: Any) -> str | None:
    name = type(model).__name__
    if name.endswith("ConditionalGeneration") and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return next((task for part, task in TASKS.items() if part in name), None)


def _takes(model: Any, task: str) -> bool:
    # `input_ids` may lie in **kwargs of a model of another input, which then trips over it.
    if main_input_name(model) != "input_ids":
        return False
    taken = inspect.signature(type(model).forward).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    handed = {*ALWAYS, *OWN.get(task, ("labels",))}
    if getattr(model.config, "model_type", None) in WITHOUT_EMBEDDINGS:
        handed -= {"inputs_embeds"}
    return handed <= taken.keys() and (anything or taken.keys() >= set(SWITCHES))
