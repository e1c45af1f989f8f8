"""When `hf-ft suggest` names `peft`: full tuning does not fit into memory, or the script's adapter learns slowly."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from ...memory.estimate import GIB
from ...suggest.suggestion import Because, Figure, Suggestion

if TYPE_CHECKING:
    from ...suggest import RunFacts

NAME = "peft"
BASELINES = {
    data: Figure("peft_encoder", f"accuracy, {data}: ours against peft's defaults", "baseline", points)
    for data, points in (("8 a class", 51.8), ("all reviews", 50.8))
}
OURS = {
    data: Figure("peft_encoder", f"accuracy, {data}: ours against peft's defaults", "ours", points)
    for data, points in (("8 a class", 57.8), ("all reviews", 74.1))
}


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    return _slow_adapter(facts) if facts.model.adapter else _too_little_memory(facts)


def _slow_adapter(facts: RunFacts) -> Suggestion | None:
    from .optim import LOWEST

    rate = facts.schedule.rate
    if facts.model.adapter != "LORA" or not 0 < rate < LOWEST:
        return None
    return Suggestion(
        spec=NAME,
        does="LoRA with r=16 on all linear layers of the blocks, at ten times the script's learning rate, as a warning "
        "says.",
        because=(
            Because(
                "schedule.rate",
                rate,
                f"The script's own LoRA learns at {rate:g}, a rate for full tuning; an adapter wants some ten times as "
                f"much. On a pretrained encoder at 5e-5, `--with {NAME}` came to {OURS['8 a class']} % accuracy with 8 "
                f"film reviews a class and to {OURS['all reviews']} % with all, peft's defaults to "
                f"{BASELINES['8 a class']} and {BASELINES['all reviews']} %.",
            ),
        ),
        not_when="With enough memory and data full tuning learns as much or more.",
        weight=2,
        first="Take the adapter out of the script (get_peft_model, peft_config=, --use_peft); or leave it and raise "
        "its learning rate.",
    )


def _too_little_memory(facts: RunFacts) -> Suggestion | None:
    memory, model = facts.memory, facts.model
    if memory.needed is None or not memory.is_short or not model.pretrained:
        return None
    spec, with_it = NAME, "; how much with an adapter is not known before peft is installed"
    if importlib.util.find_spec("peft") is not None:
        from .technique import Peft

        fitting = memory.with_(Peft.memory_savings())
        if fitting is None:
            return None
        spec, needed = fitting
        with_it = f"; with {spec} about {needed / GIB:.2f}"
    return Suggestion(
        spec=spec,
        does="The weights stay as they are, and an adapter of rank 16 on all linear layers of the blocks learns, at a "
        "rate that suits it.",
        because=(
            Because(
                "memory.needed",
                memory.needed,
                f"A training step takes about {memory.needed / GIB:.2f} GiB at its peak, by an estimate, and there are "
                f"{memory.available / GIB:.2f} ({memory.device}){with_it}.",
            ),
        ),
        not_when="An adapter saves memory, not quality: where all parameters can learn, they learn as much or more. "
        "quant= loads the whole model first.",
        weight=2,
        need="memory",
    )
