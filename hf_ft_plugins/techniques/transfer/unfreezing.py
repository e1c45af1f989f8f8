"""`GradualUnfreezing`: which layers learn at which step.

    trainer.add_callback(GradualUnfreezing("gradual"))

The optimizer holds every parameter from the start and its groups never change, so nothing is lost when a layer is
unfrozen, and a resumed run finds its groups again. A frozen layer's parameters need no gradient, and it runs in
evaluation mode: no dropout, batch-norm statistics kept. Which layers are frozen is a function of the step alone.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch.nn import Module
from torch.optim import Optimizer
from transformers.trainer_callback import TrainerCallback

from ... import lr_scale, mends
from ...errors import PluginError
from ...host.log_notes import add_note
from ...host.stash import WithTrainer
from ...models.heads import head_names
from ...models.inputs import bare
from ...models.labels import IGNORED
from ...report_sections import Rows
from ...shards import are_cut_up, put_in_pieces
from .head_reading import NotCacheable
from .layers import DEPTH, HEAD, MARK, NAME, LayerGroup, groups_of
from .probe import LEARNING_RATE, fit_probe
from .read_out import KeepsReadOut, read_out, written_weights
from .thawing import Strategy, refuse_unfit, thaw_steps

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

PHASE = f"{NAME}/phase"
ALONE = 1e-3  # rate of a head that learns alone in the run's own steps


class GradualUnfreezing(WithTrainer, TrainerCallback):
    """Freezes layers and unfreezes them from the top.

    Args:
        strategy: `full` freezes nothing; `probe` all but the head; `lpft` all but the head, then nothing (Kumar et al.
            2022, arXiv:2202.10054); `gradual` unfreezes one group after the other, from the top (Howard & Ruder 2018,
            arXiv:1801.06146, section 3.3; there by epochs, here evenly over a share of the steps).
        unfrozen_at: share of the steps after which every layer learns.
        rewarm: share of the steps over which the rate of a layer that was unfrozen rises from zero. Only where the
            optimizer's groups are split by layer (under the host, or with `split_by_layer`).
        probe_learning_rate: of the head while it learns alone, at the schedule's peak; None: 1e-3, on cached features
            3e-3, or the run's rate where that is higher.
        cache_features: `auto` computes the frozen backbone's features once, before the first step, and trains the head
            on them (`fit_probe`), where they are the same every time; `always` refuses to run where they are not;
            `never` trains the head in the run's own steps. Under the host only.
        probe_steps: of the head, on cached features.
        read_out: `auto` gives a text encoder with few examples the read-out that they ask for (`read_out`), where
            features may be cached and the strategy is `lpft`; `keep` leaves it.
        short_run: fewer steps than these are too few for a head to learn alone and for slow layers to learn: all learn
            from the start (`lpft`), unless the head was trained on cached features. Where it is not 0, a pretrained
            language-model head does not learn alone either.
        flat_if_short: whether all layers then learn at one rate, too.
        by_layer: whether the layers need an order; False: two groups, backbone and head, which every model allows.
    """

    def __init__(
        self,
        strategy: Strategy = "gradual",
        *,
        unfrozen_at: float = 0.5,
        rewarm: float = 0.05,
        probe_learning_rate: float | None = None,
        cache_features: Literal["auto", "always", "never"] = "never",
        probe_steps: int = 100,
        read_out: Literal["auto", "keep"] = "keep",
        short_run: int = 0,
        flat_if_short: bool = False,
        by_layer: bool = True,
    ) -> None:
        self.strategy = strategy
        self.unfrozen_at = unfrozen_at
        self.rewarm = rewarm
        self.probe_learning_rate = probe_learning_rate
        self.cache_features = cache_features
        self.probe_steps = probe_steps
        self.read_out = read_out
        self.short_run = short_run
        self.flat_if_short = flat_if_short
        self.by_layer = by_layer
        self.cached = False
        self.log_notes: dict[str, Any] = {}
        self._groups: list[LayerGroup] = []
        self._learns: dict[str, torch.nn.Parameter] = {}
        self._thaw: dict[str, int | None] = {}
        self._frozen: list[str] | None = None
        self._hook: RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a run stays behind.
        return super().__getstate__() | {"_hook": None, "_learns": {}}

    def state_dict(self) -> dict[str, Any]:
        return {"cached": self.cached, "log_notes": dict(self.log_notes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.cached = bool(state["cached"])
        self.log_notes = dict(state.get("log_notes", {}))

    def as_rows(self) -> Rows | None:
        """When each group of layers came to learn; None before training."""
        if not self._thaw:
            return None
        since = {None: "never", 0: "the first step"}
        rows = [
            (group.name, len(group.parameters), since.get(step, f"step {step}"))
            for group in self._groups
            for step in [self._thaw.get(group.name)]
        ]
        note = "The head was trained on cached features before the first step." if self.cached else ""
        return Rows("What learned when", ("layers", "tensors", "learns from"), rows, note)

    # ---- the run ----

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: Module,
        **kwargs: Any,
    ) -> None:
        self._end()
        self._groups = groups_of(model, by_layer=self.by_layer)
        base = bare(model)
        self._learns = {name: weight for name, weight in base.named_parameters() if weight.requires_grad}
        refuse_unfit(self.strategy, self._groups, args, model)
        self._hook = base.register_forward_pre_hook(lambda module, inputs: self._still_frozen(module))
        language = self._has_language_head(base)
        if state.global_step == 0 and not language:
            self.cached = self._probed(args, state, model)
        if self.cached and self.strategy == "probe":
            control.should_training_stop = True
        strategy = self.strategy
        if strategy == "lpft" and (self.cached or language or self._is_short(state)):
            strategy = "full"
        steps = thaw_steps(strategy, len(self._groups), state.max_steps, self.unfrozen_at)
        self._thaw = {group.name: since for group, since in zip(self._groups, steps, strict=True)}
        self._flatten_if_short(state, kwargs.get("optimizer"))
        self._set(args, state, model, kwargs.get("optimizer"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: Module, **kwargs: Any
    ) -> None:
        self._set(args, state, model, kwargs.get("optimizer"))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()

    def _has_language_head(self, base: Module) -> bool:
        """Whether the head was pretrained with the backbone, so that alone it would only learn these texts by heart."""
        layer = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        found = self.strategy == "lpft" and self.short_run > 0 and layer is not None
        if found:
            logger.warning(
                "%s: the language-model head of a %s was pretrained with its layers, so it does not learn alone first. "
                "unfrozen_at=... decides otherwise.",
                NAME,
                type(base).__name__,
            )
        return found

    def _is_short(self, state: TrainerState) -> bool:
        return not self.cached and state.max_steps < self.short_run

    def _flatten_if_short(self, state: TrainerState, optimizer: Optimizer | None) -> None:
        flat = self.flat_if_short and self._is_short(state) and self.strategy in ("lpft", "full")
        if self._is_short(state) and (flat or self.strategy == "lpft"):
            logger.warning(
                "%s: %d steps are too few for a head to learn alone or layers to learn slowly, so all layers learn "
                "from the first%s. unfrozen_at=... and layer_decay=... decide otherwise.",
                NAME,
                state.max_steps,
                ", at one rate" if flat else "",
            )
        if flat and optimizer is not None:
            inner = lr_scale.innermost(optimizer)
            lr_scale.set_scale(inner, DEPTH, 1.0, [group for group in inner.param_groups if MARK in group])

    def _set(self, args: TrainingArguments, state: TrainerState, model: Module, optimizer: Optimizer | None) -> None:
        step = state.global_step
        frozen = [name for name, since in self._thaw.items() if since is None or step < since]
        if frozen != self._frozen:
            # What FSDP2 has gathered for an evaluation would keep its `requires_grad`.
            put_in_pieces(model)
            self._freeze(frozen)
            logger.info("%s: step %d: %s", NAME, step, f"frozen: {', '.join(frozen)}" if frozen else "all layers learn")
        if optimizer is not None:
            self._warm_up(args, state, lr_scale.innermost(optimizer))

    def _freeze(self, frozen: list[str]) -> None:
        self._frozen = frozen
        for group in self._groups:
            for name in group.parameters:
                if name in self._learns:
                    self._learns[name].requires_grad_(group.name not in frozen)

    def _warm_up(self, args: TrainingArguments, state: TrainerState, optimizer: Optimizer) -> None:
        ramp = max(1, round(self.rewarm * state.max_steps))
        alone = self._frozen is not None and len(self._frozen) == len(self._groups) - 1
        for group in optimizer.param_groups:
            if MARK not in group:
                continue
            since = self._thaw[group[MARK]]
            if group[MARK] == HEAD:
                factor = self._probe_rate(args) / args.learning_rate if alone else 1.0
            elif since is None or state.global_step < since:
                factor = 0.0
            else:
                factor = min(1.0, (state.global_step - since + 1) / ramp) if since else 1.0
            if group.get(lr_scale.KEY, {}).get(PHASE, 1.0) != factor:
                lr_scale.set_scale(optimizer, PHASE, factor, [group])

    def _probe_rate(self, args: TrainingArguments) -> float:
        return self._or_asked(max(ALONE, args.learning_rate))

    def _or_asked(self, rate: float) -> float:
        return rate if self.probe_learning_rate is None else self.probe_learning_rate

    def _still_frozen(self, base: Module) -> None:
        # Trainer puts the whole model into training mode before every forward pass.
        if base.training and self._frozen:
            for group in self._groups:
                if group.name in self._frozen:
                    for path in group.modules:
                        module = base.get_submodule(path)
                        if module.training:
                            module.eval()

    def _end(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for weight in self._learns.values():
            weight.requires_grad_(True)
        self._learns, self._frozen = {}, None

    # ---- what is done before the first step ----

    def _probed(self, args: TrainingArguments, state: TrainerState, model: Module) -> bool:
        """Whether the head has been trained on features computed once."""
        if self.cache_features == "never" or self.strategy not in ("probe", "lpft") or self._trainer is None:
            return False
        if are_cut_up(model):
            self._not_cached("the weights lie in pieces on several ranks")
            return False
        if self.read_out == "auto" and self.strategy == "lpft" and self._has_read_out(args, model):
            return True
        self._freeze([group.name for group in self._groups if group.name != HEAD])
        began = time.perf_counter()
        try:
            losses = fit_probe(
                model,
                self._trainer.feature_batches(),
                loss=self._loss,
                learning_rate=self._or_asked(max(LEARNING_RATE, args.learning_rate)),
                weight_decay=args.weight_decay,
                steps=self.probe_steps,
                seed=args.seed,
            )
        except NotCacheable as reason:
            self._not_cached(reason)
            return False
        named = dict(bare(model).named_parameters())
        _agree(args, [named[name] for name in head_names(model)])
        seconds = round(time.perf_counter() - began, 3)
        add_note(self.log_notes, {f"{NAME}/probe_loss": losses[-1], f"{NAME}/probe_runtime": seconds})
        return True

    def _not_cached(self, reason: Any) -> None:
        if self.cache_features == "always":
            raise PluginError(
                f"{NAME}: cache_features=always is not possible here: {reason}.",
                code="option-combination",
                mend=[mends.set_option(NAME, "cache_features", "auto")],
            )
        logger.warning("%s: the head is trained in the run's own steps: %s.", NAME, reason)

    def _has_read_out(self, args: TrainingArguments, model: Module) -> bool:
        """Whether the head, and perhaps the layer that it reads, are what the training data ask for."""
        try:
            found = read_out(model, self._trainer.feature_batches())
        except (KeepsReadOut, NotCacheable) as reason:
            logger.info("%s: the read-out of a %s stays: %s.", NAME, type(bare(model)).__name__, reason)
            return False
        _agree(args, written_weights(model))
        logger.warning(
            "%s: the head of a %s was solved in closed form%s: of examples left out in turn it gets %.1f %% right, and "
            "would %.1f %% with the read-out that the model came with. read_out=keep decides otherwise.",
            *(NAME, type(bare(model)).__name__),
            " on a mean over tokens, which its last layer has become" if found.pooled else "",
            *(100 * found.right, 100 * found.right_before),
        )
        add_note(self.log_notes, {f"{NAME}/left_out_accuracy": found.right})
        return True

    def _loss(self, model: Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        items = (batch["labels"] != IGNORED).sum() if "labels" in batch else None
        return self._trainer.compute_loss(model, dict(batch), num_items_in_batch=items)


def _agree(args: TrainingArguments, weights: list[torch.nn.Parameter]) -> None:
    """Each rank has fitted the whole; a GPU's sums may differ in their last bits."""
    if args.world_size > 1:
        for weight in weights:
            dist.broadcast(weight.data, src=0)
