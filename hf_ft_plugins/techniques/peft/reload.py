"""The saved adapter as a user will load it: on its base anew, which then must answer as the trained model did.

The base is the one that the adapter names, read from disk as the script did; where it names none, or one that is not
there, the base in memory without its adapter.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from ... import mends
from ...errors import PluginError
from ...models.embeddings import token_embeddings
from .layers import NAME
from .merge import dense, dtype_of, forget_quantisation, tolerance
from .model_outputs import answers, relative_error
from .quantization import is_quantized, never_repack
from .tied_weights import copied
from .whole_folders import quiet, written_whole

logger = logging.getLogger(__name__)

# Memory for a copy of the model, in sizes of the model: the copy and its activations.
ROOM = 1.3


def verified_adapter(
    model: Any, call: Mapping[str, Any], folder: Path, initial: Mapping[str, torch.Tensor] | None = None
) -> str:
    """Load the adapter in `folder` on its base anew, and compare what it answers with the trained model.

    Where the base in memory is not the one that the adapter names (layers were removed, a head was made, tokens were
    added), the base is saved beside the adapter, in `FOLDER/../base`, and the adapter names that one.

    Args:
        model: the trained `PeftModel`; it is left as it is.
        call: what to call it with.
        initial: of an adapter that changed its base, how it began.

    Returns:
        What came of it, for the log.

    Raises:
        PluginError: on no base does it answer as the trained model did; the adapter stays where it is.
    """
    base, wanted, most = model.get_base_model(), answers(model, call), tolerance(model)
    if not _has_room(base):
        return "not compared with the trained model: there is no room for the base a second time"
    named, why = _named_base(model)
    if named is not None:
        error, why = _error_on(named, model, folder, wanted, call)
        if error <= most:
            return f"loaded anew on {base.name_or_path} its logits differ by {error:.2g} of their norm"
        why = why or f"its logits differ by {error:.1%}"
        del named
    rest = base_without_adapter(model, initial)
    if rest is None:
        return f"not compared with the trained model: its base cannot be told from it ({why})"
    error, failure = _error_on(rest, model, folder, wanted, call)
    if not error <= most:
        failure = failure or f"its logits differ by {error:.1%} from the trained model's"
        raise PluginError(
            f"{NAME}: the adapter is in {folder}, and loaded anew on its base it is not what was trained: {failure}. "
            "Use export=merged, or other targets.",
            code="quality-gate",
            mend=[mends.set_option(NAME, "export", "merged")],
        )
    if not _is_there(base):
        return f"loaded anew on the base in memory its logits differ by {error:.2g} of their norm"
    return _save_base_beside(base_without_adapter(model, initial), base, folder, why)


def base_without_adapter(model: Any, initial: Mapping[str, torch.Tensor] | None = None) -> Any:
    """A copy of the model as it was before it got the adapter; None for methods that cannot be taken off.

    Args:
        initial: of an adapter that changed its base, how it began.
    """
    from peft import set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if model.active_peft_config.is_prompt_learning:
        return copied(model.get_base_model())
    if not hasattr(model.base_model, "unload"):
        return None
    twin = copied(model)
    # A script may have merged the adapter, as `merge_adapter` does; what was merged already stays when it is taken off.
    if any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in twin.modules()):
        twin.unmerge_adapter()
    if initial:
        # W - s B0 A0, the base that PiSSA and OLoRA train on, and s B0 A0, which they took out of it.
        set_peft_model_state_dict(twin, dict(initial), adapter_name=model.active_adapters[0])
        return _plain(twin.merge_and_unload())
    for path, module in list(twin.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            twin.set_submodule(path, module.original_module)
    return _plain(twin.unload())


def _plain(base: Any) -> Any:
    base.__dict__.pop("forward", None)
    return base.eval()


def _error_on(
    base: Any, model: Any, folder: Path, wanted: list[torch.Tensor], call: Mapping[str, Any]
) -> tuple[float, str]:
    """How far the adapter on this base is from what is wanted, and why it is not there, if it cannot be loaded."""
    from peft import PeftModel

    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[]):
            again = PeftModel.from_pretrained(base, str(folder), torch_device=str(device))
        return relative_error(wanted, answers(again, call), call), ""
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        return float("inf"), f"{type(error).__name__}: {str(error)[:200]}"


def _named_base(model: Any) -> tuple[Any, str]:
    """The base that the adapter names, anew and on the model's device; None, and why, where it cannot be read."""
    base = model.get_base_model()
    if not _is_there(base):
        return None, "it names no base that is there"
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            return _read(base), ""
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        return None, f"{base.name_or_path} cannot be read as a {type(base).__name__}: {str(error)[:200]}"


def _is_there(base: Any) -> bool:
    """Whether the base has a name, and files of that name are on this machine."""
    name = getattr(base, "name_or_path", None)
    if not name or not hasattr(type(base), "from_pretrained"):
        return False
    try:
        return bool(type(base.config).get_config_dict(name, local_files_only=True)[0])
    except OSError:
        return False


def _read(base: Any) -> Any:
    name, config, device = base.name_or_path, copy.deepcopy(base.config), next(base.parameters()).device
    stored = type(config).from_pretrained(name, local_files_only=True)
    rows = _rows(base)
    if rows:
        # As a script does: the tokens that it adds come after the base was read.
        config.get_text_config().vocab_size = stored.get_text_config().vocab_size
    settings: dict[str, Any] = {"config": config, "dtype": dtype_of(base), "local_files_only": True}
    if hasattr(config, "quantization_config") and not hasattr(stored, "quantization_config"):
        settings["quantization_config"] = config.quantization_config
        del config.quantization_config
    if "quantization_config" in settings or hasattr(stored, "quantization_config"):
        settings["device_map"] = {"": device}
    fresh = type(base).from_pretrained(name, **settings)
    fresh = fresh if "device_map" in settings else fresh.to(device)
    never_repack(fresh)
    if rows and _rows(fresh) != rows:
        fresh.resize_token_embeddings(rows)
    return fresh.eval()


def _rows(model: Any) -> int | None:
    """Rows of its table of tokens."""
    table = token_embeddings(model)
    return None if table is None else int(table.weight.shape[0])


def _save_base_beside(rest: Any, base: Any, folder: Path, why: str) -> str:
    size = sum(parameter.numel() * parameter.element_size() for parameter in rest.parameters())
    if shutil.disk_usage(folder).free < ROOM * size:
        logger.warning(
            "%s: the adapter in %s is for the model as it was when training began, and not for %s: on that, %s. There "
            "is no room on the disk to save it beside; export=merged writes the whole model.",
            *(NAME, folder, base.name_or_path, why),
        )
        return "compared on the base in memory"
    if any(is_quantized(module) for module in rest.modules()):
        rest = dense(rest, dtype_of(base))
        forget_quantisation(rest)
    beside = (folder.parent / "base").resolve()
    with written_whole(beside) as scratch:
        rest.save_pretrained(scratch)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"], settings["revision"] = str(beside), None
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    logger.warning(
        "%s: the adapter in %s is for the model as it was when training began, and not for %s: on that, %s. So that "
        "model is saved in %s, and the adapter names it as its base.",
        *(NAME, folder, base.name_or_path, why, beside),
    )
    return f"its base is in {beside}"


def _has_room(base: Any) -> bool:
    size = sum(parameter.numel() * parameter.element_size() for parameter in base.parameters())
    device = next(base.parameters()).device
    if device.type == "cuda":
        return bool(torch.cuda.mem_get_info(device)[0] > ROOM * size)
    return bool(psutil.virtual_memory().available > ROOM * size)
