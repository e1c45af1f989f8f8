"""The gallery's figures: how long each example takes on this machine, what it says, and its picture.

    python -m benchmarks.gallery [NAME ...] [--write] [--check]

runs the named examples, by default all, one after the other, once each and with one thread, so that the processor time
is what the run would take on an idle core, however busy the machine is; it holds no claim to a gate. `--write` puts
what came of them into examples/gallery.json, their pictures into examples/pictures/ and both into examples/README.md,
between `<!-- gallery: NAME -->` and `<!-- /gallery -->`. `--check` runs nothing: the exit status is 1 where the page is
not what the file says. Examples with `data` need the folder FT_DATA; for the others it is hidden, so that they show
what a reader without it sees.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, head

FILE = ROOT / "examples" / "gallery.json"
PAGE = ROOT / "examples" / "README.md"
PICTURES = ROOT / "examples" / "pictures"
BLOCK = re.compile(r"(<!-- gallery: (?P<name>[\w-]+) -->\n)(.*?)(<!-- /gallery -->)", re.DOTALL)
# What `hf-ft compare` says below its table.
COMPARED = r"→|^note:|^no difference"
OUT = "runs/gallery"
WIDTH = 118
WIDEST_PICTURE = 1400  # pixels
COLOURS = 64


@dataclass(frozen=True)
class Example:
    """Commands that a reader pastes in the repository's folder.

    Attributes:
        picture: the file that the last of them draws.
        says: a pattern of the lines of its output that are shown.
        data: what it takes from FT_DATA; empty: the script's built-in data.
        logs: a pattern of the lines that are shown of the log of `hf-ft compare`'s run with techniques.
        begins_without: a folder that an earlier run would have left.
    """

    commands: tuple[str, ...]
    picture: str
    says: str = COMPARED
    data: str = ""
    logs: str | None = None
    begins_without: str | None = None


def compared(name: str, techniques: str, script: str, *, seeds: int = 3, **about: Any) -> Example:
    told = f"--seeds {seeds} " if seeds > 1 else ""
    command = f"hf-ft compare {told}--output {OUT}/{name} {techniques} {script}"
    return Example((command,), f"{OUT}/{name}/compare.png", **about)


TASK = "task:imbalance=logit_adjust,frequencies=equal"
FLOWERS, REVIEWS, TREEBANK = "flowers, and a MobileNet", "film reviews, and a MiniLM", "a treebank, and a MiniLM"
FEW_REVIEWS = "examples/sentiment.py --keep_positive 1 --max_train_examples 300"

EXAMPLES = {
    "adaptive-lr": compared("adaptive-lr", "--with adaptive-lr", "examples/digits.py --label_noise 0.4"),
    "transfer": compared("transfer", "--with transfer", "examples/flowers.py", data=FLOWERS),
    "task": compared("task", f"--with {TASK}", "examples/sentiment.py"),
    "text2text": compared("text2text", "--with text2text", "examples/translate.py", seeds=1),
    "multitask": compared("multitask", "--with multitask", "examples/tag_parse_ner.py"),
    "behavioral": compared(
        "behavioral", "--with behavioral", "examples/learn_from_feedback.py", seeds=1, says=r"^eval_rewards|^\d+ →"
    ),
    "peft": compared("peft", "--with peft", FEW_REVIEWS, seeds=1, data=REVIEWS, logs="parameters learn"),
    "low-memory": Example(
        (
            f"python examples/full_tune_low_memory.py --timeline {OUT}/AdamW.json",
            "hf-ft run --with low-memory:algorithm=adalomo examples/full_tune_low_memory.py --learning_rate 3e-2 "
            f"--timeline {OUT}/AdaLomo.json --beside {OUT}/AdamW.json",
        ),
        f"{OUT}/AdaLomo.png",
        says="^(held-out|peak)",
    ),
    "sequential": Example(
        ("hf-ft stages examples/general_to_medical.yaml", "hf-ft sequential matrix stages"),
        "stages/hf_ft_forgetting.png",
        says=r"^(after|start|general|medical|answers|\w+, \w+ is better)\b|transfer",
        begins_without="stages",
    ),
    "layer-removal": Example(
        (
            f"python examples/continue_text.py --output_dir {OUT}/text --num_train_epochs 1",
            f"hf-ft run --with layer-removal:number=2,distill=1 examples/continue_text.py --model_name {OUT}/text "
            f"--output_dir {OUT}/shorter --num_train_epochs 0.25 --learning_rate 1e-3",
            f"hf-ft layer-removal curve {OUT}/text --data README.md --out {OUT}/layers",
        ),
        f"{OUT}/layers/layer_removal_curve.png",
        says="^held-out perplexity|^hf-ft run",
    ),
    "combined-tasks": compared(
        "combined-tasks",
        "--with multitask --with peft --with transfer:layer_decay=0.9 --with adaptive-lr",
        "examples/tag_parse_ner.py --max_train_examples 700 --max_eval_examples 40 --eval_steps 10 --save_steps 10 "
        "--logging_steps 10",
        seeds=1,
        data=TREEBANK,
        logs="parameters learn|transfer: step",
    ),
    "combined-pairs": compared(
        "combined-pairs",
        "--with text2text:target_tokens=450 --with low-memory:algorithm=compact-adamw --with adaptive-lr",
        "examples/translate.py",
        seeds=1,
    ),
}


def measured(example: Example) -> dict[str, Any]:
    """Seconds, processor seconds and the lines of an example's run; the load is that of the machine before it."""
    if example.begins_without is not None:
        shutil.rmtree(ROOT / example.begins_without, ignore_errors=True)
    load, said = os.getloadavg()[0], []
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in example.commands:
        parts = [part.strip() for line in run(command, example).splitlines() for part in line.split("; ")]
        said += [part for part in parts if re.search(example.says, part)]
    if example.logs is not None:
        log = (ROOT / example.picture).with_name("with.log").read_text(encoding="utf-8")
        said += [line.strip() for line in log.splitlines() if re.search(example.logs, line)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "commands": list(example.commands),
        "data": example.data,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "load_before": round(load, 1),
        "says": said,
    }


def run(command: str, example: Example) -> str:
    """What a command prints.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    here = {"hf-ft": [sys.executable, "-m", "hf_ft_plugins"], "python": [sys.executable]}
    first, *rest = shlex.split(command)
    hidden = {} if example.data else {"FT_DATA": "no-such-folder"}
    # Wide enough for lines that are not broken.
    environment = {**os.environ, **hidden, "COLUMNS": "2000", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*here[first], *rest], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def keep_picture(source: Path, file: Path) -> None:
    """A picture of few colours and bytes."""
    from PIL import Image

    with Image.open(source) as image:
        picture = image.convert("RGB")
    if picture.width > WIDEST_PICTURE:
        picture = picture.resize((WIDEST_PICTURE, round(picture.height * WIDEST_PICTURE / picture.width)))
    file.parent.mkdir(exist_ok=True)
    picture.quantize(COLOURS).save(file, optimize=True)


def block(name: str, about: Mapping[str, Any]) -> str:
    """What the page says of an example."""
    says = "\n".join(part for line in about["says"] for part in textwrap.wrap(line, WIDTH, subsequent_indent="    "))
    data = f" With the folder FT_DATA: {about['data']}." if about["data"] else ""
    return "\n".join(
        [
            "```bash",
            *(wrapped(command) for command in about["commands"]),
            "```",
            "",
            f"{minutes(about['cpu_seconds'])} of one core's time; on a GPU: not measured.{data}",
            "",
            "```text",
            says,
            "```",
            "",
            f"![{name}](pictures/{name}.png)",
            "",
        ]
    )


def wrapped(command: str) -> str:
    """In lines that a shell joins; an option and its value stand in one."""
    lines = [""]
    for part in re.split(r" (?=--?\w)", command):
        longer = f"{lines[-1]} {part}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= WIDTH - 4 else [*lines, part]
    return " \\\n  ".join(lines)


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def renewed(page: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page with its blocks as the file has them."""

    def new(match: re.Match[str]) -> str:
        about = found.get(match["name"])
        return match[0] if about is None else f"{match[1]}{block(match['name'], about)}{match[4]}"

    return BLOCK.sub(new, page)


def known() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"head": {}, "examples": {}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXAMPLES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args(argv)
    if unknown := set(asked.names) - set(EXAMPLES):
        parser.error(f"there is no example {', '.join(sorted(unknown))}, but {', '.join(EXAMPLES)}")
    if asked.check:
        text = PAGE.read_text(encoding="utf-8")
        return int(renewed(text, known()["examples"]) != text)
    for name in asked.names or EXAMPLES:
        about = measured(EXAMPLES[name])
        print(name, json.dumps(about, indent=1), flush=True)
        if asked.write:
            write(name, about)
    return 0


def write(name: str, about: dict[str, Any]) -> None:
    keep_picture(ROOT / EXAMPLES[name].picture, PICTURES / f"{name}.png")
    made = head([], 0)
    about |= {"commit": made["commit"], "date": made["date"]}
    content = known()
    content["head"] = {"machine": made["machine"], "versions": made["versions"]}
    content["examples"] |= {name: about}
    ordered = {one: content["examples"][one] for one in EXAMPLES if one in content["examples"]}
    FILE.write_text(json.dumps(content | {"examples": ordered}, indent=1) + "\n", encoding="utf-8")
    if PAGE.is_file():
        PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), ordered), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
