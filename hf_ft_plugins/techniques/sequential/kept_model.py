"""The model that a stage ends with, on the disk: whole, so that the next script loads it as any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer


def save_model(trainer: Trainer, folder: Path) -> Any:
    """Write `folder/model`: what `from_pretrained` reads, with the tokenizer. Called on every rank.

    Of a model with an adapter, `folder/adapter` holds the adapter, and `folder/model` the sum.

    Returns:
        On the rank that writes, a model with the weights that were written; on the others, the trainer's.

    Raises:
        PluginError: the adapter's method cannot be merged.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        from ..peft.merge import merge_exactly

        trainer.save_model(str(folder / "adapter"))
        if trainer.args.should_save:
            model = merge_exactly(model)
            model.save_pretrained(folder / "model")
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(folder / "model")
        return model
    if trainer.is_fsdp_enabled:
        # Trainer's own `save_model` writes nothing of it unless it gathers whole states for checkpoints, too.
        state = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.args.should_save:
            trainer._save(str(folder / "model"), state_dict=state)
    else:
        trainer.save_model(str(folder / "model"))
    return model
