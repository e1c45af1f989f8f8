"""The technique `peft`: an adapter on a quantised or plain model, and the way out of it.

The model is changed right after `transformers.Trainer.__init__`, inside the script's own class: what other techniques
do to the model (a new head, removed layers) comes before the adapter, and TRL's trainers, which look for an adapter
after that call, find one: DPO loads no second model for its reference. So nothing is handed over as `peft_config=`,
which TRL wants before the model can be read; it then casts adapters of quantised models to bfloat16, and here they
stay in float32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ... import mends
from ...errors import PluginError
from ...technique import Change, Technique, option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from ...report_sections import Section
    from ...suggest import RunFacts, Suggestion


logger = logging.getLogger(__name__)

AUTO = ("auto",)
LORAPLUS_RATIO = 16.0


@dataclass(frozen=True, kw_only=True)
class Peft(Technique):
    """See the options' help, `find_targets`, `make_config`, `quantize`, `AdaLoraCallback` and `ExportCallback`."""

    name: ClassVar[str] = "peft"
    summary: ClassVar[str] = "an adapter (LoRA, DoRA, ...) on the right layers, quantised or not, and merged exactly"

    method: str = option(
        "lora",
        help="lora, rslora, dora, pissa, olora, loraplus, eva, adalora, ia3, vera, oft, boft, loha, lokr, hra, miss, "
        "or any other type of the installed peft",
    )
    r: int | None = option(None, help="rank; none: 16, or peft's own where the method's size is no rank like LoRA's")
    alpha: float | None = option(None, help="scale of the update; none: 2 r, or the method's own")
    dropout: float = option(0.0, help="dropout on the adapter's input")
    targets: tuple[str, ...] = option(
        AUTO, help="auto: all linear layers of the repeated blocks; else names of layers, or ends of names; a+b"
    )
    exclude: tuple[str, ...] = option((), help="names, or ends of names, of layers that auto leaves out; a+b")
    moe: Literal["attention", "experts"] | None = option(
        None, help="of a mixture of experts: also the fused experts, or all but them; none: an error if that is little"
    )
    quant: Literal["nf4", "int8"] | None = option(None, help="quantise the frozen layers with bitsandbytes")
    loraplus_ratio: float | None = option(
        None, help="LoRA's B matrices learn at so many times the rate; none: 16 for method=loraplus, else 1"
    )
    rate_factor: float | None = option(
        None,
        help="the adapter learns at so many times the script's rate; none: 10 for lora and dora where that is below "
        "1e-4, as rates for full tuning are (a warning), else 1",
    )
    modules_to_save: tuple[str, ...] = option(
        AUTO, help="layers that are trained whole and saved with the adapter; auto: the head of a classifier; a+b"
    )
    new_tokens: Literal["warn", "train"] = option(
        "warn", help="of tokens that the script has added to the vocabulary: train their rows, or only say that none is"
    )
    adapter: str | None = option(None, help="a folder with a trained adapter to go on with instead of a new one")
    export: Literal["none", "adapter", "merged", "both"] = option(
        "none", help="when training ends, save the adapter, the merged and verified model, or both, below output_dir"
    )
    config: tuple[str, ...] = option((), help="further fields of the method's own configuration: key:value+key:value")

    def __post_init__(self) -> None:
        if isinstance(self.config, Mapping):
            pairs = tuple(f"{key}:{json.dumps(value)}" for key, value in self.config.items())
            object.__setattr__(self, "config", pairs)
        super().__post_init__()

    def check(self) -> None:
        from .known_methods import read_options, refuse_method

        self.require(self.r is None or self.r >= 1, "r", "it must be 1 or more.", use=1)
        self.require(self.alpha is None or self.alpha > 0, "alpha", "it must be > 0.")
        self.require(0 <= self.dropout < 1, "dropout", "it must lie in [0, 1).")
        self.require(bool(self.targets), "targets", "name layers, or say auto.")
        ratio, has_b = self.loraplus_ratio, self.method in ("lora", "rslora", "dora", "loraplus", "eva")
        self.require(ratio is None or ratio > 0, "loraplus_ratio", "it must be > 0.")
        self.require(ratio is None or has_b, "loraplus_ratio", "it is for lora, rslora, dora, loraplus and eva.")
        factor = self.rate_factor
        self.require(factor is None or factor > 0, "rate_factor", "it must be above 0.")
        self.require(self.moe is None or self.targets == AUTO, "moe", "it goes with targets=auto.")
        self.require(not self.exclude or self.targets == AUTO, "exclude", "it goes with targets=auto.")
        refuse_method(self.method, self.quant, self.export in ("merged", "both"))
        read_options(self.config)

    def keeps_objective(self) -> bool:
        return True

    def excludes(self) -> Mapping[Change, str]:
        if self.method != "adalora":
            return {}
        return {Change.GRADIENTS: "method=adalora scores ranks by their gradients after each step; use method=lora."}

    def packages(self) -> dict[str, str]:
        quantised = {"bitsandbytes": "bitsandbytes>=0.50"} if self.quant is not None else {}
        return {"peft": "peft>=0.21", **quantised}

    @classmethod
    def suggestion(cls, facts: RunFacts) -> Suggestion | None:
        from .suggestion import suggestion

        return suggestion(facts)

    # ---- hooks ----

    def ft_adapter(self, model: PreTrainedModel, args: TrainingArguments) -> Any:
        from .known_methods import has_targets
        from .quantization import kind_of, never_repack, other_quantisation, quantize
        from .saved_adapter import config_for

        self._refuse_quantised_by_the_script(kind_of(model), other_quantisation(model))
        config, found = None, None
        if self.adapter is not None:
            config = config_for(model, Path(self.adapter))
        elif has_targets(self.method):
            found = self._targets(model)
            logger.info("%s: method=%s on %s", self.name, self.method, found)
        if self.quant is not None:
            turned = quantize(model, self.quant, compute_dtype=_compute_dtype(args))
            logger.info("%s: %d layers are %s", self.name, turned, self.quant)
        never_repack(model)
        return config or self._configuration(model, found)

    def ft_callbacks(self) -> list[Any]:
        from .export import ExportCallback
        from .known_methods import MUTATING, read_options
        from .optim import SETTLED, WARMUP, AdaLoraCallback

        callbacks: list[Any] = []
        if self.method == "adalora":
            own = read_options(self.config)
            callbacks.append(AdaLoraCallback(None if "tinit" in own else WARMUP, None if "tfinal" in own else SETTLED))
        if self.export != "none":
            callbacks.append(ExportCallback(self.export, mutates=self.method in MUTATING))
        return callbacks

    @property
    def _second_rate(self) -> float:
        """LoRA+'s ratio; 1.0 without it."""
        ratio = LORAPLUS_RATIO if self.loraplus_ratio is None and self.method == "loraplus" else self.loraplus_ratio
        return 1.0 if ratio is None else ratio

    def ft_trainer(self, trainer: Trainer) -> None:
        from ... import lr_scale
        from .known_methods import MUTATING
        from .saved_adapter import load_weights

        if self.method in MUTATING and getattr(trainer, "ref_model", self) is None:
            raise PluginError(
                f"{self.name}: method={self.method} changes the weights under the adapter, and a "
                f"{type(trainer).__name__} without ref_model= takes them for its reference. Pass a ref_model, or use "
                "method=lora.",
                code="trainer-unsuited",
                mend=[mends.set_option(self.name, "method", "lora")],
            )
        if self._second_rate != 1.0:
            lr_scale.refuse_when_built(trainer, self.name, by_group=True)
        if self.adapter is not None:
            load_weights(trainer.model, Path(self.adapter))
        elif self.method == "eva":
            from .eva import initialize

            initialize(trainer)
        learns, there = trainer.model.get_nb_trainable_parameters()
        logger.info(
            "%s: %s of %s parameters learn (%.2f %%)", self.name, f"{learns:,}", f"{there:,}", 100 * learns / there
        )

    def ft_report(self, trainer: Trainer) -> list[Section]:
        from ...host.stash import parts_of
        from ...report_sections import Facts, Rows
        from .optim import AdaLoraCallback

        learns, there = trainer.model.get_nb_trainable_parameters()
        facts = {"method": self.method, "parameters that learn": learns, "of": there, "share": learns / there}
        found: list[Section] = [Facts("Adapter", facts)]
        ranks = parts_of(trainer).get(f"{self.name}/{AdaLoraCallback.__name__}")
        if ranks is not None and ranks.ranks:
            found.append(Rows("Ranks by layer", ("layer", "ranks"), list(ranks.by_layer().items())))
        return found

    def ft_param_groups(self, trainer: Trainer, model: Any) -> None:
        from .optim import fit_rate, loraplus

        fit_rate(trainer.optimizer, self.method, self.rate_factor)
        if self._second_rate != 1.0:
            loraplus(trainer.optimizer, model, self._second_rate)

    # ---- what the options mean for a model ----

    def _targets(self, model: PreTrainedModel) -> Any:
        from .targets import find_norms, find_targets, named_targets

        if self.targets != AUTO:
            return named_targets(model, self.targets)
        if self.method == "ln_tuning":
            return find_norms(model)
        return find_targets(model, moe=self.moe, exclude=self.exclude)

    def _configuration(self, model: PreTrainedModel, targets: Any) -> Any:
        from .configuration import make_config
        from .known_methods import read_options

        options = read_options(self.config)
        return make_config(
            self.method,
            model,
            targets,
            r=self.r,
            alpha=self.alpha,
            dropout=self.dropout,
            modules_to_save=self._saved_whole(model),
            options=options | self._rows_of_new_tokens(model, targets, options),
        )

    def _rows_of_new_tokens(self, model: PreTrainedModel, targets: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        """Their option of peft's; a warning where they would stay as they began."""
        from .known_methods import config_class, fields_of
        from .new_tokens import frozen_layers, new_tokens, trainable_rows, warning_of

        if {"trainable_token_indices", "token_indices"} & options.keys():
            return {}
        tokens = new_tokens(model)
        if not tokens and self.new_tokens == "train":
            logger.warning(
                "%s: new_tokens=train, and no token of this %s is known to be new: it has no more than the model that "
                "it was made from, or names none. Name rows: config=trainable_token_indices:[...].",
                *(self.name, type(model).__name__),
            )
        whole = (*self._saved_whole(model), *(targets.modules if targets else ()))
        frozen = frozen_layers(model, whole) if tokens else []
        if not frozen:
            return {}
        if self.new_tokens == "warn":
            logger.warning(warning_of(model, tokens, frozen))
            return {}
        rows = trainable_rows(model, tokens, self.method, fields_of(config_class(self.method)), whole)
        return {"trainable_token_indices": rows}

    def _saved_whole(self, model: PreTrainedModel) -> tuple[str, ...]:
        from .layers import head_modules

        return head_modules(model) if self.modules_to_save == AUTO else self.modules_to_save

    def _refuse_quantised_by_the_script(self, kind: str | None, other: str | None) -> None:
        from .known_methods import refuse_method

        if other is not None and self.export in ("merged", "both"):
            raise PluginError(
                f"{self.name}: export={self.export} is known for plain weights and bitsandbytes', and the script's "
                f"model is quantised by {other}. Use export=adapter.",
                code="option-combination",
                mend=[mends.set_option(self.name, "export", "adapter")],
            )
        if kind is not None:
            refuse_method(self.method, kind, merged=False)

    def plan_for(self, model: PreTrainedModel) -> str | None:
        return str(self._targets(model))

    @classmethod
    def memory_savings(cls) -> tuple[str, ...]:
        return ("peft", "peft:quant=int8", "peft:quant=nf4")

    def memory_effects(self, config: Any) -> dict[str, Any]:
        return {"quant": self.quant, "change": self._without_numbers}

    def _without_numbers(self, model: PreTrainedModel) -> Any:
        """The model with its adapter, for the estimate of memory: initial values do not matter, and `meta` has none."""
        from peft import get_peft_model

        from .known_methods import has_targets, kind_of

        config = self._configuration(model, self._targets(model) if has_targets(self.method) else None)
        if kind_of(self.method) == "LORA":
            config.init_lora_weights = True
        return get_peft_model(model, config)


def _compute_dtype(args: TrainingArguments) -> Any:
    import torch

    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else None
