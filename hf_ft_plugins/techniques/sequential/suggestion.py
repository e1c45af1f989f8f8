"""When `hf-ft suggest` names `sequential`: the model is what a stage has left, and rows of its data are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import PluginError
from ...suggest.suggestion import Because, Figure, Suggestion
from .settings import NAME

if TYPE_CHECKING:
    from ...suggest import RunFacts

LEFT = Figure("sequential", "text: forgotten of earlier stages, replay against stock", "ratio", 0.18)


def suggestion(facts: RunFacts) -> Suggestion | None:
    """Its suggestion for a run."""
    from .stage_records import StageRecords

    model = Path(facts.model.loaded_from)
    folder = model.parent.parent
    if not facts.model.loaded_from or model.name != "model" or facts.data.streamed:
        return None
    try:
        finished = [stage.name for stage in StageRecords(folder).finished()]
    except PluginError:
        return None  # Damaged: a run that names it says so.
    kept = [name for name in finished if (folder / name / "replay").is_dir()]
    if model.parent.name not in kept:
        return None
    stage = f"stage{len(finished) + 1}"
    return Suggestion(
        spec=f"{NAME}:folder={folder},stage={stage}",
        does=f"One example in ten is one of each earlier stage; this run becomes the stage {stage} (name it as you "
        "like), and what it has undone is measured.",
        because=(
            Because(
                "model.loaded_from",
                str(model),
                f"The model is what the stage {model.parent.name!r} has left in {folder}, and rows of "
                f"{', '.join(kept)} are kept there. Of what a small language model forgot without them in three stages "
                f"of text, {LEFT:.0%} was forgotten with them.",
            ),
        ),
        not_when="Where nothing of what the earlier stages taught is needed any more.",
        weight=2,
    )
