"""Trainer mix-in: checkpoints to resume from of a model that `from_pretrained(distributed_config=...)` has cut up.

Trainer refuses them: it would write the optimizer's state of the first rank's pieces alone. Here weights and optimizer
are written by torch's distributed checkpoints, each rank its own pieces, so that another number of ranks may read them:
tensors as safetensors, all else as JSON, since torch's usual format is a pickle.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import FSDP_MODEL_NAME, OPTIMIZER_NAME, SCHEDULER_NAME

from .. import lr_scale, mends, shards
from ..errors import CheckpointError
from .hook_calls import CallsHooks
from .manifest import read_json, write_atomically

WEIGHTS, OPTIMIZER = "weights_in_pieces", "optimizer_in_pieces"
OTHERS = "others.json"


@contextlib.contextmanager
def saved_whole(*given: Any) -> Iterator[None]:
    """While a trainer is built from `given`: it does not refuse to save what `LoadedInPieces` can save."""
    arguments = next((one for one in given if isinstance(one, TrainingArguments)), None)
    cut_up = any(is_loaded_in_pieces(one) for one in given)
    if arguments is None or not cut_up or arguments.save_only_model:
        yield
        return
    arguments.save_only_model = True
    try:
        yield
    finally:
        arguments.save_only_model = False


def is_loaded_in_pieces(model: Any) -> bool:
    """Whether `from_pretrained` has cut the model up, which older versions of transformers cannot."""
    return isinstance(model, torch.nn.Module) and bool(getattr(model, "is_distributed_loading_by_transformers", False))


class LoadedInPieces(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Host`."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_loaded_in_pieces(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        shards.put_in_pieces(self.model)
        _write(_weights(self.model), Path(output_dir) / WEIGHTS, saves=self.args.should_save)
        _write(_state_of(self.model, self.optimizer), Path(output_dir) / OPTIMIZER, saves=self.args.should_save)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        self._refuse_of_another_kind(Path(resume_from_checkpoint))
        given = args[0] if args else kwargs.get("model")
        whole: Any = self.model if given is None else given
        if not is_loaded_in_pieces(whole):
            # As it was called: sentence-transformers' takes no model.
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
            return
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        weights = _weights(whole)
        _read(weights, Path(resume_from_checkpoint), WEIGHTS)
        set_model_state_dict(whole, weights)

    def _refuse_of_another_kind(self, checkpoint: Path) -> None:
        """Refuse what stock Trainer ends with on one rank alone, or loads without the optimizer's state."""
        by_fsdp = any(checkpoint.glob(f"{FSDP_MODEL_NAME}*"))
        by_deepspeed = any(checkpoint.glob("global_step*")) and not (checkpoint / OPTIMIZER_NAME).is_file()
        if self.is_fsdp_enabled and not by_fsdp:
            was, runs = "without FSDP", "with it"
        elif by_deepspeed and not self.is_deepspeed_enabled:
            was, runs = "by DeepSpeed", "without it"
        else:
            return
        raise CheckpointError(
            f"{checkpoint} was saved {was}, and this run is {runs}. Resume it as it was made, or load its weights into "
            "the model and train without resume_from_checkpoint.",
            code="checkpoint-other-run",
            mend=[mends.use_checkpoint(None)],
        )

    def _load_best_model(self) -> None:
        if is_loaded_in_pieces(self.model):
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        in_pieces = checkpoint is not None and (Path(checkpoint) / OPTIMIZER).is_dir()
        if not (in_pieces or is_loaded_in_pieces(self.model)) or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise CheckpointError(
                f"{checkpoint} is of a model that from_pretrained(distributed_config=...) had cut up, and this run "
                "shards by FSDP or DeepSpeed. Resume with distributed_config, or on one rank without it.",
                code="checkpoint-other-run",
                mend=[mends.use_checkpoint(None)],
            )
        state = _state_of(self.model, self.optimizer)
        _read(state, Path(checkpoint), OPTIMIZER)
        inner = lr_scale.innermost(self.optimizer)
        with _without_empty_groups(inner):
            set_optimizer_state_dict(self.model, inner, state, options=_by_name())
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(schedule)


def _weights(model: PreTrainedModel) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(model)


def _state_of(model: PreTrainedModel, optimizer: Any) -> dict[str, Any]:
    """By the parameters' names, whose groups may be others on another number of ranks."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(model, lr_scale.innermost(optimizer), options=_by_name())


@contextlib.contextmanager
def _without_empty_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While it lasts; torch looks for the first name of each, and an adapter leaves nothing that is not decayed."""
    groups = optimizer.param_groups
    optimizer.param_groups = [group for group in groups if group["params"]]
    try:
        yield
    finally:
        # An optimizer that has loaded its state has new groups.
        filled = iter(optimizer.param_groups)
        optimizer.param_groups = [next(filled) if group["params"] else group for group in groups]


def _by_name() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True)


def _write(state: dict[str, Any], folder: Path, *, saves: bool) -> None:
    """Every rank has to call it.

    Args:
        saves: whether this rank writes what is no tensor.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    tensors, others = _divided(state)
    checkpoint.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    if saves:
        write_atomically(folder / OTHERS, json.dumps(others, indent=1))


def _read(into: dict[str, Any], folder: Path, name: str) -> None:
    """Fill `into`, whose tensors may be in pieces, with what `_write` wrote."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    if not (folder / name / OTHERS).is_file():
        raise CheckpointError(
            f"{folder} has no {name}: it was not written by a run whose model from_pretrained(distributed_config=...) "
            f"had cut up{', but has ' + OPTIMIZER_NAME if (folder / OPTIMIZER_NAME).is_file() else ''}. Resume it as "
            "it was made, or load its weights into the model and train without resume_from_checkpoint.",
            code="checkpoint-other-run",
            mend=[mends.use_checkpoint(None)],
        )
    tensors, others = _divided(into)
    kept = read_json(folder / name / OTHERS)
    alone = not (dist.is_available() and dist.is_initialized())
    try:
        checkpoint.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / name)), no_dist=alone)
        missing = next((key for key in others if key not in kept), None)
    except checkpoint.CheckpointException as error:
        # It is no `Exception`.
        missing = str(error)
    if missing is not None:
        raise CheckpointError(
            f"{folder / name} cannot be read into this run's model: {missing}. Resume with the model and the "
            "techniques that it was made with.",
            code="checkpoint-other-run",
        )
    into |= tensors | {key: _of_its_kind(kept[key], value) for key, value in others.items()}


def _divided(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, and all else."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def _of_its_kind(value: Any, other: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(value) if isinstance(other, tuple) else value
