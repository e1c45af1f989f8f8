"""Peak memory of a run, each in a process of its own, and bytes a parameter."""

from __future__ import annotations

import tempfile
import weakref
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import process_memory, report
from benchmarks.low_memory import runs
from benchmarks.report import Gate, Result
from hf_ft_plugins.techniques.low_memory.bytes_used import bytes_per_parameter

BENCHMARK = "low_memory"
STEPS = 3
# technique, further arguments, gate: the ratio to AdamW in a stock Trainer.
RUNS: dict[str, tuple[str | None, dict[str, Any], float | None]] = {
    "AdamW": (None, {}, None),
    "AdamW, again": (None, {}, None),
    "stock SGD": (None, {"optim": "sgd"}, None),
    "stock 8-bit AdamW": (None, {"optim": "adamw_bnb_8bit"}, None),
    "fused AdamW": ("low-memory", {}, 0.80),
    "fused 8-bit AdamW": ("low-memory:algorithm=adamw-8bit", {}, 0.55),
    "compact AdamW": ("low-memory:algorithm=compact-adamw", {}, None),
    "LOMO": ("low-memory:algorithm=lomo,clip=none", {}, 0.35),
    "LOMO, two passes": ("low-memory:algorithm=lomo", {}, 0.35),
    "AdaLomo": ("low-memory:algorithm=adalomo", {}, 0.40),
    "GaLore": ("low-memory:algorithm=galore", {}, None),
    "APOLLO": ("low-memory:algorithm=apollo", {}, None),
    "APOLLO-Mini": ("low-memory:algorithm=apollo-mini", {}, None),
    "SinkGD": ("low-memory:algorithm=sinkgd", {}, None),
    "Muon": ("low-memory:algorithm=muon", {}, None),
    "LISA": ("low-memory:algorithm=lisa", {}, None),
    "BAdam": ("low-memory:algorithm=badam", {}, None),
    "MeZO": ("low-memory:algorithm=mezo", {}, None),
}
QUICK = ("AdamW", "AdamW, again", "fused AdamW", "fused 8-bit AdamW", "LOMO", "AdaLomo")


def resident(run: str, device: str) -> int:
    """Bytes that a run takes at its peak; to be called in a process of its own."""
    torch.set_num_threads(1)
    technique, arguments, _ = RUNS[run]
    before = weights = 0

    def around(trainer: Any) -> None:
        nonlocal before, weights
        weights = sum(one.nbytes for one in trainer.model.parameters())
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            before = process_memory.resident()
            process_memory.forget_peak()
        trainer.train()

    runs.train(technique, device, steps=STEPS, around=around, **arguments)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else process_memory.peak()
    return peak - before + weights


class Alive(TorchDispatchMode):
    """Bytes of the storages of all tensors that were alive at once."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


def counted(run: str, device: str) -> int:
    """Bytes of tensors that are alive at the peak, as torch makes and frees them."""
    torch.set_num_threads(1)
    technique, arguments, _ = RUNS[run]
    peak = 0

    def around(trainer: Any) -> None:
        nonlocal peak
        with Alive((*trainer.model.parameters(), *trainer.model.buffers())) as alive:
            trainer.train()
        peak = alive.peak

    runs.train(technique, device, steps=STEPS, around=around, **arguments)
    return peak


def in_a_process(function: str, run: str, device: str) -> int:
    arguments = (run, device)
    return process_memory.in_a_process(__name__, function, *arguments, environment=process_memory.GIVEN_BACK)


def rows(asked: Namespace) -> Iterator[Result]:
    common = report.conditions(asked.device, length=runs.LENGTH, batch=1, parameters=98_000_000, dtype="float32")
    names = QUICK if asked.quick else tuple(RUNS)
    found = {name: in_a_process("resident", name, asked.device) for name in names}
    counts = {} if asked.quick else {name: in_a_process("counted", name, asked.device) for name in names}
    noise = abs(found["AdamW, again"] / found["AdamW"] - 1)
    for name in names[1:]:
        more = {}
        if name in counts:
            more = {
                "counted": round(counts[name] / 2**20, 1),
                "counted_ratio": round(counts[name] / counts["AdamW"], 4),
            }
        bound = RUNS[name][2]
        also = {}
        if bound is not None and name in counts:
            also = {f"torch's own count <= {bound}": more["counted_ratio"] <= bound}
        yield report.row(
            *(BENCHMARK, f"MiB at the peak: {name} against AdamW in a stock Trainer"),
            *(found[name] / 2**20, found["AdamW"] / 2**20),
            ratio=found[name] / found["AdamW"],
            noise=noise,
            gate=Gate("ratio", "<=", bound) if bound is not None else None,
            also=also,
            conditions={**common, **more, "technique": RUNS[name][0] or "none"},
        )


def bytes_rows(asked: Namespace) -> Iterator[Result]:
    """Bytes of weight and state a parameter after two steps, and of its gradient where it is kept."""
    found = {}
    for name, technique in (
        ("AdamW", "low-memory:fused=false"),
        ("compact AdamW", "low-memory:algorithm=compact-adamw,fused=false"),
        ("compact AdamW, fused", "low-memory:algorithm=compact-adamw"),
    ):
        model = runs.language_model(**{**runs.SIZES, "num_hidden_layers": 2})
        rows = runs.texts(2)
        with tempfile.TemporaryDirectory() as folder:
            trainer = runs.trainer_of(model, technique, asked.device, steps=2, rows=rows, folder=folder)
            trainer.train()
        # Under accelerate's wrapper.
        found[name] = bytes_per_parameter(trainer.optimizer.optimizer)
    for name, bound in (("compact AdamW", None), ("compact AdamW, fused", 7)):
        yield report.row(
            *(BENCHMARK, f"bytes a parameter, weight, state and gradient: {name} against AdamW"),
            *(found[name], found["AdamW"]),
            ratio=found[name] / found["AdamW"],
            gate=None if bound is None else Gate("ours", "<=", bound),
            conditions=report.conditions(asked.device),
        )
