"""One pretrained encoder with a head for each task: a `PreTrainedModel` like any other.

    model = MultiTaskModel.from_encoder("bert-base-cased", {"upos": TaskSpec(kind="token"), ...}, train_dataset)
    Trainer(model=model, data_collator=MultiTaskCollator(tokenizer, model), ...)

A batch runs the encoder once, and the heads of the tasks for which it has labels; without labels, all heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.utils import ModelOutput

from ....errors import PluginError
from ....models.classes import encoder_of
from ....models.width import head_dropout, hidden_size, reads_forward
from ..label_names import with_labels
from ..tasks import NAME, WORD_KINDS, TaskSpec
from .encoders import refuse_encoder
from .pooling import pool_sequence, pool_words
from .task_heads import make_head


class MultiTaskConfig(PreTrainedConfig):
    """The config of a `MultiTaskModel`.

    Attributes:
        encoder: the encoder's config, as a dict with its `model_type`.
        tasks: for each task's name its `TaskSpec` as a dict, labels included.
        word_pooling: which of a word's tokens stand for it: `first`, `last` or `mean`.
        balance: `uncertainty` where the tasks' weights are learned (Kendall, Gal and Cipolla 2018), else `sum`.
        pooler: whether the encoder has its pooler; `add_pooling_layer=False` leaves it out.
    """

    model_type = "hf-ft-multitask"
    encoder: dict[str, Any] | None = None
    tasks: dict[str, Any] | None = None
    word_pooling: str = "first"
    balance: str = "sum"
    pooler: bool = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["task_sums", "task_items"]

    def __init__(self, **kwargs: Any) -> None:
        for name in ("encoder", "tasks", "word_pooling", "balance", "pooler"):
            setattr(self, name, kwargs.pop(name, getattr(type(self), name)))
        super().__init__(**kwargs)


@dataclass
class MultiTaskOutput(ModelOutput):
    """What a `MultiTaskModel` returns.

    Attributes:
        loss: sum over tasks of weight times mean loss, float32 scalar; None without labels.
        predictions: by task, unless the model trains: logits float32 [rows, classes] of `sequence` and `multi_label`,
            values [rows, targets] of `regression`, class of each word int64 [rows, words] of `token` and `crf`, head
            and relation int64 [rows, words, 2] of `dependency`, next token int64 [rows, tokens] of `causal_lm`. -100
            where there is no word.
        task_sums: by task, the sum of the losses of its items, float32 scalar.
        task_items: by task, the number of its items (rows, words or tokens that have a label), int64 scalar.
    """

    loss: Tensor | None = None
    predictions: dict[str, Tensor] | None = None
    task_sums: dict[str, Tensor] | None = None
    task_items: dict[str, Tensor] | None = None


class MultiTaskModel(PreTrainedModel):
    """See the module's docstring; `heads[name]` is the head of a task, `encoder` the pretrained part."""

    config_class = MultiTaskConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # Each task's loss has a mean of its own, which Trainer's count of one kind of label cannot give.
    accepts_loss_kwargs = False
    # Its heads follow its config, and no technique fits them to the labels of the data.
    labels_in_config = True

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            encoder = encoder_of(AutoConfig.for_model(**(config.encoder or {})), config._attn_implementation)
            if not config.pooler and getattr(encoder, "pooler", None) is not None:
                encoder.pooler = None
        self.encoder = encoder
        self._encoder_inputs = tuple(inspect.signature(encoder.forward).parameters)
        width = hidden_size(encoder.config, NAME)
        self.heads = nn.ModuleDict(
            {
                name: make_head(
                    spec.kind,
                    width,
                    spec.labels if spec.kind != "causal_lm" else range(encoder.config.get_text_config().vocab_size),
                    **{key: value for key, value in spec.options.items() if key != "pooling"},
                )
                for name, spec in self.specs.items()
            }
        )
        self.dropout = nn.Dropout(head_dropout(encoder.config))
        # DDP waits for a gradient of each parameter where it does not look for those without.
        self.touches_idle = False
        if config.balance == "uncertainty":
            self.learn_balance()
        self._tie_language_heads()
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PreTrainedModel,
        tasks: Mapping[str, TaskSpec],
        *datasets: Any,
        word_pooling: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> MultiTaskModel:
        """A pretrained encoder with new heads.

        Args:
            encoder: a checkpoint's name or folder, or a model that `AutoModel` would give.
            tasks: the heads, by name.
            datasets: training data from which labels are read that a spec does not name (see `with_labels`).
            word_pooling: which of a word's tokens stand for it: `first`, `last` or `mean`; None for the last in a model
                that reads forward only, else the first.
            seed: of the heads' new weights; the global random state is left as it was.
            kwargs: for `AutoModel.from_pretrained`.
        """
        if word_pooling not in ("first", "last", "mean", None):
            raise PluginError(
                f"{NAME}: word_pooling is {word_pooling!r}; it must be first, last or mean.", code="option-value"
            )
        complete = with_labels(tasks, *datasets)
        model = AutoModel.from_pretrained(encoder, **kwargs) if isinstance(encoder, str) else encoder
        refuse_encoder(model)
        config = MultiTaskConfig(
            encoder=model.config.to_dict(),
            tasks={name: spec.to_dict() for name, spec in complete.items()},
            word_pooling=word_pooling or ("last" if reads_forward(model.config) else "first"),
            pooler=getattr(model, "pooler", None) is not None,
        )
        config.pad_token_id = getattr(model.config, "pad_token_id", None)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = cls(config, model)
        return made.to(device=model.device, dtype=model.dtype)

    def _tie_language_heads(self) -> None:
        """Let language models' heads be the input embeddings, where those of the encoder's own kind are."""
        names = [name for name, spec in self.specs.items() if spec.kind == "causal_lm"]
        if not names or not getattr(self.encoder.config.get_text_config(), "tie_word_embeddings", False):
            return
        embeddings = self.encoder.get_input_embeddings()
        path = next(path for path, module in self.named_modules() if module is embeddings)
        self.config.tie_word_embeddings = True
        self._tied_weights_keys = {f"heads.{name}.linear.weight": f"{path}.weight" for name in names}

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """The tasks, by name."""
        return {name: TaskSpec(**spec) for name, spec in (self.config.tasks or {}).items()}

    def _init_weights(self, module: nn.Module) -> None:
        # What a checkpoint lacks of a head; modules without weights of their own do not get here.
        if isinstance(module, nn.Linear):
            initialization.normal_(module.weight, std=0.02)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif type(module).__module__.startswith(f"{__package__}.") and hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def learn_balance(self) -> None:
        """Give each task a learned log variance, 0 at first, that weighs it (`balance.py`)."""
        self.config.balance = "uncertainty"
        if not hasattr(self, "log_variances"):
            self.log_variances = nn.Parameter(torch.zeros(len(self.specs), device=self.device))

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        word_ids: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
        task_scale: Tensor | None = None,
        **kwargs: Any,
    ) -> MultiTaskOutput:
        """Run the encoder and the heads.

        Args:
            input_ids: int64 [rows, tokens]; with `attention_mask` and the like it goes to the encoder as it is.
            word_ids: int64 [rows, tokens], the number of the word that a token belongs to, from 0; -1 for none. Needed
                by tasks over words.
            labels: by task, as its head takes them (`task_heads.py`); only these tasks run.
            task_scale: float32 [tasks of the model], what the sum of a task's losses is multiplied by; None for its
                weight divided by its items in this batch.
            kwargs: passed to the encoder.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
        }
        inputs = {name: value for name, value in given.items() if value is not None and name in self._encoder_inputs}
        encoded = self.encoder(**inputs, **kwargs)
        specs = self.specs
        running = list(specs) if labels is None else [name for name in specs if name in labels]
        features = self._features(encoded, running, specs, attention_mask, word_ids, labels)
        scores = {name: self.heads[name](features[name]) for name in running}
        output = MultiTaskOutput()
        if labels is not None:
            self._add_losses(output, scores, labels, task_scale, specs)
        if not self.training:
            output.predictions = {
                name: self.heads[name].decode(scores[name], _mask(name, specs, attention_mask, word_ids, features))
                for name in running
            }
        return output

    def _features(
        self,
        encoded: Any,
        running: list[str],
        specs: Mapping[str, TaskSpec],
        attention_mask: Tensor | None,
        word_ids: Tensor | None,
        labels: Mapping[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        hidden = self.dropout(encoded.last_hidden_state)
        over_words = [name for name in running if specs[name].kind in WORD_KINDS]
        words = None
        if over_words:
            if word_ids is None:
                raise PluginError(
                    f"{NAME}: task {over_words[0]!r} is over words, and the batch has no word_ids. Use "
                    "MultiTaskCollator, on rows with their words in a column 'tokens'.",
                    code="part-misused",
                )
            count = labels[over_words[0]].shape[1] if labels is not None else max(int(word_ids.max()) + 1, 1)
            words = pool_words(hidden, word_ids, self.config.word_pooling, count)
        features = {}
        for name in running:
            kind = specs[name].kind
            if kind in WORD_KINDS:
                features[name] = words
            elif kind == "causal_lm":
                features[name] = hidden
            else:
                how = specs[name].options.get("pooling", "auto")
                pooled = getattr(encoded, "pooler_output", None)
                if _pooled(specs[name]) and pooled is not None:
                    features[name] = self.dropout(pooled.flatten(1))
                else:
                    mask = attention_mask if attention_mask is not None else torch.ones_like(hidden[..., 0])
                    if how == "auto":
                        how = "last" if reads_forward(self.encoder.config) else "first"
                    features[name] = pool_sequence(hidden, mask.long(), how)
        return features

    def _add_losses(
        self,
        output: MultiTaskOutput,
        scores: Mapping[str, Any],
        labels: Mapping[str, Tensor],
        task_scale: Tensor | None,
        specs: Mapping[str, TaskSpec],
    ) -> None:
        output.task_sums, output.task_items = {}, {}
        total: Tensor | None = None
        for index, (name, spec) in enumerate(specs.items()):
            if name not in scores:
                continue
            loss, items = self.heads[name].loss_sum(scores[name], labels[name])
            output.task_sums[name], output.task_items[name] = loss, items
            scale = spec.weight / items.clamp(min=1) if task_scale is None else task_scale[index]
            if self.config.balance == "uncertainty":
                log_variance = self.log_variances[index]
                half = 0.5 if spec.kind == "regression" else 1.0
                loss = half * torch.exp(-log_variance) * loss + 0.5 * items * log_variance
            total = scale * loss if total is None else total + scale * loss
        if total is None:
            raise PluginError(
                f"{NAME}: a batch has labels for {', '.join(labels) or 'no task'}, and the model's tasks are "
                f"{', '.join(specs)}.",
                code="labels-unsuited",
            )
        if self.training and self.touches_idle:
            idle = [0.0 * parameter.sum() for parameter in self.idle_parameters(scores) if parameter.requires_grad]
            total = total + sum(idle, start=torch.zeros_like(total))
        output.loss = total

    def idle_parameters(self, tasks: Container[str]) -> list[nn.Parameter]:
        """What has no part in the losses of these tasks: the other heads, and a pooler that none of them reads."""
        idle = [parameter for name, head in self.heads.items() if name not in tasks for parameter in head.parameters()]
        if not any(name in tasks and _pooled(spec) for name, spec in self.specs.items()):
            pooler = getattr(self.encoder, "pooler", None)
            idle += pooler.parameters() if isinstance(pooler, nn.Module) else []
        return idle

    def export(self, task: str) -> PreTrainedModel:
        """The encoder with one task's head as a plain `AutoModelFor...` (see `export.py`)."""
        from .export import exported

        return exported(self, task)


def _pooled(spec: TaskSpec) -> bool:
    """Whether a task reads the encoder's pooler, where there is one."""
    return spec.kind not in (*WORD_KINDS, "causal_lm") and spec.options.get("pooling", "auto") == "auto"


def _mask(
    name: str,
    specs: Mapping[str, TaskSpec],
    attention_mask: Tensor | None,
    word_ids: Tensor | None,
    features: Mapping[str, Tensor],
) -> Tensor | None:
    """bool [rows, words] or [rows, tokens]: where a task over words or tokens predicts."""
    kind = specs[name].kind
    if kind == "causal_lm":
        return attention_mask.bool() if attention_mask is not None else torch.ones_like(features[name][..., 0]).bool()
    if kind not in WORD_KINDS or word_ids is None:
        return None
    words = features[name].shape[1]
    seen = torch.zeros(len(word_ids), words + 1, dtype=torch.bool, device=word_ids.device)
    return seen.scatter_(1, word_ids + 1, True)[:, 1:] if words else seen[:, :0]


AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig)
AutoModel.register(MultiTaskConfig, MultiTaskModel)
