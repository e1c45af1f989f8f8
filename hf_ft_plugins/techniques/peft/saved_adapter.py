"""A folder with a trained adapter: whether it belongs to this model, and its weights.

peft loads an adapter into any base whose layers have the right names and sizes, and says nothing where it was trained
on another. An adapter that is exported here has a file beside it that tells its base by some of its numbers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ...errors import PluginError
from .layers import NAME, block_stacks

BASE_FILE = "hf_ft_base.json"
# Rows of the first tensor: enough to tell models apart, and read in no time.
ROWS = 64


def fingerprint(model: Any) -> dict[str, Any]:
    """What tells a base model from others: its class, and a digest of the first tensor outside its blocks, which
    neither an adapter nor quantisation changes.
    """
    inside = tuple(f"{stack}." for stack in block_stacks(model))
    name, weight = next(
        (name, weight) for name, weight in model.named_parameters() if not name.startswith(inside) and weight.dim() > 1
    )
    numbers = weight.detach()[:ROWS].to("cpu", torch.float32).contiguous().numpy().tobytes()
    return {"class": type(model).__name__, "tensor": name, "sha256": hashlib.sha256(numbers).hexdigest()}


def write_fingerprint(model: Any, folder: Path) -> None:
    """Put the fingerprint of the base of a `PeftModel` beside its adapter."""
    (folder / BASE_FILE).write_text(json.dumps(fingerprint(model.get_base_model()), indent=1), encoding="utf-8")


def config_for(model: Any, folder: Path) -> Any:
    """The configuration of the adapter in `folder`, to train it on.

    Raises:
        PluginError: there is none, or it is for another base than `model`.
    """
    from peft import PeftConfig

    if not (folder / "adapter_config.json").is_file():
        raise PluginError(
            f"{NAME}: adapter={folder} holds no adapter_config.json. Name a folder that peft has saved.",
            code="model-unreadable",
        )
    config = PeftConfig.from_pretrained(str(folder))
    file, now = folder / BASE_FILE, fingerprint(model)
    was = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else now
    if was != now:
        raise PluginError(
            f"{NAME}: adapter={folder} was trained on another model: a {was['class']} with another {was['tensor']} "
            f"than this {now['class']}. Load the model that it belongs to.",
            code="model-unsuited",
        )
    there, here = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    if there and here and not file.is_file() and Path(there).name != Path(here).name:
        raise PluginError(
            f"{NAME}: adapter={folder} was trained on {there}, and the model is {here}. Load the model that it "
            "belongs to.",
            code="model-unsuited",
        )
    config.inference_mode = False
    return config


def load_weights(model: Any, folder: Path) -> None:
    """Load an adapter's weights into a `PeftModel` that was made with its configuration.

    Raises:
        PluginError: tensors that the model lacks, or of other sizes: the adapter is for another base.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    state = load_peft_weights(str(folder), device="cpu")
    try:
        unexpected = set_peft_model_state_dict(model, state).unexpected_keys
    except RuntimeError as error:
        raise PluginError(
            f"{NAME}: adapter={folder} does not fit this model: {error}", code="model-unsuited"
        ) from error
    if unexpected:
        raise PluginError(
            f"{NAME}: adapter={folder} has {len(unexpected)} tensors that have no place in this model, such as "
            f"{unexpected[0]}. Load the model that it belongs to.",
            code="model-unsuited",
        )
