"""`PenaltyCallback`: penalties on the distance from earlier stages, in any Trainer, with or without the host.

    callback = PenaltyCallback(l2sp=0.01)
    trainer.add_callback(callback)
    callback.set_trainer(trainer)

What a run began with (the weights, the Fisher information) is written once, beside its checkpoints, and read when it is
resumed: a checkpoint holds the digests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ... import mends
from ...errors import CheckpointError, OptionError, PluginError
from ...host.log_notes import StockLog, add_note, tell_at_the_end
from ...host.stash import WithTrainer, parts_of
from ...progress import bars_as_asked
from ...shards import placed_like
from .adapter_fisher import AdapterEWC, delta_name, estimate_adapter_fisher, refuse_shards
from .fisher import estimate_fisher
from .log_likelihood import Kind
from .lora_layers import LoraLayer, has_adapter, lora_layers
from .orthogonal_adapters import OrthogonalAdapters, read_earlier
from .penalties import EWC, L2SP, Parameters, Penalty, Together
from .penalty_refusals import refuse_steps_in_backward, refuse_unsupported
from .settings import NAME
from .start_weights import moving_parameters, read_start, start_folder, write_start
from .tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

STATE_KEY = "hf_ft_plugins/sequential/penalties"
FISHER_FILE = "fisher.safetensors"
# What losses are multiplied by while the Fisher information is estimated in fp16.
FP16_SCALE = 1024.0


class PenaltyCallback(WithTrainer, TrainerCallback):
    """Adds the penalties' gradients once an optimizer step, after clipping, whatever is accumulated.

    They are logged as `sequential/l2sp`, `sequential/ewc` and `sequential/olora`, of the weights as they are when a log
    is written. The weights of the start, and F for ewc, take memory on the device, each as much as what learns (F in 32
    bits).

    Args:
        l2sp, ewc, olora: weights of the penalties, 0 for none; see `L2SP`, `EWC`, `AdapterEWC`, `OrthogonalAdapters`.
        fisher: of which labels; see `negative_log_likelihood`.
        fisher_rows: rows that F is estimated on.
        seed: of the labels that are drawn.
        earlier_batches: for ewc, called once in a run that begins: collated batches of rows of earlier stages, the same
            on every rank.
        earlier_adapters: for olora, folders of the adapters of earlier stages.

    Raises:
        OptionError: a weight below 0, or no rows.
        PluginError: when training begins; see `refuse_unsupported`, `estimate_fisher`, `read_earlier`.
        CheckpointError: when a run is resumed, and what it began with is not there, or is another's.
    """

    def __init__(
        self,
        *,
        l2sp: float = 0.0,
        ewc: float = 0.0,
        olora: float = 0.0,
        fisher: Kind = "sampled",
        fisher_rows: int = 200,
        seed: int = 0,
        earlier_batches: Callable[[], Iterable[dict[str, Any]]] | None = None,
        earlier_adapters: Sequence[Path] = (),
    ) -> None:
        for option, weight in {"l2sp": l2sp, "ewc": ewc, "olora": olora}.items():
            if not 0 <= weight < float("inf"):
                raise OptionError(
                    f"{NAME}: {option}={weight}: it must be 0 or more.", mend=[mends.set_option(NAME, option, 0)]
                )
        if fisher_rows < 1:
            raise OptionError(
                f"{NAME}: fisher_rows={fisher_rows}: it must be 1 or more.",
                mend=[mends.set_option(NAME, "fisher_rows", 1)],
            )
        self.l2sp, self.ewc, self.olora = l2sp, ewc, olora
        self.fisher, self.fisher_rows, self.seed = fisher, fisher_rows, seed
        self.earlier_batches, self.earlier_adapters = earlier_batches, list(earlier_adapters)
        self.log_notes: dict[str, Any] = {}
        self._digests: dict[str, str | None] = {}
        self._parameters: Parameters = {}
        self._penalties: dict[str, Penalty] = {}
        self._stock_log = StockLog()

    def __getstate__(self) -> dict[str, Any]:
        # What a run has is made anew when the next begins.
        return {**super().__getstate__(), "_stock_log": StockLog(), "_parameters": {}, "_penalties": {}}

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """The digests of what the run began with, and what is not logged yet."""
        return {"digests": dict(self._digests), "log_notes": dict(self.log_notes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._digests = dict(state["digests"])
        self.log_notes.clear()
        self.log_notes.update(state["log_notes"])

    @property
    def _hosted(self) -> bool:
        return any(part is self for part in parts_of(self._trainer).values())

    # ---- begin and end ----

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: torch.nn.Module,
        optimizer: Any,
        **kwargs: Any,
    ) -> None:
        if self._trainer is not None:
            refuse_unsupported(self._trainer)
        refuse_steps_in_backward(optimizer)
        begins = state.global_step == 0
        if begins:
            self._digests = {}
            self.log_notes.clear()
        elif not self._hosted and STATE_KEY in state.stateful_callbacks:
            self.load_state_dict(state.stateful_callbacks[STATE_KEY])
        self._parameters = moving_parameters(model, optimizer)
        with bars_as_asked(args):
            self._penalties = self._made(args, model, optimizer, begins)
        if not self._hosted:
            state.stateful_callbacks[STATE_KEY] = self.state_dict()

    def _made(self, args: Any, model: Any, optimizer: Any, begins: bool) -> dict[str, Penalty]:
        made: dict[str, Penalty] = {}
        if self.olora > 0:
            earlier = read_earlier(model, self.earlier_adapters, self.olora, begins=begins)
            made["olora"] = OrthogonalAdapters(self.olora, earlier)
        if self.l2sp == 0 and self.ewc == 0:
            return made
        folder = start_folder(args)
        if begins:
            self._digests["start"] = write_start(model, folder, optimizer=optimizer, saves=args.should_save)
            start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        else:
            start = _placed(read_start(folder, self._digest("start")), self._parameters)
        if self.l2sp > 0:
            made["l2sp"] = L2SP(self.l2sp, start)
        if self.ewc > 0:
            made["ewc"] = self._elastic(args, model, optimizer, begins, start)
        return made

    def _elastic(self, args: Any, model: Any, optimizer: Any, begins: bool, start: dict[str, torch.Tensor]) -> Penalty:
        layers = lora_layers(model, f"ewc={self.ewc:g}") if has_adapter(model) else []
        refuse_shards(self._parameters[name] for layer in layers for name in (layer.a, layer.b))
        file = start_folder(args) / FISHER_FILE
        if begins:
            scaled = getattr(optimizer, "scaler", None) is not None
            fisher = self._estimated(model, layers, FP16_SCALE if scaled else 1.0)
            self._digests["fisher"] = write_tensors(fisher, file, saves=args.should_save)
        else:
            deltas = {delta_name(layer): self._parameters[layer.a] for layer in layers}
            fisher = _placed(read_tensors(file, self._digest("fisher")), {**self._parameters, **deltas})
        plain = EWC(self.ewc, start, fisher)
        return Together((plain, AdapterEWC(self.ewc, layers, start, fisher))) if layers else plain

    def _digest(self, name: str) -> str | None:
        if name not in self._digests:
            raise CheckpointError(
                f"{NAME}: the checkpoint to resume was made without this penalty (it knows nothing of the {name}). "
                "Resume with the options that it was made with, or begin the stage anew.",
                code="checkpoint-other-run",
                mend=[mends.use_checkpoint(None)],
            )
        return self._digests[name]

    def _estimated(self, model: Any, layers: list[LoraLayer], loss_scale: float) -> dict[str, torch.Tensor]:
        if self.earlier_batches is None:
            raise PluginError(
                f"{NAME}: ewc={self.ewc:g} needs rows of earlier stages: pass earlier_batches.", code="part-misused"
            )
        how: dict[str, Any] = {
            "rows": self.fisher_rows,
            "kind": self.fisher,
            "seed": self.seed,
            "loss_scale": loss_scale,
        }
        batches = self.earlier_batches()
        if layers:
            fisher = estimate_adapter_fisher(model, layers, batches, parameters=self._parameters, **how)
        else:
            fisher = estimate_fisher(model, batches, parameters=self._parameters, **how)
        if dist.is_available() and dist.is_initialized():
            # Ranks that hold the whole model may differ in the last bits, and would part.
            for tensor in fisher.values():
                if not hasattr(tensor, "full_tensor"):
                    dist.broadcast(tensor, src=0)
        return fisher

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._stock_log.untell()
        tell_at_the_end(self._trainer, state, self.log_notes)
        self._let_go()

    def on_train_raised(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        self._penalties, self._parameters = {}, {}

    # ---- every step ----

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer has taken the norm of all gradients, for which fp16's scaler has unscaled them.
        for penalty in self._penalties.values():
            penalty.add_gradients(self._parameters)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(control)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(control)

    def _note(self, control: TrainerControl) -> None:
        if control.should_log and self._penalties:
            values = {name: penalty.value(self._parameters) for name, penalty in self._penalties.items()}
            add_note(self.log_notes, {f"sequential/{name}": value for name, value in values.items()})

    # ---- the log of a stock Trainer ----

    def on_log(
        self, args: Any, state: TrainerState, control: Any, *, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not self._hosted and logs is not None:
            self._stock_log.tell(self.log_notes, logs, state)
            state.stateful_callbacks[STATE_KEY] = self.state_dict()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stock_log.untell()


def _placed(tensors: dict[str, torch.Tensor], others: Parameters) -> dict[str, torch.Tensor]:
    """Those that have another of their name, on its device, and cut up as it is."""
    return {name: placed_like(one, others[name]) for name, one in tensors.items() if name in others}
