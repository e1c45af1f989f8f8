"""`PairFormat`: where the pairs of a data set stand, and what is made of them; all that preparing it has to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...errors import PluginError
from ...near import nearest_value
from .architecture import NAME, is_causal
from .collator import TextPairCollator
from .segments import pack_aware

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairFormat:
    """Columns, limits and objective of pairs of texts or of token ids.

    Attributes:
        model: what is trained; tells whether source and target are one sequence.
        tokenizer: makes token ids of texts; None where the data has them.
        source, target, source_prefix, max_source, max_target, pad_to_multiple_of, objective, noise_density,
            mean_span_length: as of `TextPairCollator`.
        max_empty_share: an error past this share of pairs with an empty target; fewer are dropped.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None
    source: str = "source"
    target: str = "target"
    source_prefix: str = ""
    max_source: int | None = None
    max_target: int | None = None
    pad_to_multiple_of: int | None = None
    objective: Literal["seq2seq", "prefix_lm", "span_corruption"] = "seq2seq"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    max_empty_share: float = 0.01

    def collator(
        self,
        *,
        packing: Literal["none", "pairs", "flatten"] = "none",
        seed: int = 0,
        for_evaluation: bool = False,
        given_decoder_inputs: bool = True,
    ) -> TextPairCollator:
        """The collator of such pairs, its arguments as of `TextPairCollator`; `packing="pairs"` makes the model
        `pack_aware`.
        """
        if packing == "pairs" and not is_causal(self.model):
            pack_aware(self.model)
        return TextPairCollator(
            self.tokenizer,
            self.model,
            source=self.source,
            target=self.target,
            source_prefix=self.source_prefix,
            max_source=self.max_source,
            max_target=self.max_target,
            pad_to_multiple_of=self.pad_to_multiple_of,
            packing=packing,
            objective=self.objective,
            noise_density=self.noise_density,
            mean_span_length=self.mean_span_length,
            seed=seed,
            for_evaluation=for_evaluation,
            given_decoder_inputs=given_decoder_inputs,
        )


def no_column(option: str, name: str, names: list[str]) -> PluginError:
    """The error where the column of texts that an option (`source`, `target`) names is missing among `names`."""
    return PluginError(
        f"{NAME}: there is no column {name!r}; the data has {', '.join(names)}. Say which columns hold texts "
        f"({NAME}:source=...,target=...), pass processing_class=tokenizer, or tokenize into input_ids and labels.",
        code="data-columns",
        mend=nearest_value(NAME, option, name, names),
    )
