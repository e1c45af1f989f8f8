"""What is left when training ends: the adapter, for the base as it was, and the merged model, verified."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.trainer_callback import TrainerCallback

from ...errors import PluginError
from .folders import write_fingerprint
from .layers import NAME
from .merge import verified_merge

logger = logging.getLogger(__name__)

Export = Literal["none", "adapter", "merged", "both"]
# Rows of the training data on which the merged model is compared with the trained one.
PROMPTS = 8


def save_adapter(model: Any, folder: Path, initial: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save the active adapter, for the base as it was; see `plain_lora` for `initial`."""
    if initial is None:
        model.save_pretrained(folder)
        write_fingerprint(model, folder)
        return
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    tensors, config = plain_lora(model, initial)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(folder)
    write_fingerprint(model, folder)


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
    # The scale stays alpha / r; rsLoRA's alpha / sqrt(r) grows with the root.
    config.lora_alpha = config.lora_alpha * (2**0.5 if config.use_rslora else 2)
    config.r, config.init_lora_weights = 2 * config.r, True
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: 2 * alpha for key, alpha in config.alpha_pattern.items()}
    config.inference_mode = True
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, config


class ExportCallback(TrainerCallback):
    """Writes the trained adapter, the merged model, or both, below `output_dir` when training ends.

    Args:
        export: `adapter` goes to `output_dir/adapter`, `merged` to `output_dir/merged`.
        mutates: the adapter's beginning was taken out of the base (PiSSA, OLoRA): it is saved as plain LoRA.
    """

    end_phase = "export"

    def __init__(self, export: Export = "adapter", *, mutates: bool = False) -> None:
        self.export = export
        self.mutates = mutates
        self.error: float | None = None
        self._trainer: Any = None
        self._initial: dict[str, torch.Tensor] = {}

    def set_trainer(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_trainer": None, "_initial": {}}

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "merged" in self.parts and (args.fsdp or args.deepspeed):
            raise PluginError(f"{NAME}: export={self.export} under FSDP or DeepSpeed is not known. Use export=adapter.")
        self._remember()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A model of model_init is new in each run.
        if state.global_step == 0:
            self._remember()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.should_save:
            return
        model, folder = self._model(), Path(args.output_dir)
        if "adapter" in self.parts:
            save_adapter(model, folder / "adapter", self._initial if self.mutates else None)
            logger.info("%s: the adapter is in %s", NAME, folder / "adapter")
        if "merged" in self.parts:
            self.error = verified_merge(model, self._prompts(), folder / "merged")
            if self._trainer.processing_class is not None:
                self._trainer.processing_class.save_pretrained(folder / "merged")
            logger.info("%s: merged into %s; logits differ by %.2g of their norm", NAME, folder / "merged", self.error)

    @property
    def parts(self) -> tuple[str, ...]:
        return {"none": (), "both": ("adapter", "merged")}.get(self.export, (self.export,))

    def _model(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    def _remember(self) -> None:
        if self.mutates and "adapter" in self.parts:
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(self._model())
            self._initial = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _prompts(self) -> dict[str, Any]:
        """A few rows of the training data, without what the loss alone needs."""
        with torch.random.fork_rng(devices=[]):
            batch = next(iter(self._trainer.feature_batches()))
        taken = set(self._trainer._signature_columns or ()) - {"labels", "label", "label_ids"}
        return {
            name: value[:PROMPTS] if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in batch.items()
            if name in taken
        }
