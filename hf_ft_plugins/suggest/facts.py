"""Everything that `hf-ft suggest` measures of a run, once, before its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..technique import Technique
from .data_facts import DataFacts, data_facts, first_batches, training_loader
from .label_facts import LabelFacts, label_facts
from .memory_facts import MemoryFacts, memory_facts
from .model_facts import SEQ2SEQ, ModelFacts, model_facts
from .origins import Loaded
from .schedule_facts import ScheduleFacts, schedule_facts


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as its script has built it.

    Attributes:
        trainer_class: name of the trainer's class.
        trl: name of TRL's trainer that it is or comes from; empty where it is none.
        techniques: names of those that the script has already.
        model, data, labels, schedule, memory: see their classes; `labels` is None where the model is no classifier.
        wrong_labels: what is wrong with the labels; empty where nothing is.
        trainer, batches: the trainer itself and the batches that were looked at, for what these facts do not say; a
            technique that is asked changes nothing.
    """

    trainer_class: str
    trl: str
    techniques: tuple[str, ...]
    model: ModelFacts
    data: DataFacts
    labels: LabelFacts | None
    wrong_labels: str
    schedule: ScheduleFacts
    memory: MemoryFacts
    trainer: Any = field(repr=False)
    batches: tuple[Any, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold of it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("trainer", "batches")}
        for name in ("model", "data", "labels", "schedule"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        if self.labels is not None:
            plain["labels"] |= {"imbalance": self.labels.imbalance, "rows_a_class": self.labels.rows_a_class}
        left_out = ("needed_with",)
        plain["memory"] = {key: value for key, value in vars(self.memory).items() if key not in left_out}
        return plain


def facts_of(trainer: Any, loaded: Loaded | None = None, budget: float | None = None) -> RunFacts:
    """Measure a trainer that has not trained, in some seconds.

    Args:
        loaded: where models are from, as `from_pretrained` was watched; None: it was not.
        budget: GiB that there are, instead of the device's.

    Raises:
        PluginError: the training data give no batch.
    """
    model = model_facts(trainer.model, Loaded() if loaded is None else loaded)
    labels, wrong_labels = label_facts(trainer) if not _trl(trainer) else (None, "")
    loader = training_loader(trainer)
    batches = [] if loader is None else first_batches(loader, trainer.args.train_batch_size)
    data = data_facts(trainer, batches, encoder_decoder=model.kind == SEQ2SEQ)
    return RunFacts(
        trainer_class=type(trainer).__name__,
        trl=_trl(trainer),
        techniques=tuple(one.name for one in techniques_of(trainer)),
        model=model,
        data=data,
        labels=labels,
        wrong_labels=wrong_labels,
        schedule=schedule_facts(trainer, loader, batches),
        memory=memory_facts(trainer, data, budget),
        trainer=trainer,
        batches=tuple(batches),
    )


def techniques_of(trainer: Any) -> tuple[Technique, ...]:
    """Those that the script has given its trainer."""
    techniques: tuple[Technique, ...] = getattr(trainer, "_ft_techniques", ())
    return techniques


def _trl(trainer: Any) -> str:
    return next((cls.__name__ for cls in type(trainer).__mro__ if cls.__module__.partition(".")[0] == "trl"), "")
