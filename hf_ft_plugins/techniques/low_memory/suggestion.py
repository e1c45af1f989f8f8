"""When `hf-ft suggest` names `low-memory`: a step needs more memory than there is, and a form of it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import PluginError
from ...memory.estimate import GIB
from ...suggest.suggestion import Because, Figure, Suggestion

if TYPE_CHECKING:
    from ...suggest import RunFacts

# Of the peak: where activations take more, what this technique saves is not what is short.
ACTIVATIONS = 0.5
LESS_MEMORY = {
    "script": Figure("low_memory", "MiB at the peak: fused AdamW against AdamW in a stock Trainer", "ratio", 0.76),
    "compact-adamw": Figure(
        "low_memory", "MiB at the peak: compact AdamW against AdamW in a stock Trainer", "ratio", 0.35
    ),
    "adalomo": Figure("low_memory", "MiB at the peak: AdaLomo against AdamW in a stock Trainer", "ratio", 0.32),
}
SLOWER = {
    "script": Figure("low_memory", "seconds a step: fused AdamW against AdamW", "ratio", 0.89),
    "compact-adamw": Figure("low_memory", "seconds a step: compact AdamW against AdamW", "ratio", 1.17),
    "adalomo": Figure("low_memory", "seconds a step: AdaLomo against AdamW", "ratio", 1.03),
}
DOES = {
    "script": "Each parameter is stepped by the script's own optimizer as soon as its gradient is complete, and the "
    "gradient is freed.",
    "compact-adamw": "AdamW with moments in 8 bits, on bf16 weights with eight more bits of each; gradients are freed "
    "as they come. The model is saved in bf16.",
    "adalomo": "Steps relative to each tensor's size, with next to no state; gradients are freed as they come.",
}


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from .technique import LowMemory

    memory = facts.memory
    # Where steps accumulate batches, gradients stay.
    if memory.needed is None or not memory.is_short or facts.schedule.accumulation > 1:
        return None
    if memory.activations > ACTIVATIONS * memory.needed:
        return None
    fitting = memory.with_(LowMemory.memory_savings())
    if fitting is None:
        return None
    spec, needed = fitting
    algorithm = spec.partition("algorithm=")[2] or "script"
    if _is_refused(facts, algorithm):
        return None
    return Suggestion(
        spec=spec,
        does=DOES[algorithm],
        because=(
            Because(
                "memory.needed",
                memory.needed,
                f"A training step takes about {memory.needed / GIB:.2f} GiB at its peak, by an estimate, and there are "
                f"{memory.available / GIB:.2f} ({memory.device}); with {spec} about {needed / GIB:.2f}. Measured on 98 "
                f"million parameters: {LESS_MEMORY[algorithm]:.0%} of AdamW's memory in {SLOWER[algorithm]} times its "
                "time.",
            ),
        ),
        not_when="Where activations take most of the memory, checkpointing and smaller batches save more; here they "
        f"are {memory.activations / memory.needed:.0%}.",
        weight=1 if algorithm == "adalomo" else 3,
        need="memory",
        first="Raise the learning rate to ten to thirty times AdamW's: AdaLomo's steps are relative."
        if algorithm == "adalomo"
        else "",
    )


def _is_refused(facts: RunFacts, algorithm: str) -> bool:
    from .unsupported import refuse_the_scripts_scheduler, refuse_unsupported

    try:
        refuse_unsupported(facts.trainer, algorithm=algorithm, fused=True, in_backward=True)
        refuse_the_scripts_scheduler(facts.trainer, algorithm)
    except PluginError:
        return True
    return False
