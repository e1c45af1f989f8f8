"""Trainer mix-in: techniques change the model, then add an adapter, right after `transformers.Trainer.__init__`.

This happens inside the `__init__` of subclasses, because TRL's trainers check there whether the model has an adapter:
if so, they need no second model as reference, and fuse the output layer of the model under the adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers.trainer import Trainer

from .. import mends
from ..errors import PluginError
from ..models.unchanged import unchanged_on_error
from ..shards import are_cut_up
from . import hooks
from .hook_calls import CallsHooks


class Innermost(Trainer):
    """Comes right before `Trainer` in the method resolution order of a host; made part of it by `with_plugins`."""

    _supply_model: Callable[[], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._supply_model()


class Adapted(CallsHooks):
    """Comes before a Trainer class in the method resolution order; part of `Inputs`."""

    _change_model: Callable[[Any], None]
    _undo: contextlib.ExitStack

    @contextlib.contextmanager
    def _changes_undone_on_error(self) -> Iterator[None]:
        """If a technique raises in the block, restore the script's model and arguments to their state after Trainer's
        own `__init__`, undoing the changes of earlier techniques.
        """
        with contextlib.ExitStack() as self._undo:
            yield

    def _supply_model(self) -> None:
        # `storages=False`: a technique that quantises the model frees the memory of the weights that it replaces.
        self._undo.enter_context(unchanged_on_error(self.model, storages=False))
        self._undo.enter_context(_attributes_put_back(self.args))
        model = self._supplied_model(self.model, self._undo)
        if model is not self.model:
            # The rest of what Trainer derived from the model, it derives from the one under an adapter in any case.
            if self.model_wrapped is self.model:
                self.model_wrapped = model
            self.model = self.callback_handler.model = model

    def _supplied_model(self, model: Any, undo: contextlib.ExitStack) -> Any:
        self._change_model(model)
        technique = hooks.owner(self._ft_techniques, "ft_adapter")
        if technique is None:
            return model
        if hasattr(model, "peft_config"):
            raise PluginError(
                f"{technique.name}: the script's model has adapters already, a {type(model).__name__}. Leave out the "
                f"technique, or the script's own get_peft_model and peft_config=.",
                code="technique-conflict",
                mend=[mends.remove_technique(technique.name)],
            )
        if type(model).__module__.startswith("sentence_transformers."):
            raise PluginError(
                f"{technique.name}: a {type(model).__name__} holds its adapters itself, and is saved and loaded with "
                f"them. Call model.add_adapter(LoraConfig(...)) in the script, and leave out {technique.name}.",
                code="model-unsuited",
                mend=[mends.remove_technique(technique.name)],
            )
        config = self._ask_owner("ft_adapter", model=model, args=self.args, stash=self.ft_stash)
        if config is None:
            return model
        # PiSSA and similar methods change the weights under the adapter.
        undo.enter_context(unchanged_on_error(model))
        adapted = with_adapter(model, config, self.args.seed, technique.name)
        # With model_init the script passes no optimizer, and Trainer drops the previous run's.
        if self.optimizer is not None and self.model_init is None:
            refuse_stranger(self.optimizer, adapted, technique.name)
        if self.args.gradient_checkpointing:
            adapted.enable_input_require_grads()
        return adapted


@contextlib.contextmanager
def _attributes_put_back(owner: Any) -> Iterator[None]:
    before = dict(vars(owner))
    try:
        yield
    except BaseException:
        vars(owner).clear()
        vars(owner).update(before)
        raise


def refuse_stranger(optimizer: Any, model: Any, technique: str) -> None:
    """Raise if the script's own optimizer holds no trainable parameter: it was made before the adapter."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not any(id(parameter) in known for parameter in learning):
        raise PluginError(
            f"{technique}: the script's optimizers=({type(optimizer).__name__}, ...) holds none of the adapter's "
            "parameters, which alone learn. Let the Trainer make the optimizer: optim=..., or "
            "optimizer_cls_and_kwargs=(class, {...}).",
            code="optimizer-unsuited",
        )


def with_adapter(model: Any, config: Any, seed: int, technique: str) -> Any:
    """`get_peft_model` with weights that depend on `seed` alone; the global random state is left as it was.

    Raises:
        PluginError: peft cannot put such an adapter on this model, which is then as it was.
    """
    import torch
    from peft import get_peft_model

    whole = getattr(config, "modules_to_save", None)
    if whole and are_cut_up(model):
        raise PluginError(
            f"{technique}: modules_to_save={list(whole)} are copied whole, and from_pretrained(distributed_config=...) "
            "has cut them up. Leave that out, and shard with TrainingArguments(fsdp=True).",
            code="distributed-unsupported",
            mend=[mends.all_of(mends.set_model_argument("distributed_config", None), mends.set_argument("fsdp", True))],
        )
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    # peft adds an adapter layer by layer; PiSSA and similar methods change the weights under it.
    with unchanged_on_error(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise PluginError(
                f"{technique}: peft cannot put a {config.peft_type.value} adapter on a {type(model).__name__}: {error}",
                code="model-unsuited",
            ) from error
