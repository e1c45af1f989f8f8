"""Watch a script's trainers from inside its process, for `hf-ft compare`: progress while it runs, its logs at the end.

The watcher is a callback that only reads; it is added to Trainer's default callbacks, so the run without techniques
is a stock run, but for three things that two runs need to be comparable: the random numbers that the script does not
seed are seeded, its own seed can be moved, and what it writes goes into a folder below its `output_dir`.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PluginError
from ..training_log import plain
from .hosting import ARGUMENTS_MODULE, TRAINER_MODULE, AfterImport

PROGRESS_SECONDS = 0.2
# In the script's output_dir, and not in the folder below it: scripts look whether that one is empty.
MARKER = ".hf-ft-compare-{}"
# Numbers of a tensor that go into a digest: enough to tell two draws apart, and soon copied from a GPU.
SAMPLED = 4096


@dataclass
class Watch:
    """How one run of a comparison is watched.

    Attributes:
        file: where the process writes `{"step", "max_steps"}` while it trains and, at its end, all that was logged;
            another process writes into a file of its own beside it.
        subfolder: put below every TrainingArguments' `output_dir`, so that two runs of one script do not meet each
            other's checkpoints; None leaves that as it is.
        comparison: whose run this is; a subfolder of another comparison is emptied.
        seed_shift: added to the arguments' `seed` and `data_seed`.
        process: the id of the script's own process.
    """

    file: Path
    subfolder: str | None = None
    comparison: str = ""
    seed_shift: int = 0
    process: int = field(default_factory=os.getpid)

    def start(self) -> None:
        """Seed, and act on transformers' modules once the script has imported them."""
        seed_unseeded(self.seed_shift)
        AfterImport(TRAINER_MODULE, lambda module: _add_recorder(module, self)).watch()
        if self.subfolder or self.seed_shift:
            AfterImport(ARGUMENTS_MODULE, lambda module: _change_arguments(module, self)).watch()

    def own_file(self) -> Path:
        return self.file if os.getpid() == self.process else self.file.with_suffix(f".{os.getpid()}.json")

    def divert(self, args: Any) -> None:
        """Put the subfolder below `output_dir`, emptied of what another comparison left there.

        Raises:
            PluginError: it holds what no comparison has written.
        """
        # TRL makes its arguments from finished ones, which then come here a second time.
        if not self.subfolder or not args.output_dir or Path(args.output_dir).name == self.subfolder:
            return
        folder = Path(args.output_dir) / self.subfolder
        marker = folder.with_name(MARKER.format(self.subfolder))
        ours = marker.read_text(encoding="utf-8") if marker.is_file() else None
        if ours != self.comparison:
            if ours is None and folder.is_dir() and any(folder.iterdir()):
                raise PluginError(
                    f"compare: the run would write into {folder}, which holds files that no comparison wrote, and "
                    "might resume from them. Remove them, or give the script another output_dir.",
                    code="file-unusable",
                )
            if folder.is_dir():
                shutil.rmtree(folder)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(self.comparison, encoding="utf-8")
        args.output_dir = str(folder)


def seed_unseeded(seed: int) -> None:
    """Seed the global generators of random, numpy and torch, the latter two when they are imported.

    A script that seeds itself undoes that; `numpy.random.default_rng()`, which asks the system for a seed, gets a new
    one of ours at each call.
    """
    random.seed(seed)
    AfterImport("numpy.random", lambda module: _seed_numpy(module, seed)).watch()
    AfterImport("torch", lambda module: module.manual_seed(seed)).watch()


def _seed_numpy(module: types.ModuleType, own_seed: int) -> None:
    module.seed(own_seed)
    new, calls = module.default_rng, itertools.count()

    @functools.wraps(new)
    def default_rng(seed: Any = None) -> Any:
        return new([own_seed, next(calls)] if seed is None else seed)

    module.default_rng = default_rng  # type: ignore[attr-defined]


def _add_recorder(module: types.ModuleType, watch: Watch) -> None:
    from transformers import TrainerCallback

    trainings: list[dict[str, Any]] = []

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.next_report = 0.0
            self.initial: str | None = None
            self.training: dict[str, Any] = {}

        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            # The script may have set it since the arguments were made.
            watch.divert(args)
            self.initial = weights_digest(model)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                self.training = {"state": state, "process": os.getpid(), "initial": self.initial, "final": None}
                self.training["setting"] = evaluation_setting(args, kwargs.get("model"))
                self.training["folder"] = args.output_dir
                trainings.append(self.training)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero and time.monotonic() > self.next_report:
                self.next_report = time.monotonic() + PROGRESS_SECONDS
                _write(watch.own_file(), {"step": state.global_step, "max_steps": state.max_steps})

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if self.training:
                self.training["final"] = weights_digest(model)
            self.report_elsewhere()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.training and not fills_batches(args, kwargs.get("eval_dataloader")):
                self.training["setting"]["fills_batches"] = False

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.training and self.training["final"] is not None:
                self.report_elsewhere()

        def report_elsewhere(self) -> None:
            # A process of multiprocessing ends without the calls that atexit was given.
            if os.getpid() != watch.process:
                report()

    def report() -> None:
        # Those before a fork are the other process's.
        own = [training for training in trainings if training["process"] == os.getpid()]
        if own:
            states = [training["state"] for training in own]
            _write(
                watch.own_file(),
                {
                    "step": sum(state.global_step for state in states),
                    "max_steps": sum(state.max_steps for state in states),
                    "trainings": [
                        {
                            "step": training["state"].global_step,
                            "log": training["state"].log_history,
                            "initial": training["initial"],
                            "final": training["final"],
                            "setting": training["setting"],
                            "run": host_record(Path(training["folder"]), training["state"]),
                        }
                        for training in own
                    ],
                    "gpu_bytes": _peak_gpu_bytes(),
                },
            )

    atexit.register(report)
    module.DEFAULT_CALLBACKS.append(Recorder)


def host_record(folder: Path, state: Any) -> dict[str, Any] | None:
    """What the host has written of the training whose state this is; None of a stock run, and where it is gone."""
    from ..host.run_record import read_record

    record = read_record(folder)
    # A later training of the script may have the same folder.
    if record is None or (record["step"], len(record["log"])) != (state.global_step, len(state.log_history)):
        return None
    return record


def _change_arguments(module: types.ModuleType, watch: Watch) -> None:
    arguments = module.TrainingArguments
    prepare = arguments.__post_init__

    def __post_init__(self: Any) -> None:
        prepare(self)
        watch.divert(self)
        self.seed += watch.seed_shift
        if self.data_seed is not None:
            self.data_seed += watch.seed_shift

    arguments.__post_init__ = __post_init__


def evaluation_setting(args: Any, model: Any) -> dict[str, bool]:
    """What decides how stock Trainer computes an evaluation loss, for `Technique.loss_differs`."""
    dtypes = {weight.dtype for weight in model.parameters()} if hasattr(model, "parameters") else set()
    return {
        "grouped_by_length": getattr(args, "train_sampling_strategy", None) == "group_by_length",
        "generates": bool(getattr(args, "predict_with_generate", False)),
        "smoothed": args.label_smoothing_factor != 0,
        "is_encoder_decoder": bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)),
        "in_float32": {str(dtype) for dtype in dtypes} <= {"torch.float32"}
        and not (args.fp16_full_eval or args.bf16_full_eval),
        "fills_batches": True,
    }


def fills_batches(args: Any, loader: Any) -> bool:
    """Whether the last batch of an evaluation is as large as the others; False where that cannot be known."""
    dataset: Any = getattr(loader, "dataset", None)
    return hasattr(dataset, "__len__") and len(dataset) % (args.eval_batch_size * args.world_size) == 0


def weights_digest(model: Any) -> str | None:
    """A digest of a sample of every parameter, by its name; None where none can be read (held by other ranks)."""
    import torch

    content, found = hashlib.sha256(), False
    for name, parameter in model.named_parameters() if isinstance(model, torch.nn.Module) else ():
        plain = type(parameter) in (torch.nn.Parameter, torch.Tensor) and parameter.layout is torch.strided
        if not plain or parameter.is_meta or not parameter.numel():
            continue
        found = True
        step = max(1, parameter.numel() // SAMPLED)
        sample = parameter.detach().reshape(-1)[::step].cpu().contiguous()
        content.update(name.encode())
        content.update(sample.view(torch.uint8).numpy().tobytes())
    return content.hexdigest() if found else None


def _peak_gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0


def _write(file: Path, content: dict[str, Any]) -> None:
    scratch = file.with_name(file.name + ".tmp")
    scratch.write_text(json.dumps(content, default=plain), encoding="utf-8")
    scratch.replace(file)
