"""Which techniques train and resume together, in each world."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.endurance.runs import NAMES, acted, build, digest, weights
from benchmarks.endurance.worlds import FSDP2, World, on_ranks
from hf_ft_plugins.errors import ConflictError, PluginError
from hf_ft_plugins.testing import InterruptAt, Interruption

STEPS, CUT_AT = 8, 5
# Of a weight, after as many steps at a rate of 0.01, in pieces against whole; Adam enlarges the last bit of a gradient.
APART = 1e-6
# An optimizer that is not plain SGD, batches of other parts in pieces, and an example that refuses pieces.
NOT_COMPARED = ("low-memory", "text2text", "behavioral")
PROVEN, REFUSED, FAILED = "proven", "refused", "failed"


def groups(of: int) -> list[tuple[str, ...]]:
    return list(itertools.combinations(NAMES, of))


def tried(world: World, chosen: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], str, str]]:
    """Each group of techniques, whether it is proven, refused by name or failed, and why."""
    for names in chosen:
        with tempfile.TemporaryDirectory() as folder:
            ends = on_ranks(world, lambda rank, names=names, folder=folder: _tried(Path(folder), rank, world, names))
        errors = [end.get("error") or f"signal {end.get('signal')}" for end in ends if "value" not in end]
        verdict, why = (FAILED, errors[0]) if errors else ends[0]["value"]
        yield names, verdict, why


def _tried(folder: Path, rank: int, world: World, names: Sequence[str]) -> tuple[str, str]:
    try:
        trainer = build(folder / "straight", names, world, max_steps=STEPS)
    except ConflictError as conflict:
        known = all(name in str(conflict) for name in names[:2]) or len(names) > 2
        return (REFUSED, str(conflict)) if known else (FAILED, f"a refusal without names: {conflict}")
    except PluginError as refusal:
        return (REFUSED if any(name in str(refusal) for name in names) else FAILED), str(refusal)
    trainer.train()
    # What one rank writes shows the effect to all.
    trainer.accelerator.wait_for_everyone()
    if not acted(trainer, names):
        return FAILED, "the effect of one does not show"
    expected = digest(trainer)
    with contextlib.suppress(Interruption):
        build(folder / "cut", names, world, max_steps=STEPS, callbacks=[InterruptAt(CUT_AT)]).train()
    again = build(folder / "cut", names, world, max_steps=STEPS)
    again.train(resume_from_checkpoint=True)
    if digest(again) != expected:
        return FAILED, "the resumed run ends otherwise"
    return PROVEN, ""


def apart(folder: Path, names: Sequence[str], whole: World) -> float:
    """How far the weights of a run in pieces are from those of one that holds the model whole, at most.

    Plain SGD, whose steps are the gradients: Adam's of a gradient near 0 are as large as of any other.
    """

    def trained(world: World) -> dict[str, torch.Tensor]:
        file = folder / f"{world.name}.pt"

        def work(rank: int) -> None:
            trainer = build(folder / world.name, names, world, max_steps=STEPS, optim="sgd", save_strategy="no")
            trainer.train()
            found = weights(trainer)
            if rank == 0:
                torch.save(found, file)

        ends = on_ranks(world, work)
        if any("value" not in end for end in ends):
            raise RuntimeError(str(ends))
        loaded: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
        return loaded

    ours, theirs = trained(FSDP2), trained(whole)
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs)


def counted(found: Iterable[tuple[Any, str, str]]) -> dict[str, Any]:
    """How many of each verdict, and the failures by name."""
    listed = list(found)
    counts = {word: sum(verdict == word for _, verdict, _ in listed) for word in (PROVEN, REFUSED, FAILED)}
    failures = {"+".join(names): why[:300] for names, verdict, why in listed if verdict == FAILED}
    return {**counts, "failures": failures}
