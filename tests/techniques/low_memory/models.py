"""A tiny language model and its data."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from hf_ft_plugins import with_plugins
from hf_ft_plugins.testing import tiny_trainer

VOCABULARY = 64


def language_model(*, tied=True, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def texts(rows=48, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": tokens, "labels": tokens}
        for tokens in torch.randint(0, VOCABULARY, (rows, 12), generator=generator)
    ]


def trained(folder, *techniques, model=None, trainer_class=Trainer, callbacks=None, **arguments):
    """A trainer of the language model after some steps without accumulation, clipping, evaluation or checkpoints."""
    settings = {
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "max_steps": 6,
        "eval_strategy": "no",
        "save_strategy": "no",
        **arguments,
    }
    trainer = tiny_trainer(
        folder,
        *techniques,
        trainer_class=trainer_class if techniques else with_plugins(trainer_class),
        model=language_model() if model is None else model,
        train_dataset=texts(),
        eval_dataset=texts(8, seed=2),
        callbacks=callbacks or [],
        **settings,
    )
    trainer.train()
    return trainer


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
