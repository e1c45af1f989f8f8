"""What a run writes when training ends: the adapter for the unchanged base, and the merged model, verified."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.trainer_callback import TrainerCallback

from ... import mends
from ...errors import PluginError
from ...host.stash import WithTrainer
from .layers import NAME
from .merge import verified_merge
from .model_outputs import call_for
from .reload import verified_adapter
from .saved_adapter import write_fingerprint
from .whole_folders import written_whole

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


logger = logging.getLogger(__name__)

Export = Literal["none", "adapter", "merged", "both"]


def export(
    model: Any,
    folder: Path,
    parts: Collection[str],
    call: Mapping[str, Any] | None,
    *,
    initial: Mapping[str, torch.Tensor] | None = None,
    processing_class: Any = None,
) -> float | None:
    """Write the adapter, the merged model, or both, of the model as it is now; each is there whole or not at all.

    The adapter is written first, of a merged model alone, too, and taken away when that is written: whatever the
    comparisons find, what was trained is not lost.

    Args:
        model: a `PeftModel`; it is left as it is.
        folder: where `adapter` and `merged` go.
        parts: `adapter`, `merged`.
        call: what to call the model with, to compare; None: the adapter is not compared.
        initial: of an adapter that changed its base, how it began.
        processing_class: a tokenizer or processor to save with the merged model.

    Returns:
        How far the merged model's logits are from the trained one's; None without it.

    Raises:
        PluginError: what is written is not what was trained; the text says where the adapter is.
    """
    adapter, error = folder / ("adapter" if "adapter" in parts else "adapter-unmerged"), None
    save_adapter(model, adapter, initial)
    if "merged" in parts:
        assert call is not None
        try:
            error = verified_merge(model, call, folder / "merged", processing_class)
        except Exception as raised:
            reason = str(raised) if isinstance(raised, PluginError) else f"{NAME}: {type(raised).__name__}: {raised}"
            raise PluginError(
                f"{reason} Nothing is merged; the adapter that was trained is in {adapter}.",
                code="quality-gate",
                mend=[mends.set_option(NAME, "export", "adapter")],
            ) from raised
        logger.info("%s: merged into %s; logits differ by %.2g of their norm", NAME, folder / "merged", error)
    if "adapter" in parts:
        logger.info("%s: the adapter is in %s; %s", NAME, adapter, _compared(model, call, adapter, initial))
    else:
        shutil.rmtree(adapter)
    return error


def _compared(
    model: Any, call: Mapping[str, Any] | None, folder: Path, initial: Mapping[str, torch.Tensor] | None
) -> str:
    if call is None:
        return "not compared with the trained model"
    try:
        return verified_adapter(model, call, folder, initial)
    except PluginError:
        raise
    except Exception as error:
        # The adapter is as peft writes it. If it cannot be read back here, for want of memory or because the method
        # cannot be unloaded, the log says so and the run ends normally.
        logger.warning(
            "%s: the adapter in %s could not be compared with the trained model: %s: %s",
            *(NAME, folder, type(error).__name__, error),
        )
        return "not compared with the trained model"


def save_adapter(model: Any, folder: Path, initial: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save the active adapter for the unchanged base; see `plain_lora` for `initial`."""
    with written_whole(folder) as scratch:
        if initial is None:
            model.save_pretrained(scratch)
        else:
            _save_plain_lora(model, scratch, initial)
        write_fingerprint(model, scratch)


def _save_plain_lora(model: Any, folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    # This writes the base's class and name into the configuration; its tensors are replaced below.
    model.save_pretrained(folder)
    tensors, config = plain_lora(model, initial)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    config.auto_mapping, config.base_model_name_or_path = written["auto_mapping"], written["base_model_name_or_path"]
    config.save_pretrained(folder)


def plain_lora(model: Any, initial: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
    """A PiSSA or OLoRA adapter as LoRA of twice the rank, for the base as it was before the adapter changed it.

    W - s B0 A0 + s B A = W + s [B, -B0] [A; A0] (Meng et al. 2024, arXiv:2404.02948, appendix C).

    Args:
        model: a `PeftModel` whose adapter began as `initial`.
        initial: `get_peft_model_state_dict` of its beginning.

    Returns:
        The adapter's tensors, and its configuration.
    """
    from peft import get_peft_model_state_dict

    name = model.active_adapters[0]
    config = copy.deepcopy(model.peft_config[name])
    tensors = {}
    for key, value in get_peft_model_state_dict(model, adapter_name=name).items():
        if "lora_A" in key:
            tensors[key] = torch.cat([value.detach().cpu(), initial[key].cpu()], dim=0)
        elif "lora_B" in key:
            tensors[key] = torch.cat([value.detach().cpu(), -initial[key].cpu()], dim=1)
        else:
            tensors[key] = value.detach().cpu()
    # The scale alpha / r, of rsLoRA alpha / sqrt(r), stays as it is at twice the rank.
    growth = 2**0.5 if config.use_rslora else 2
    config.lora_alpha = config.lora_alpha * growth
    config.r, config.init_lora_weights = 2 * config.r, True
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: alpha * growth for key, alpha in config.alpha_pattern.items()}
    config.inference_mode = True
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, config


class ExportCallback(WithTrainer, TrainerCallback):
    """Writes the trained adapter, the merged model, or both, below `output_dir` when training ends.

    What the comparison will call the model with is found before training: a merged model that could not be compared
    is refused then.

    Args:
        export: `adapter` goes to `output_dir/adapter`, `merged` to `output_dir/merged`.
        mutates: the adapter's beginning was taken out of the base (PiSSA, OLoRA): it is saved as plain LoRA.
    """

    end_phase = "export"

    def __init__(self, export: Export = "adapter", *, mutates: bool = False) -> None:
        self.export = export
        self.mutates = mutates
        self.error: float | None = None
        self._initial: dict[str, torch.Tensor] = {}
        self._call: dict[str, Any] | None = None
        self._asked = False

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_initial": {}, "_call": None, "_asked": False}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "merged" in self.parts and (args.fsdp or args.deepspeed):
            raise PluginError(
                f"{NAME}: export={self.export} under FSDP or DeepSpeed is not known. Use export=adapter.",
                code="distributed-unsupported",
                mend=[mends.set_option(NAME, "export", "adapter")],
            )
        self._remember()
        if self._trainer.train_dataset is not None:
            self._find_call()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A model of model_init is new in each run.
        if state.global_step == 0:
            self._remember()
        if not self._asked:
            self._find_call()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save:
            self.run()

    def run(self) -> None:
        """Export the trainer's model as it is now."""
        if self.parts:
            self.error = export(
                self._model(),
                Path(self._trainer.args.output_dir),
                self.parts,
                self._call,
                initial=self._initial if self.mutates else None,
                processing_class=self._trainer.processing_class,
            )

    @property
    def parts(self) -> tuple[str, ...]:
        return {"none": (), "both": ("adapter", "merged")}.get(self.export, (self.export,))

    def _model(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    def _remember(self) -> None:
        if self.mutates and self.parts:
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(self._model())
            self._initial = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _find_call(self) -> None:
        """What the comparison will call the model with: a few rows of the training data, or tokens that are made up."""
        args = self._trainer.args
        if not self.parts or args.fsdp or args.deepspeed:
            return
        self._asked = True
        batch, why = self._first_batch()
        try:
            self._call = call_for(self._model(), batch, tuple(self._trainer.label_names or ()))
        except PluginError as error:
            reason = f"{error}{why}."
            if "merged" in self.parts:
                raise PluginError(
                    f"{reason} export={self.export} could not be compared with what was trained. Use export=adapter, "
                    "and merge_exactly on what it saves; or let the collator give the model's own inputs.",
                    code="option-combination",
                    mend=[mends.set_option(NAME, "export", "adapter")],
                ) from error
            logger.warning("%s The adapter will be saved, and not compared with what was trained.", reason)

    def _first_batch(self) -> tuple[Any, str]:
        """The first rows as they are collated; None, and why, where they cannot be read like that."""
        trainer = self._trainer
        with torch.random.fork_rng(devices=[]):
            try:
                return next(iter(trainer.feature_batches()), None), ""
            except Exception as error:
                # A script that makes its own loader need not have a data set that ours can read.
                first = error
            try:
                return next(iter(trainer.get_train_dataloader()), None), ""
            except Exception as error:
                return None, f"; its data could not be read ({type(first).__name__}: {first}; {error})"
