"""`behavioral` on a Llama of two layers and a few preferences over bytes."""

from __future__ import annotations

import copy
import itertools
import random
from functools import partial
from typing import Any

import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from ...models.inputs import bare
from ...techniques.behavioral import Behavioral
from ..example import Example

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
WORDS = ("red", "blue", "cat", "dog", "sun", "sea", "one", "two")


def tiny_tokenizer() -> Any:
    """Bytes, without ByT5's sentinels, with a chat template that renders a turn alike whatever follows it."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A Llama of two layers and about 13,000 parameters, freshly initialised, in float32."""
    settings = {
        "vocab_size": 384,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def tiny_preferences(size: int = 24, seed: int = 0, *, turns: int = 1) -> Any:
    """A `Dataset` of conversations whose chosen answer repeats the last question's word, with weights and eps."""
    from datasets import Dataset

    generator = random.Random(seed)
    rows = []
    for _ in range(size):
        words = [generator.choice(WORDS) for _ in range(turns)]
        prompt = [{"role": "user", "content": f"say {words[0]}"}]
        for before, after in itertools.pairwise(words):
            prompt += [{"role": "assistant", "content": before}, {"role": "user", "content": f"say {after}"}]
        wrong = generator.choice([word for word in WORDS if word != words[-1]])
        rows.append(
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": f"it is {words[-1]}"}],
                "rejected": [{"role": "assistant", "content": f"it is {wrong}, no?"}],
                "behavior_weight": generator.choice([0.5, 1.0, 1.5]),
                "behavior_eps": generator.choice([0.05, 0.25]),
            }
        )
    return Dataset.from_list(rows)


def tiny_setting(contract: str, **changes: Any) -> dict[str, Any]:
    """What `hf_ft_plugins.testing.tiny_trainer` makes a DPO, KTO or reward trainer with."""
    import trl

    name = {"dpo": "DPO", "kto": "KTO", "reward": "Reward"}[contract]
    model = tiny_llama()
    setting = {
        "trainer_class": getattr(trl, f"{name}Trainer"),
        "args_class": getattr(trl, f"{name}Config"),
        "model": model,
        "train_dataset": tiny_preferences(24),
        "eval_dataset": tiny_preferences(8, seed=1),
        "processing_class": tiny_tokenizer(),
        "max_length": 64,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    if contract == "reward":
        config = copy.deepcopy(model.config)
        config.num_labels, config.pad_token_id = 1, 0
        torch.manual_seed(0)
        setting["model"] = LlamaForSequenceClassification(config)
    else:
        setting["ref_model"] = copy.deepcopy(model)
    return setting | changes


def acted(technique: Behavioral, trainer: Any) -> bool:
    """Batches carry weights, the loss each pair's flip probability, and the model shares prefixes."""
    from ...techniques.behavioral.collator import BehavioralPreferenceCollator

    collated = isinstance(trainer.data_collator, BehavioralPreferenceCollator)
    shared = getattr(bare(trainer.model).forward, "shares_prefixes", False)
    return collated and shared and trainer.loss_types == ["robust"]


EXAMPLE = Example(Behavioral(share_prefixes="on"), acted, partial(tiny_setting, "dpo"))
