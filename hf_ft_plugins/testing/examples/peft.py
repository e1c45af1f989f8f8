"""`peft` on the kit's classifier."""

from __future__ import annotations

from typing import Any

from ... import lr_scale
from ...techniques.peft import Peft
from ..example import Example


def acted(technique: Peft, trainer: Any) -> bool:
    """The blocks are frozen, the adapter has learned, and its B matrices step at their own rate."""
    from ...techniques.peft.optim import FACTOR

    learned = [
        bool(weight.detach().abs().sum() > 0)
        for name, weight in trainer.model.named_parameters()
        if "lora_B" in name and weight.requires_grad
    ]
    frozen = not any(
        weight.requires_grad for name, weight in trainer.model.named_parameters() if ".base_layer." in name
    )
    factors = {group.get(lr_scale.KEY, {}).get(FACTOR) for group in trainer.optimizer.param_groups}
    return bool(learned) and all(learned) and frozen and (technique.loraplus_ratio is None or len(factors) > 1)


EXAMPLE = Example(Peft(r=4, loraplus_ratio=2.0), acted)
