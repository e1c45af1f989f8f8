"""All parameters of a language model learn, with a standard Trainer script that watches its own memory.

Nothing here knows of any plug-in. By default a new Llama over bytes, of 19 million parameters, reads the reference
pages that come with Python (no download). One step is watched: what tensors take at each operation, as torch makes and
frees them. The second run draws its step beside the first one's.

    python examples/full_tune_low_memory.py --timeline runs/stock.json
    hf-ft run --with low-memory:algorithm=adalomo examples/full_tune_low_memory.py --learning_rate 3e-2 \\
        --timeline runs/adalomo.json --beside runs/stock.json
"""

import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MIB = 2**20


@dataclass
class ScriptArguments:
    model_name: str | None = field(default=None, metadata={"help": "pretrained model; default a small new Llama"})
    block_size: int = field(default=64, metadata={"help": "tokens of a row"})
    watched_step: int = field(default=3, metadata={"help": "the step whose memory is watched"})
    timeline: str | None = field(default=None, metadata={"help": "file for the watched step's memory, as JSON"})
    beside: str | None = field(default=None, metadata={"help": "another run's timeline, to draw both in one picture"})


@dataclass
class TuningArguments(TrainingArguments):
    output_dir: str = "runs/full-tune"
    learning_rate: float = 3e-4
    max_steps: int = 40
    per_device_train_batch_size: int = 2
    save_strategy: str = "no"
    logging_steps: float = 10
    report_to: str = "none"


class AliveTensors(TorchDispatchMode):
    """Bytes of all storages that are alive, noted after each operation."""

    def __init__(self, tensors):
        super().__init__()
        self.now, self.noted, self.known = 0, [], set()
        for tensor in tensors:
            self.add(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        self.noted.append(self.now)
        return result

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())

    def free(self, storage, size):
        self.known.discard(storage)
        self.now -= size


class WatchMemory(TrainerCallback):
    """Watches one optimizer step."""

    def __init__(self, step):
        self.step, self.alive = step, None

    def on_step_begin(self, args, state, control, *, model, optimizer, **kwargs):
        if state.global_step == self.step:
            kept = [one for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one)]
            self.alive = AliveTensors([*model.parameters(), *model.buffers(), *kept])
            self.alive.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step + 1 and self.alive is not None:
            self.alive.__exit__(None, None, None)


def rows_of(tokenizer, text, block_size):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    blocks = [ids[start : start + block_size] for start in range(0, len(ids) - block_size + 1, block_size)]
    return [{"input_ids": block, "labels": block} for block in blocks]


def draw(timelines, picture):
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for (name, timeline), style in zip(timelines.items(), ("--", "-"), strict=False):
        noted = [value / MIB for value in timeline["bytes"]]
        axes.plot([index / len(noted) for index in range(len(noted))], noted, style, label=name)
    axes.axhline(timeline["weights"] / MIB, color="0.6", linewidth=1, linestyle=":")
    axes.annotate("weights", (1, timeline["weights"] / MIB), ha="right", va="top", color="0.4")
    axes.set(xlabel="operations of one training step, first to last", ylabel="MiB of tensors", ylim=(0, None))
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(picture, dpi=120)


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, TuningArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    if script.model_name:
        tokenizer = AutoTokenizer.from_pretrained(script.model_name)
        model = AutoModelForCausalLM.from_pretrained(script.model_name)
    else:
        tokenizer = ByT5Tokenizer(extra_ids=0)
        size = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
        tokens = {"vocab_size": 384, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(**size, **tokens, max_position_embeddings=512))
    rows = rows_of(tokenizer, "\n".join(topics.values()), script.block_size)
    watch = WatchMemory(script.watched_step)
    train = [row for number, row in enumerate(rows) if number % 20]
    trainer = Trainer(model, args, train_dataset=train, eval_dataset=rows[::200], callbacks=[watch])
    trainer.train()
    weights = sum(weight.nbytes for weight in trainer.model.parameters())
    peak = max(watch.alive.noted)
    print(f"held-out loss: {trainer.evaluate()['eval_loss']:.3f}")
    print(f"peak of step {script.watched_step}: {peak / MIB:.0f} MiB, {peak / weights:.2f} times the weights")
    if script.timeline:
        file = Path(script.timeline)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"weights": weights, "bytes": watch.alive.noted}))
        if script.beside:
            other = Path(script.beside)
            timelines = {path.stem: json.loads(path.read_text()) for path in (other, file)}
            draw(timelines, file.with_suffix(".png"))
            print(f"both steps are drawn in {file.with_suffix('.png')}")


if __name__ == "__main__":
    main()
