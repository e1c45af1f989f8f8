"""`Example`: a technique at small settings, what it is tried on, and how its effect shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..errors import UnknownTechniqueError
from ..near import nearest
from ..registry import DISTRIBUTION, offers
from ..technique import Technique

# What `tiny_trainer` takes besides changes of `TrainingArguments`.
NOT_ARGUMENTS = (
    *("model", "model_init", "callbacks", "train_dataset", "eval_dataset"),
    *("data_collator", "processing_class", "compute_metrics", "ref_model", "trainer_class", "args_class"),
)

Setting = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """What the checks try a technique with.

        def acted(technique, trainer):
            return any("my_technique/scale" in entry for entry in trainer.state.log_history)

        EXAMPLE = Example(MyTechnique(factor=0.8), acted)

    Attributes:
        technique: with options that let its effect show in a run of a dozen steps.
        acted: `acted(technique, trainer)`, asked after `trainer.train()`: whether this technique's own effect can be
            seen. It looks at something that a run without the technique, or one in which another technique undid it,
            does not show. `trainer` is a host's or a stock one.
        setting: what `tiny_trainer` is to be made with (`model`, `train_dataset`, ...) for the technique to have work
            to do, made anew at each call, since a model is trained in place; nothing for the kit's own classifier.
    """

    technique: Technique
    acted: Callable[[Any, Any], bool]
    setting: Setting = dict

    @property
    def name(self) -> str:
        """The technique's name."""
        return self.technique.name


def example_of(name: str) -> Example:
    """The kit's example of a built-in technique, to try another technique together with.

    Raises:
        UnknownTechniqueError: no built-in technique is called `name`.
    """
    module = f"{__package__}.examples.{name.replace('-', '_')}"
    known = [offer.name for offer in offers() if offer.distribution == DISTRIBUTION]
    if name not in known or find_spec(module) is None:
        raise UnknownTechniqueError(
            f"there is no built-in example of {name!r}.{nearest(name, known)} Give an `Example` of your own."
        )
    return import_module(module).EXAMPLE


def setting_of(*examples: Example) -> dict[str, Any]:
    """What these examples need, made anew, since a model is trained in place.

    Of several models and data sets those of the first that has some; of all, what they change of `TrainingArguments`.
    """
    settings = [example.setting() for example in examples]
    arguments = [{name: one[name] for name in one if name not in NOT_ARGUMENTS} for one in settings]
    whole = [index for index, one in enumerate(settings) if len(one) > len(arguments[index])]
    chosen = settings[whole[0]] if whole else {}
    return {name: value for one in reversed(arguments) for name, value in one.items()} | chosen
