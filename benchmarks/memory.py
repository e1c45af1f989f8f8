"""How near `estimate_memory` is to the peak of a real Trainer run, which it never sees.

    python -m benchmarks.memory [--device cuda] [--quick] [--json] [--write]

`baseline` is measured: on the CPU the largest resident memory of a process of its own beyond what it was before the
model was made, on a GPU `max_memory_allocated`. `ratio` is estimate / measured. glibc keeps freed memory of small
blocks, and more of it from step to step; the gate's rows run with `MALLOC_MMAP_THRESHOLD_=262144`, with which it gives
back what is freed, and the conditions name the ratio without (`default_malloc`). `four_bytes` is the ratio of the rule
of four bytes a parameter. `noise` is the measurement against itself, A/A the first of them; `--quick` has this one
alone, and takes it for the noise of all.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import AutoConfig, Trainer, TrainingArguments

from benchmarks import process_memory, report
from benchmarks.process_memory import GIVEN_BACK
from benchmarks.report import Gate, Result
from hf_ft_plugins import with_plugins
from hf_ft_plugins.memory.estimate import estimate_memory
from hf_ft_plugins.registry import resolve

BENCHMARK = "memory"
LENGTH, BATCH, VOCABULARY = 256, 8, 8192
GATES = {"cpu": 0.15, "cuda": 0.10}
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", **WIDE},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8},
    "BertForSequenceClassification": {"model_type": "bert", **WIDE},
}
# optim, gradient_checkpointing, techniques
RUNS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "adamw": ("adamw_torch_fused", False, ()),
    "adamw, checkpointing": ("adamw_torch_fused", True, ()),
    "sgd": ("sgd", False, ()),
    "LoRA": ("adamw_torch_fused", False, ("peft",)),
    "LoRA on NF4, checkpointing": ("adamw_torch_fused", True, ("peft:quant=nf4",)),
    "3 layers removed, LoRA on int8": (
        "adamw_torch_fused",
        False,
        ("layer-removal:layers=2+3+4,max_degradation=none", "peft:quant=int8"),
    ),
}


def config_of(architecture: str, **changes: Any) -> Any:
    settings = MODELS[architecture] | changes
    config = AutoConfig.for_model(settings.pop("model_type"), vocab_size=VOCABULARY, **settings)
    config.architectures = [architecture]
    return config


def args_of(run: str, device: str, folder: str) -> TrainingArguments:
    optim, checkpointing, _ = RUNS[run]
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        optim=optim,
        gradient_checkpointing=checkpointing,
        use_cpu=device == "cpu",
        max_steps=3,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def measured(architecture: str, run: str, device: str) -> int:
    """Bytes that a run takes at its peak; to be called in a process of its own."""
    torch.set_num_threads(1)
    rows = [{"input_ids": torch.randint(5, VOCABULARY, (LENGTH,))} for _ in range(3 * BATCH)]
    for row in rows:
        row["labels"] = torch.tensor(1) if "Classification" in architecture else row["input_ids"]

    hosted = with_plugins(Trainer, *RUNS[run][2])

    def train(**changes: Any) -> None:
        model = getattr(transformers, architecture)(config_of(architecture, **changes))
        with tempfile.TemporaryDirectory() as folder:
            # With rows to evaluate, layer-removal keeps the original, as the estimate supposes.
            hosted(model, args_of(run, device, folder), train_dataset=rows, eval_dataset=rows[:BATCH]).train()

    # Code is loaded with the first run, which is not measured.
    small = {"hidden_size": 64, "intermediate_size": 64, "n_embd": 64}
    train(**{name: value for name, value in small.items() if name in MODELS[architecture]})
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        return torch.cuda.max_memory_allocated() - before
    before = process_memory.resident()
    process_memory.forget_peak()
    train()
    return process_memory.peak() - before


def in_a_process(architecture: str, run: str, device: str, environment: dict[str, str]) -> int:
    arguments = (architecture, run, device)
    return process_memory.in_a_process("benchmarks.memory", "measured", *arguments, environment=environment)


def measured_rows(asked: Namespace) -> Iterator[Result]:
    common = report.conditions(asked.device, length=LENGTH, batch=BATCH)
    noise = None
    for architecture in MODELS:
        for run, (_, _, techniques) in RUNS.items():
            real = in_a_process(architecture, run, asked.device, GIVEN_BACK)
            with tempfile.TemporaryDirectory() as folder:
                estimate = estimate_memory(
                    config_of(architecture),
                    args_of(run, asked.device, folder),
                    length=LENGTH,
                    techniques=map(resolve, techniques),
                )
            more: dict[str, Any] = {"four_bytes": round(estimate.weights_only / real, 3)}
            if noise is None or not asked.quick:
                again = in_a_process(architecture, run, asked.device, GIVEN_BACK)
                if noise is None:
                    yield report.row(
                        *(BENCHMARK, f"MiB at the peak, {architecture}, {run}: measured twice (A/A)"),
                        *(again / 2**20, real / 2**20),
                        ratio=again / real,
                        noise=abs(again / real - 1),
                        conditions=common,
                    )
                noise = abs(again / real - 1)
            if asked.device == "cpu" and not asked.quick:
                more["default_malloc"] = round(estimate.peak / in_a_process(architecture, run, "cpu", {}), 3)
            ratio, within = estimate.peak / real, GATES[asked.device]
            yield report.row(
                *(BENCHMARK, f"MiB at the peak, {architecture}, {run}", estimate.peak / 2**20, real / 2**20),
                ratio=ratio,
                noise=noise,
                gate=Gate("ratio", "<=", 1 + within) if ratio > 1 else Gate("ratio", ">=", 1 - within),
                conditions=common | more,
            )


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
