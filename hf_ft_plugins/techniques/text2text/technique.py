"""The technique `text2text`: pairs of input and output text, for encoder-decoders and causal models.

Of a standard script it replaces how batches are cut (`batches.py`), collated (`collator.py`) and weighed (`loss.py`);
what the script trains, and for how many steps, stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ... import mends
from ...errors import PluginError
from ...technique import Change, Technique, data_seed, option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion
    from .loss import TokenMeanLoss
    from .pair_format import PairFormat

logger = logging.getLogger(__name__)

# The collators that do what `TextPairCollator` does; any other is the script's own affair.
REPLACED_COLLATORS = ("DataCollatorForSeq2Seq", "DataCollatorWithPadding")


@dataclass(frozen=True, kw_only=True)
class Text2Text(Technique):
    """See the options' help, `TextPairCollator`, `TokenBudgetBatchSampler` and `TokenMeanLoss`."""

    name: ClassVar[str] = "text2text"
    summary: ClassVar[str] = "text pairs in batches of a budget of tokens, the loss averaged over real target tokens"

    target_tokens: int | None = option(
        None, help="real target tokens in a batch; none: as many as per_device_train_batch_size pairs have on average"
    )
    max_tokens: int | None = option(
        None, help="most padded slots (source and target) in a batch; none: twice those of pairs of average length"
    )
    parts: int | None = option(
        None,
        help="of how many runs of pairs of unlike length a batch is made, each padded alone; none: so many that a "
        "step has four; 1: a batch is alike in length",
    )
    max_source_length: int | None = option(None, help="longest source in tokens, cut beyond; none: no limit")
    max_target_length: int | None = option(None, help="longest target in tokens, cut beyond; none: no limit")
    source: str = option("source", help="column of input texts, tokenized where the data has no input_ids")
    target: str = option("target", help="column of output texts, tokenized where the data has no input_ids")
    source_prefix: str = option("", help="put before each input text that is tokenized")
    pad_to_multiple_of: int | None = option(None, help="round widths up; none: as in the script's collator")
    max_empty_share: float = option(
        0.01, help="an error past this share of pairs with an empty target; fewer are dropped"
    )
    metrics: bool = option(
        True, help="BLEU, chrF, exact match (and ROUGE, with rouge_score) where the script generates and has no metrics"
    )
    examples: int = option(2, help="generated examples printed after each evaluation that generates")
    packing: Literal["none", "pairs", "flatten"] = option(
        "none", help="put training pairs into shared rows: pairs (T5, mT5, BART, Marian), flatten (causal models)"
    )
    objective: Literal["seq2seq", "prefix_lm", "span_corruption"] = option(
        "seq2seq", help="seq2seq: pairs; the others make pairs of the texts in `source` or input_ids, anew each epoch"
    )
    noise_density: float = option(0.15, help="span_corruption: share of tokens taken out")
    mean_span_length: float = option(3.0, help="span_corruption: mean tokens of a span that is taken out (ByT5: 20)")
    pool: int | None = option(
        None,
        help="how many pairs are sorted together: fewer pad more, and differ more within a batch; none: those of 16 "
        "steps (a stream is read 8192 at a time)",
    )

    def check(self) -> None:
        for name in (
            "target_tokens",
            "max_tokens",
            "max_source_length",
            "max_target_length",
            "pad_to_multiple_of",
            "pool",
            "parts",
        ):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "it must be 1 or more.")
        self.require(self.examples >= 0, "examples", "it must be 0 or more.", use=0)
        self.require(0 <= self.max_empty_share <= 1, "max_empty_share", "it must lie in [0, 1].")
        self.require(0 < self.noise_density < 1, "noise_density", "it must lie between 0 and 1.")
        self.require(self.mean_span_length >= 1, "mean_span_length", "it must be 1 or more.", use=1)
        self.require(
            self.objective == "seq2seq" or not self.source_prefix, "source_prefix", "only objective=seq2seq takes one."
        )
        self.require(self.objective == "seq2seq" or self.packing == "none", "packing", "only objective=seq2seq packs.")

    def idle_options(self) -> dict[str, str]:
        if self.objective == "span_corruption":
            return {}
        reason = f"objective is {self.objective}, and only span_corruption takes tokens out"
        return {name: reason for name in ("noise_density", "mean_span_length") if name in self.changed_options()}

    def changes(self) -> frozenset[Change]:
        return frozenset({Change.GENERATION})

    def keeps_objective(self) -> bool:
        # A limit cuts evaluation data too: fewer tokens are counted, or less is known of them.
        return self.objective == "seq2seq" and self.max_source_length is None and self.max_target_length is None

    def loss_differs(self, setting: Mapping[str, Any]) -> str | None:
        if setting.get("grouped_by_length"):
            return f"a mean over batches, which stock groups by length in evaluation and {self.name} does not"
        if setting.get("generates") and not setting.get("fills_batches", True):
            return (
                f"where a model generates, stock counts a last batch that is not full as if it were, {self.name} by "
                "its rows; evaluate on a multiple of the batch size"
            )
        if setting.get("generates") and setting.get("smoothed") and not setting.get("is_encoder_decoder"):
            return "where a causal model generates, stock smooths the loss of labels that are not shifted"
        if not setting.get("in_float32", True):
            return f"computed in half precision by stock and in float32 by {self.name}"
        return None

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    def ft_dataset(
        self,
        dataset: Any,
        split: str,
        model: PreTrainedModel,
        args: TrainingArguments,
        processing_class: Any,
        collator: Any,
    ) -> Any:
        from .data import prepared, reads_other_columns

        if not args.remove_unused_columns and reads_other_columns(collator, dataset):
            return None
        return prepared(dataset, split, self._pairs(model, processing_class))

    def ft_collator(
        self, collator: Any, split: str, model: PreTrainedModel, args: TrainingArguments, processing_class: Any
    ) -> Any:
        from .collator import TextPairCollator

        # The script's collator may pad with another tokenizer than what the trainer saves, such as a processor.
        tokenizer = getattr(collator, "tokenizer", None) or processing_class
        why_it_stays = _why_it_stays(collator)
        if getattr(collator, "objective", "seq2seq") != self.objective and why_it_stays:
            raise PluginError(
                f"{self.name}: option objective={self.objective} needs a collator that has it, and the script's own is "
                f"a {type(collator).__name__}. Leave it out, or pass TextPairCollator(..., objective="
                f"{self.objective!r}).",
                code="technique-conflict",
                mend=[mends.remove_option(self.name, "objective")],
            )
        if isinstance(collator, TextPairCollator):
            return collator.evaluating() if split != "train" else None
        if why_it_stays:
            logger.warning("%s: the script's %s.", self.name, why_it_stays)
            return None
        if tokenizer is None or model is None:
            raise PluginError(
                f"{self.name}: the trainer has no {'model' if model is None else 'tokenizer'}. "
                f"Pass {'model=..., not model_init=...' if model is None else 'processing_class=tokenizer'}.",
                code="tokenizer-unsuited",
            )
        form = self._pairs(model, tokenizer, getattr(collator, "pad_to_multiple_of", None))
        return form.collator(
            packing=self.packing if split == "train" else "none",
            seed=data_seed(args),
            for_evaluation=split != "train",
            # Stock makes them anew of the labels where its collator has the model, whatever the rows hold.
            given_decoder_inputs=not hasattr(getattr(collator, "model", None), "prepare_decoder_input_ids_from_labels"),
        )

    def _pairs(self, model: PreTrainedModel, tokenizer: Any, pad_to_multiple_of: int | None = None) -> PairFormat:
        from .pair_format import PairFormat

        return PairFormat(
            model,
            tokenizer,
            source=self.source,
            target=self.target,
            source_prefix=self.source_prefix,
            max_source=self.max_source_length,
            max_target=self.max_target_length,
            pad_to_multiple_of=self.pad_to_multiple_of or pad_to_multiple_of,
            objective=self.objective,
            noise_density=self.noise_density,
            mean_span_length=self.mean_span_length,
            max_empty_share=self.max_empty_share,
        )

    def ft_metrics(self, args: TrainingArguments, processing_class: Any) -> Any:
        if not self.metrics or processing_class is None or not getattr(args, "predict_with_generate", False):
            return None
        from .metrics import Seq2SeqGenerationMetrics

        try:
            import sacrebleu  # noqa: F401
        except ImportError:
            logger.warning("%s: sacrebleu is not installed, so there is no BLEU. pip install sacrebleu", self.name)
            return None
        return Seq2SeqGenerationMetrics(processing_class)

    def ft_batch_sampler(self, trainer: Trainer, dataset: Any, sampler: Any) -> Any:
        from .budget import TokenBudget, budgeted

        budget = TokenBudget(self.target_tokens, self.max_tokens, self.parts, self.pool, self.max_empty_share)
        return budgeted(trainer, dataset, sampler, budget)

    def ft_eval_sampler(self, trainer: Trainer, dataset: Any) -> Any:
        from ...host.evaluation_order import in_order

        return in_order(trainer, dataset)

    def ft_evaluation(self, trainer: Trainer, dataloader: Any, prefix: str) -> Any:
        if not getattr(trainer.args, "predict_with_generate", False):
            return None
        from .evaluation import evaluating

        return evaluating(
            trainer,
            dataloader,
            prefix,
            examples=self.examples,
            max_source=self.max_source_length,
            max_target=self.max_target_length,
        )

    def ft_parts(self, trainer: Trainer, inputs: Any, num_items_in_batch: Any) -> Any:
        from ...host.stash import stash_of
        from .architecture import is_causal
        from .parts import PARTS, parts_of

        parts = stash_of(trainer).get(PARTS, 1)
        if parts == 1 or num_items_in_batch is None:
            return None
        return parts_of(trainer, inputs, parts, causal=is_causal(trainer.model))

    def ft_loss(self, trainer: Trainer, inputs: Any) -> Any:
        from .forward import as_the_model_would

        return as_the_model_would(trainer, inputs)

    def ft_loss_function(self, trainer: Trainer) -> TokenMeanLoss | None:
        from .architecture import is_causal
        from .loss import TokenMeanLoss

        if trainer.compute_loss_func is not None:
            logger.warning("%s: the script's own compute_loss_func stays.", self.name)
            return None
        return TokenMeanLoss(shift=is_causal(trainer.model), label_smoothing=trainer.args.label_smoothing_factor)

    def ft_report(self, trainer: Trainer) -> list[Section] | None:
        from ...host.stash import stash_of
        from .budget import BATCHES, facts_of

        batches = stash_of(trainer).get(BATCHES)
        return None if batches is None else [facts_of(batches)]

    def ft_trainer(self, trainer: Trainer) -> None:
        if any(cls.__module__.partition(".")[0] == "trl" for cls in type(trainer).__mro__):
            raise PluginError(
                f"{self.name}: {type(trainer).__name__} is TRL's, which batches and weighs its own data. "
                f"Use Trainer or Seq2SeqTrainer, or leave out {self.name}.",
                code="trainer-unsuited",
                mend=[mends.remove_technique(self.name)],
            )
        if self.packing != "none":
            from .packing import refuse_unpacked

            limits = {"max_source": self.max_source_length, "max_target": self.max_target_length}
            refuse_unpacked(trainer, self.packing, **limits)


def _why_it_stays(collator: Any) -> str | None:
    cls = type(collator)
    stock = cls.__module__.startswith("transformers.") and cls.__name__ in REPLACED_COLLATORS
    if collator is not None and not stock:
        return f"own collator, {getattr(collator, '__name__', cls.__name__)}, stays"
    if getattr(collator, "max_length", None) is not None or getattr(collator, "label_pad_token_id", -100) != -100:
        return "collator stays, for its max_length or label_pad_token_id"
    if getattr(collator, "padding", True) not in (True, "longest") or getattr(collator, "return_tensors", "pt") != "pt":
        return "collator stays, for its padding or return_tensors"
    return None
