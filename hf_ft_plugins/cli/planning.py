"""What `hf-ft check` shows of a model before it is loaded: the techniques' plans, and the memory of a training step."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from .. import mends, registry
from ..errors import MissingPackageError, OptionError, PluginError
from ..near import closest, nearest
from ..technique import Technique


def model_without_weights(name: str) -> Any:
    """The model class that a config names first, on torch's meta device.

    Raises:
        PluginError: there is no such model, or none can be made of its configuration.
    """
    import torch
    import transformers

    from ..models.classes import class_of

    config = _config_of(name)
    cls = class_of(config, transformers.AutoModel)
    try:
        with torch.device("meta"):
            return cls.from_config(config) if cls is transformers.AutoModel else cls(config)
    except Exception as error:
        raise PluginError(
            f"check: no {cls.__name__} can be made of the configuration of {name} ({type(error).__name__}: "
            f"{error}). Correct its config.json, or name another model with --model.",
            code="model-unreadable",
        ) from error


def memory_estimate(
    model: str | None, given: Sequence[str], length: int, budget: float | None, techniques: tuple[Technique, ...]
) -> Any:
    """The estimate for a model's folder or name with TrainingArguments given as NAME=VALUE.

    Raises:
        PluginError: an argument is unknown or has an impossible value, the model cannot be read, the run does not fit
            into the budget, or nothing can be estimated.
    """
    if model is None:
        raise PluginError(
            "memory: --memory estimates a model; name its folder or hub name with --model.", code="command-line"
        )
    if length < 1:
        raise OptionError(
            f"memory: --length {length} is no length of a row. Use 1 or more tokens.",
            code="command-line",
            mend=[mends.add_flag("--length", 512)],
        )
    if budget is not None and not budget > 0:
        raise OptionError(
            f"memory: --budget {budget} is no amount of memory. Use GiB, more than 0.", code="command-line"
        )
    import torch

    from ..memory.estimate import GIB, estimate_memory, refuse_over_budget

    config = _config_of(model)
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(given, folder)

    def estimated(args: Any, another: str | None = None) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if another is not None and any("ft_adapter" in technique.hooks() for technique in techniques):
            return None
        try:
            added = () if another is None else (registry.resolve(another),)
        except MissingPackageError:
            # Advice that needs a package which is not installed is of no use.
            return None
        if any(one.name == technique.name for one in added for technique in techniques):
            # Named already, with options of its own.
            return None
        return estimate_memory(config, args, length=length, techniques=(*techniques, *added), device=device)

    try:
        with _quiet(logging.getLogger("torch._subclasses.fake_tensor")):
            estimate = estimated(args)
    except PluginError:
        raise
    except Exception as error:
        limit = getattr(config, "max_position_embeddings", None)
        longest = f" It takes rows of {limit} tokens, and --length is {length}." if limit and length > limit else ""
        raise PluginError(
            f"memory: a training step of {model} cannot be followed ({type(error).__name__}: {error}).{longest}",
            code="model-unsuited",
            mend=[mends.add_flag("--length", limit)] if longest else [],
        ) from error
    if budget is not None:
        refuse_over_budget(estimate, round(budget * GIB), estimated, args)
    return estimate


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without its traceback of an error that is told in words."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def training_arguments(given: Sequence[str], folder: str) -> Any:
    """`TrainingArguments` from NAME=VALUE strings.

    Raises:
        OptionError: a name is unknown, or a value is not of its type.
    """
    import dataclasses

    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise OptionError(
                f"memory: --arg cannot be read: {message}. Write --arg NAME=VALUE.", code="training-arguments"
            )

    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for one in given:
        name, sign, _ = one.partition("=")
        if not sign or name not in known:
            near = closest(name, known)
            raise OptionError(
                f"memory: --arg {one}: write NAME=VALUE with the name of a TrainingArguments field."
                f"{nearest(name, known)}",
                code="training-arguments",
                mend=[mends.rename_argument(name, near)] if near else [],
            )
    flags = [f"--{one}" for one in given]
    try:
        (args,) = Parser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", folder, "--report_to", "none", *flags]
        )
    except PluginError:
        raise
    except Exception as error:
        raise OptionError(
            f"memory: TrainingArguments refuses {' '.join(given)}: {error}", code="training-arguments"
        ) from error
    return args


def _config_of(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise PluginError(
            f"check: there is no model {name!r} that can be read ({type(error).__name__}: {reason}). Name a folder "
            "with a config.json, or a model of the hub, with --model.",
            code="model-unreadable",
        ) from error
