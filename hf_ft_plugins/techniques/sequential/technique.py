"""The technique `sequential`: stage after stage, and what was learned before is still there at the end.

A stage is a run of a Trainer: one script a stage, or several trainers in one. What a stage leaves in `folder` is in
`stage_records.py`, what a later one does with it in `joined_data.py` (replay) and `penalty_callback.py`; what is there
for a run without earlier data is in `token_weights.py`, `teacher.py` and `weight_averaging.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...technique import Change, Technique, option
from .settings import NAME

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch.utils.data import Sampler
    from transformers import Trainer, TrainerCallback

    from ...host.stash import Stash
    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion
    from .stage_records import StageRecords


@dataclass(frozen=True, kw_only=True)
class Sequential(Technique):
    """See the options' help, `StageCallback`, `ReplaySampler`, `PenaltyCallback` and `run_stages`."""

    name: ClassVar[str] = NAME
    summary: ClassVar[str] = "stage after stage without forgetting: replay, penalties, and what forgetting has cost"
    shortcuts: ClassVar[tuple[str, ...]] = ("stages",)

    folder: str | None = option(None, help="where stages keep what later ones need; none: there are no other stages")
    stage: str = option("stage", help="this run's name among the stages")
    replay: float = option(
        0.1, help="share of the training examples that are of each earlier stage, at most half in all; 0: none"
    )
    keep_rows: int = option(2000, help="training rows that a stage keeps for later ones to replay")
    evaluation_rows: int = option(1000, help="rows of each evaluation set that are kept, and measured by")
    own_answers: bool = option(
        False, help="of a model that generates, keep rows with its own answers instead of the data's"
    )
    token_weights: Literal["none", "entropy", "probability"] = option(
        "none", help="what a token's loss counts by; entropy: less where the model is sure; probability: of the token"
    )
    l2sp: float = option(0.0, help="pull towards the weights at the start: of l2sp / 2 x their squared distance")
    ewc: float = option(0.0, help="the same, by how much each weight matters to rows of earlier stages")
    fisher: Literal["sampled", "empirical"] = option(
        "sampled", help="ewc: by labels that the model draws, or by those of the rows"
    )
    fisher_rows: int = option(200, help="ewc: rows of each earlier stage to find out by")
    lwf: float = option(0.0, help="weight of the divergence from the model at the start, on this stage's data")
    lwf_temperature: float = option(2.0, help="lwf: temperature of both distributions")
    wise: float | None = option(
        None, help="when the stage has ended, weights = wise x new + (1 - wise) x those at the start; none: the new"
    )
    olora: float = option(0.0, help="with LoRA: keep its directions orthogonal to those of earlier stages' adapters")
    metric: str | None = option(None, help="what forgetting is told in; none: the first metric, else the loss")
    greater_is_better: bool | None = option(None, help="direction of the metric; none: by its name")

    def check(self) -> None:
        from .stage_records import RESERVED, STAGE_NAME

        self.require(
            STAGE_NAME.fullmatch(self.stage) is not None and self.stage not in RESERVED,
            "stage",
            f"it names a folder: letters, digits, '.', '_' and '-', and not {' or '.join(RESERVED)}.",
        )
        self.require(0 <= self.replay < 1, "replay", "it must be 0 or more, and less than 1.")
        for name in ("keep_rows", "evaluation_rows", "fisher_rows"):
            self.require(getattr(self, name) >= 1, name, "it must be 1 or more.", use=1)
        for name in ("l2sp", "ewc", "lwf", "olora"):
            self.require(getattr(self, name) >= 0, name, "it must be 0 or more.", use=0)
        self.require(self.lwf_temperature > 0, "lwf_temperature", "it must be above 0.")
        self.require(self.wise is None or 0 <= self.wise <= 1, "wise", "it must lie between 0 and 1, or be none.")
        if self.metric is not None and self.greater_is_better is None:
            from ...metrics import greater_is_better

            self.require(
                greater_is_better(self.metric) is not None,
                "metric",
                "its name does not tell whether it is better when greater; say greater_is_better=true or false, too.",
            )
        if self.folder is None:
            for name in ("ewc", "olora"):
                self.require(not getattr(self, name), name, "it needs earlier stages: name their folder=....")

    def idle_options(self) -> dict[str, str]:
        reasons = {}
        if self.folder is None:
            alone = "no folder is named, so there are no other stages"
            reasons = dict.fromkeys(("replay", "keep_rows", "evaluation_rows", "own_answers", "stage", "metric"), alone)
        if not self.replay:
            reasons["own_answers"] = "replay is 0"
        if not self.ewc:
            reasons |= dict.fromkeys(("fisher", "fisher_rows"), "ewc is 0")
        if not self.lwf:
            reasons["lwf_temperature"] = "lwf is 0"
        return {name: reason for name, reason in reasons.items() if name in self.changed_options()}

    def packages(self) -> dict[str, str]:
        return {"datasets": "datasets>=5.0,<6"} if self.folder is not None else {}

    def keeps_objective(self) -> bool:
        return self.token_weights == "none" and not self.lwf

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    @classmethod
    def ft_commands(cls) -> Any:
        from .command import app

        return app

    def answers(self, hook: str) -> bool:
        return super().answers(hook) and (hook != "ft_sampler" or (self.replay > 0 and self.folder is not None))

    def conflict(self, other: Technique) -> str | None:
        if self.answers("ft_sampler") and other.answers_on("ft_sampler", None):
            return (
                f"sequential's replay={self.replay} draws rows of earlier stages among the new ones, and {other} has "
                "an order of its own. Set replay=0 and protect by l2sp, lwf or wise, or leave the other's order out."
            )
        return None

    @property
    def penalties(self) -> dict[str, float]:
        """The weights of what is added to gradients."""
        return {name: weight for name in ("l2sp", "ewc", "olora") if (weight := getattr(self, name))}

    def excludes(self) -> dict[Change, str]:
        reasons = {}
        if self.penalties:
            reasons[Change.GRADIENTS] = (
                f"sequential's {', '.join(self.penalties)} add to gradients, and the other leaves none: say "
                "fused=false there, or protect by replay alone."
            )
        if self.answers("ft_sampler"):
            reasons[Change.SEVERAL_HEADS] = (
                f"sequential's replay={self.replay} is a share of all rows, and the other draws each batch from the "
                "data sets of its tasks by shares of its own. Set replay=0, and name earlier data among those data "
                "sets."
            )
        if self.token_weights != "none":
            words = f"sequential's token_weights={self.token_weights} weigh the loss of a model's own tokens"
            reasons |= {
                Change.GENERATION: f"{words}, and the other computes the loss itself. Set token_weights=none.",
                Change.CLASS_LABELS: f"{words}, and a classifier has none. Set token_weights=none.",
                Change.SEVERAL_HEADS: f"{words}, and several heads have none. Set token_weights=none.",
                Change.PREFERENCES: f"{words}, and preferences compare whole answers. Set token_weights=none.",
            }
        return reasons

    def memory_effects(self, config: Any) -> dict[str, Any]:
        # The weights of the start, for the teacher or the penalties; the Fisher information beside.
        return {"copies": int(self.lwf > 0) + int(self.l2sp > 0 or self.ewc > 0) + int(self.ewc > 0)}

    @property
    def records(self) -> StageRecords | None:
        from .stage_records import StageRecords

        return None if self.folder is None else StageRecords(Path(self.folder))

    # ---- hooks ----

    def ft_dataset(self, dataset: Any, split: str, args: Any, stash: Stash) -> Any:
        from .stage_data import STAGE_DATA, StageData

        if self.records is None:
            return None
        if STAGE_DATA not in stash:
            stash[STAGE_DATA] = StageData()
        data = stash[STAGE_DATA]
        if data.is_complete:
            return None
        if split != "train":
            data.evaluations[split] = dataset
            return None
        data.train = dataset
        if not self.replay:
            return None
        from .replay import with_earlier_rows

        joined, data.replayed = with_earlier_rows(dataset, self.records, self.replay, args)
        return joined

    def ft_sampler(self, trainer: Trainer, dataset: Any) -> Sampler[int] | None:
        from .replay import sampler_for

        return sampler_for(trainer, dataset, self.replay)

    def ft_trainer(self, trainer: Trainer) -> None:
        from ...host.stash import stash_of
        from .beginning import refuse_options, refuse_unfit
        from .stage_data import STAGE_DATA

        data = stash_of(trainer).get(STAGE_DATA)
        if data is not None:
            data.is_complete = True
        if self.records is not None:
            refuse_unfit(trainer, self.records, self.stage)
        refuse_options(trainer, self)

    def ft_callbacks(self, args: Any) -> list[TrainerCallback]:
        from .callbacks import callbacks_of

        return callbacks_of(self, args)

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from ...host.stash import stash_of
        from .transfer_matrix import MATRIX

        matrix = stash_of(trainer).get(MATRIX)
        return None if matrix is None else [matrix.as_section()]

    def ft_loss(self, trainer: Trainer) -> AbstractContextManager[Any] | None:
        if not self.lwf and self.token_weights == "none":
            return None
        from .callbacks import protected_loss

        return protected_loss(trainer, self.token_weights)
