"""On paper: what seven billion parameters take, by the estimate, and the part that holds it."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator

from transformers import AutoConfig, TrainingArguments

from benchmarks import report
from benchmarks.report import Gate, Result
from hf_ft_plugins.memory.estimate import GIB, estimate_memory
from hf_ft_plugins.registry import resolve

BENCHMARK = "low_memory"
# Llama-2-7B.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LENGTH = 512
# The gate is on the least; torchtune has 13.99 GB for such a model, and does not keep the optimizer's state.
ALGORITHMS = (
    *("script", "adamw-8bit", "compact-adamw", "lomo", "adalomo", "galore", "apollo", "apollo-mini"),
    *("sinkgd", "muon", "lisa", "badam", "mezo"),
)
GATED = "adalomo"


def rows(asked: Namespace) -> Iterator[Result]:
    config = AutoConfig.for_model("llama", dtype="bfloat16", **SIZES)
    config.architectures = ["LlamaForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=1, gradient_checkpointing=True, use_cpu=True, optim="adamw_torch_fused"
        )
        stock = estimate_memory(config, args, length=LENGTH)
        for name in ALGORITHMS:
            technique = resolve(f"low-memory:algorithm={name}")
            ours = estimate_memory(config, args, length=LENGTH, techniques=[technique])
            parts = {part: round(value / GIB, 2) for part, value in ours.as_dict().items() if isinstance(value, int)}
            yield report.row(
                *(BENCHMARK, f"GiB at the peak on paper, 7B, bfloat16, checkpointing: {name} against AdamW"),
                *(ours.peak / GIB, stock.peak / GIB),
                ratio=ours.peak / stock.peak,
                gate=Gate("ours", "<", 16.0) if name == GATED else None,
                conditions=report.conditions("cpu", length=LENGTH, batch=1, phase=ours.phase, **parts),
            )
