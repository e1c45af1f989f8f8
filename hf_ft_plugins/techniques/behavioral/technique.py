"""The technique `behavioral`: what people did with a chatbot, as training data for TRL's trainers.

The log becomes preferences elsewhere (`feedback/`, `hf-ft behavioral inspect`); this gets them through a DPO, KTO,
reward or SFT trainer: fitted to `max_length`, each with its weight and its probability of being wrong, in batches that
teach something, at the price of one prompt for two completions.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ... import mends
from ...errors import PluginError
from ...technique import Change, Technique, data_seed, option

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from ...host.stash import Stash
    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Behavioral(Technique):
    """See the options' help, `load_feedback`, `BehavioralPreferenceCollator` and `MixedLabelSampler`."""

    name: ClassVar[str] = "behavioral"
    summary: ClassVar[str] = "a chatbot's log as preferences for TRL: weighed, fitted, prompts computed once"

    log: str | None = option(
        None, help="a log (file or folder) whose preferences are the training data instead of the script's"
    )
    weights: bool = option(True, help="scale each row's gradient by its column behavior_weight, where there is one")
    noise: Literal["auto", "robust", "cdpo", "off"] = option(
        "auto",
        help="what DPO does with the column behavior_eps: the robust or the conservative loss of each pair's own flip "
        "probability, instead of the sigmoid loss; auto: robust where the script's loss is sigmoid or robust",
    )
    fit: bool = option(
        True, help="leave out a prompt's oldest turns where max_length is passed; drop pairs that do not differ within"
    )
    share_prefixes: Literal["auto", "on", "off"] = option(
        "auto",
        help="DPO: compute what both completions begin with once, and pack pairs; auto: where it is exact, in batches "
        "where it saves; on: in all, or stop",
    )
    trained_adapter: Literal["refuse", "reference"] = option(
        "refuse", help="a PeftModel that has been trained already: refuse it, or let a copy of it be the reference"
    )

    def answers_on(self, hook: str, trainer_class: type | None) -> bool:
        if hook != "ft_sampler":
            return super().answers_on(hook, trainer_class)
        return any(cls.__name__ == "KTOTrainer" for cls in getattr(trainer_class, "__mro__", ()))

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    @classmethod
    def ft_commands(cls) -> Any:
        from ...feedback.command import app

        return app

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.PREFERENCES})

    def excludes(self) -> dict[Change, str]:
        reason = "behavioral trains on preferences, by TRL's losses, and the other on labels with a loss of its own."
        return dict.fromkeys((Change.CLASS_LABELS, Change.SEVERAL_HEADS, Change.GENERATION), reason)

    def ft_raw_dataset(
        self,
        dataset: Any,
        split: str,
        args: TrainingArguments,
        processing_class: Any,
        trainer_class: type,
        stash: Stash,
    ) -> Any:
        from .data_report import FITTED_ROWS
        from .fit_to_length import CUT, DROPPED, TRIMMED, Fitter, fitted_dataset, in_words
        from .trl_trainers import contract_of, settings_of

        contract = contract_of(trainer_class)
        if self.log is not None and split == "train":
            from ...feedback import load_feedback, load_good_answers

            if contract == "sft":
                dataset = load_good_answers(self.log, "train")
            else:
                dataset = load_feedback(self.log, "labels" if contract == "kto" else "pairs", split="train")
        if not self.fit or contract == "sft" or hasattr(processing_class, "image_processor"):
            return dataset
        settings = json.dumps(settings_of(args, self.options()), default=str)
        fitter = Fitter(processing_class, contract, args.max_length, settings)
        with args.main_process_first(desc=f"{self.name}: fitting"):
            dataset, counts = fitted_dataset(dataset, fitter)
        stash[FITTED_ROWS] = (stash.get(FITTED_ROWS) or {}) | {split: counts}
        changed = any(how.startswith(DROPPED) or how in (TRIMMED, CUT) for how in counts)
        logger.log(
            logging.WARNING if changed else logging.INFO,
            "%s: %s data at max_length=%s: %s.",
            *(self.name, split, args.max_length, in_words(counts) or "not counted (a stream, or tokenized already)"),
        )
        return dataset

    def ft_collator(self, collator: Any) -> Any:
        from .collator import BehavioralPreferenceCollator

        if isinstance(collator, BehavioralPreferenceCollator):
            return None
        if not type(collator).__module__.startswith("trl."):
            logger.warning("%s: the script's own collator, a %s, stays.", self.name, type(collator).__name__)
            return None
        return BehavioralPreferenceCollator(collator)

    def ft_callbacks(self) -> list[Any]:
        from .logged_counts import CountsCallback

        return [CountsCallback()]

    def ft_sampler(self, trainer: Trainer, dataset: Any) -> Any:
        from .mixed_labels import MixedLabelSampler
        from .trl_trainers import contract_of

        if contract_of(type(trainer)) != "kto":
            return None
        # Not the batch size in the arguments: `auto_find_batch_size` tries smaller ones.
        size = trainer._train_batch_size
        if size < 2:
            found = "auto_find_batch_size has come down to 1" if trainer.args.train_batch_size > 1 else "is 1"
            raise PluginError(
                f"{self.name}: KTO estimates its KL term from the other completions of a batch, and "
                f"per_device_train_batch_size {found}. Set it to 2 or more, and max_length lower if memory is short.",
                code="training-arguments",
                mend=[mends.set_argument("per_device_train_batch_size", 2)],
            )
        return MixedLabelSampler(dataset.with_format(None)["label"], size, data_seed(trainer.args))

    def ft_loss(self, trainer: Trainer, inputs: dict[str, Any]) -> Any:
        from .flip_probabilities import flip_probabilities

        if "robust" not in getattr(trainer, "loss_types", ()) or self.noise == "off":
            return None
        return flip_probabilities(trainer, inputs, self.noise)

    def ft_columns(self) -> list[str]:
        from .collator import COLUMNS, FLIP, WEIGHT

        unwanted = {WEIGHT: not self.weights, FLIP: self.noise == "off"}
        return [column for column in COLUMNS if not unwanted.get(column)]

    def ft_report(self, trainer: Trainer) -> list[Section]:
        from .data_report import sections

        return sections(trainer, weights=self.weights, noise=self.noise != "off")

    def ft_trainer(self, trainer: Trainer) -> None:
        from ...host.stash import stash_of
        from .data_report import SHARES_PREFIXES, tell_few
        from .model_forward import behavioral_forward
        from .prefix_sharing import PassCost
        from .reference_model import refuse_reference
        from .trl_trainers import innermost_models, refuse_unfit, shares_prefixes

        refuse_unfit(trainer, weights=self.weights, noise=self.noise)
        tell_few(trainer)
        if self.log is not None and "train" in (trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else ()):
            raise PluginError(
                f"{self.name}: log= replaces the training data, and an evaluation set is named 'train', too. Give it "
                "another name in eval_dataset.",
                code="technique-conflict",
            )
        refuse_reference(trainer, trained_adapter=self.trained_adapter)
        share = shares_prefixes(trainer, self.share_prefixes)
        stash_of(trainer)[SHARES_PREFIXES] = share
        for model in innermost_models(trainer):
            cost = PassCost.of(model) if share and self.share_prefixes == "auto" else None
            behavioral_forward(model, share_prefixes=share, cost=cost)
