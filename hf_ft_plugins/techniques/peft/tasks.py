"""The task type in peft's configuration, which decides how the adapted model is called.

peft's class for a kind of task takes token ids by name and hands the model `input_ids`, `inputs_embeds` and more,
whether it was given them or not. A model of sound, images or time series takes none of these; without a task type,
peft passes on what it is given.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from ...models.inputs import main_input_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TASKS = {
    "CausalLM": "CAUSAL_LM",
    "LMHead": "CAUSAL_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}
# Arguments that peft's classes pass to the model by name; SWITCHES may also go into its `**kwargs`.
ALWAYS = ("input_ids", "attention_mask", "inputs_embeds")
SWITCHES = ("output_attentions", "output_hidden_states", "return_dict")
OWN = {
    "SEQ_2_SEQ_LM": ("labels", "decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds"),
    "QUESTION_ANS": ("start_positions", "end_positions"),
}


def task_of(model: PreTrainedModel) -> str | None:
    """peft's name of what a model does, if its forward pass takes the arguments that peft then passes; else None."""
    task = _by_name(model)
    return task if task is not None and _takes(model, task) else None


def _by_name(model: PreTrainedModel) -> str | None:
    name = type(model).__name__
    if name.endswith("ConditionalGeneration") and getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    return next((task for part, task in TASKS.items() if part in name), None)


def _takes(model: PreTrainedModel, task: str) -> bool:
    # A model of another main input may take `input_ids` into **kwargs, and then fail on it.
    if main_input_name(model) != "input_ids":
        return False
    taken = inspect.signature(type(model).forward).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
    passed = {*ALWAYS, *OWN.get(task, ("labels",))}
    return passed <= taken.keys() and (anything or taken.keys() >= set(SWITCHES))
