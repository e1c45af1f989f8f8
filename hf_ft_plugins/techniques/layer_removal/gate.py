"""Whether the healed model is still good enough: measured when training ends, against the original on the same rows.

What the removal cost before any healing is written when training begins, and not before: a trainer that could not be
built leaves no files.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback

from ... import mends
from ...errors import PluginError
from ...host.ranks import from_first_rank
from ...host.stash import StashKey, WithTrainer, stash_of
from ...report_sections import Curve, Facts, Rows, Section
from .curve import save_curve
from .quality import Quality
from .stacks import NAME
from .surgery import SURGERY, Surgery, quality_of

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

REPORT = "layer_removal_report.json"
JUDGED = StashKey[dict[str, Any]]("layer-removal: how good the healed model is")
QUALITIES = ("original", "before_healing", "healed")


@dataclass(frozen=True)
class Limits:
    """How much worse than the original a healed model may be.

    Attributes:
        max_degradation: largest share by which perplexity may be above the original's; None: no gate.
        max_repetition: largest rise of the share of repeated 4-grams; None: no gate.
    """

    max_degradation: float | None = 0.2
    max_repetition: float | None = 0.25

    @property
    def any(self) -> bool:
        return self.max_degradation is not None or self.max_repetition is not None


class GateCallback(WithTrainer, TrainerCallback):
    """Measures the healed model when training ends, writes the report, and ends the run if it is worse than allowed.

    Args:
        max_degradation, max_repetition: see `Limits`.
        on_fail: `restore`: the trainer's model is the original again, and a `PluginError` ends the run; `warn`.
    """

    end_phase = "gate"

    def __init__(self, max_degradation: float | None, max_repetition: float | None, on_fail: str) -> None:
        self.limits = Limits(max_degradation, max_repetition)
        self.on_fail = on_fail
        self.report: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        surgery = self._surgery()
        return {"removed": list(surgery.removed), "side": surgery.side} if surgery is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        surgery = self._surgery()
        if surgery is not None and state and tuple(state["removed"]) != surgery.removed:
            raise PluginError(
                f"{NAME}: the checkpoint's model is without layers {state['removed']}, and this run has removed "
                f"{list(surgery.removed)}. Name them: layers={'+'.join(map(str, state['removed']))}.",
                code="checkpoint-other-run",
                mend=[mends.set_option(NAME, "layers", state["removed"])],
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        surgery = self._surgery()
        if surgery is not None and surgery.curve and args.should_save:
            logger.info("%s: the curve is in %s", NAME, save_curve(surgery.curve, Path(args.output_dir)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        surgery = self._surgery()
        if surgery is not None:
            self.report = close_run(self._trainer, surgery, self.limits, restore=self.on_fail == "restore")
            stash_of(self._trainer)[JUDGED] = self.report

    def _surgery(self) -> Surgery | None:
        return stash_of(self._trainer).get(SURGERY)


def close_run(trainer: Trainer, surgery: Surgery, limits: Limits, *, restore: bool) -> dict[str, Any]:
    """The gate's work when training has ended: measure, write the report, say what failed, and put the original back
    where that is asked for. It changes the trainer's model, so it comes before whatever exports that.

    Raises:
        PluginError: the model is worse than `limits` allow, and the original is to be put back.
    """
    args = trainer.args
    with torch.random.fork_rng(devices=[]):
        healed = quality_of(_model_of(trainer), surgery.held_out, surgery.prompts)
    # Ranks may differ in the last bits, and must not in what they do.
    report = from_first_rank(args, lambda: judge(surgery, healed, limits))
    if args.should_save:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    for line in report["failed"]:
        logger.warning("%s: %s", NAME, line)
    if not report["failed"]:
        logger.info("%s: %s", NAME, report["said"])
    elif restore:
        original = surgery.original.to(args.device)
        trainer.model = trainer.model_wrapped = trainer.callback_handler.model = original
        raise PluginError(
            f"{NAME}: {'; '.join(report['failed'])}. The trainer's model is the original again; checkpoints "
            f"in {args.output_dir} hold the smaller one. Remove fewer layers, train for longer, or say "
            "max_degradation=..., or on_fail=warn.",
            code="quality-gate",
        )
    return report


def judge(surgery: Surgery, healed: Quality | None, limits: Limits) -> dict[str, Any]:
    """The report: what was removed, how good the model was and is, and in `failed` which limits it exceeds."""
    report: dict[str, Any] = {
        "removed": list(surgery.removed),
        "layers_before": surgery.depth,
        "side": surgery.side,
        "chosen_by": surgery.why,
        "failed": [],
    }
    summary = f"without layers {list(surgery.removed)} of {surgery.depth}"
    if surgery.whole is None or healed is None:
        return report | {"said": f"{summary}; there is no evaluation data with a loss, so nothing was compared"}
    if math.isinf(surgery.whole.perplexity):
        return report | {
            "said": f"{summary}; the original's loss is too large for a perplexity, so nothing was compared"
        }
    for name, quality in (("original", surgery.whole), ("before_healing", surgery.cut), ("healed", healed)):
        assert quality is not None
        report[name] = {key: value for key, value in asdict(quality).items() if key != "continuations"}
        if surgery.prompts is not None:
            report[name]["match"] = quality.match(surgery.whole)
        else:
            del report[name]["repetition"]
    rise = healed.perplexity / surgery.whole.perplexity - 1
    report["degradation"] = rise
    if limits.max_degradation is not None and not rise <= limits.max_degradation:
        report["failed"].append(
            f"held-out perplexity is {healed.perplexity:.4g}, {rise:+.1%} against the original's, and "
            f"max_degradation={limits.max_degradation}"
        )
    more = healed.repetition - surgery.whole.repetition
    if limits.max_repetition is not None and surgery.prompts is not None and not more <= limits.max_repetition:
        report["failed"].append(
            f"it repeats {healed.repetition:.0%} of what it writes, the original {surgery.whole.repetition:.0%}, "
            f"and max_repetition={limits.max_repetition}"
        )
    cut = surgery.cut.perplexity if surgery.cut is not None else math.nan
    return report | {
        "said": f"{summary} held-out perplexity was {surgery.whole.perplexity:.4g} before, {cut:.4g} after the "
        f"removal, and is {healed.perplexity:.4g} ({rise:+.1%})"
    }


def _model_of(trainer: Trainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model)


def sections_of(report: dict[str, Any], curve: list[dict[str, Any]]) -> list[Section]:
    """The gate's report and the curve before healing, for the run's own report."""
    removed = ", ".join(map(str, report["removed"])) or "none"
    facts = {"layers removed": removed, "of": report["layers_before"], "chosen by": report["chosen_by"]}
    found: list[Section] = [Facts("Layers", facts, report["said"])]
    measured = [name for name in QUALITIES if name in report]
    if measured:
        heads = list(report[measured[0]])
        rows = [[name.replace("_", " "), *(report[name].get(head) for head in heads)] for name in measured]
        found.append(Rows("Held-out quality", ["model", *heads], rows))
    if curve:
        lines = {"perplexity": [point["perplexity"] for point in curve]}
        found.append(
            Curve("What each layer more costs, before healing", [point["removed"] for point in curve], lines, "removed")
        )
    return found
