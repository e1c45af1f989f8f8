"""Context and sequence parallelism cut each sequence up over ranks: refused for what needs whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import mends
from ..errors import PluginError
from ..technique import Technique

# A technique that answers one of these counts tokens, or computes a loss or a pass of its own, on whole sequences.
NEED_WHOLE = (
    *("ft_loss_function", "ft_loss", "ft_parts", "ft_training_step", "ft_batches", "ft_batch_sampler"),
    *("ft_metrics", "ft_model"),
)


def refuse_cut_sequences(techniques: Iterable[Technique], parallelism: Any) -> None:
    """Refuse a technique whose work on sequences has not been shown to be right on parts of them.

    Args:
        parallelism: accelerate's `ParallelismConfig`, or None.

    Raises:
        PluginError: it names the technique.
    """
    sizes = {name: getattr(parallelism, name, 1) for name in ("cp_size", "sp_size")}
    cut = [f"{name}={size}" for name, size in sizes.items() if size and size > 1]
    if not cut:
        return
    for technique in techniques:
        if any(technique.answers(hook) for hook in NEED_WHOLE):
            raise PluginError(
                f"{technique.name}: {', '.join(cut)} of parallelism_config cuts each sequence up over ranks, and it "
                "has not been shown to be right on parts of one. Leave it out, or shard the model instead: fsdp=True.",
                code="distributed-unsupported",
                mend=[
                    mends.remove_technique(technique.name),
                    mends.all_of(mends.set_argument("parallelism_config", None), mends.set_argument("fsdp", True)),
                ],
            )
