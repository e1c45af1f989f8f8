"""Small models over bytes, and trainers of them, for several tests."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ByT5Tokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_ft_plugins import with_plugins

TOKENIZER = ByT5Tokenizer()
# BART's family.
SIZE = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SIZE |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 384}
SIZE |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "dropout": 0.0}


def seeded(make):
    torch.manual_seed(0)
    return make()


def bart(**changes):
    config = {**SIZE, "max_position_embeddings": 64, "decoder_start_token_id": 2, **changes}
    return seeded(lambda: BartForConditionalGeneration(BartConfig(**config)))


def trainer_of(
    folder, model, rows, *techniques, collator=None, trainer_class=Seq2SeqTrainer, eval_dataset=None, **args
):
    """A trainer with these techniques, or a stock one without any."""
    quietly = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return (with_plugins(trainer_class, *techniques) if techniques else trainer_class)(
        model=model,
        args=Seq2SeqTrainingArguments(output_dir=str(folder), **(quietly | args)),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=TOKENIZER,
    )
