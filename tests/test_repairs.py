"""A program that knows no word of our texts mends ten runs by `mend` alone, within three tries.

`Run` is what the program has in hand, `apply` takes one step of a mend, whatever the fault. Each run is the command
itself, in a process forked from one that has imported transformers.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_ft_plugins.technique import parse_spec

SCRIPT = Path(__file__).parent / "scripts" / "train_from_files.py"
TRIES = 3

Rows = list[dict[str, Any]]


@dataclasses.dataclass
class Run:
    """One call of `hf-ft`.

    Attributes:
        techniques: name and options of each, in order.
        arguments: of the script's TrainingArguments; of `check`, its --arg.
        flags: of `hf-ft` itself; None for one that takes no value.
        rows: of the data, by split.
    """

    command: str = "run"
    techniques: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)
    model_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[str, Rows] = dataclasses.field(default_factory=dict)
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


# ---- the program ----


def repaired(run, start, *, read=lambda refusal: refusal["mend"]):
    """Start the run, and mend it by the best of what its refusals offer; the codes of these, None where it gave up."""
    codes = []
    for _ in range(TRIES):
        refusal = start(run)
        if refusal is None:
            return codes
        codes.append(refusal["code"])
        if not read(refusal):
            return None
        apply(read(refusal)[0], run)
    return codes if start(run) is None else None


def apply(step, run):
    step = {**step}
    getattr(Steps, step.pop("do").replace("-", "_"))(run, *step.values())


class Steps:
    """What each step does to a run; the arguments are its keys, in their order."""

    def set_option(run, technique, option, value):
        options_of(run, technique)[option] = value

    def remove_option(run, technique, option):
        options_of(run, technique).pop(option, None)

    def rename_option(run, technique, old, new):
        options = options_of(run, technique)
        options[new] = options.pop(old)

    def add_technique(run, technique, options):
        run.techniques.append((technique, options))

    def rename_technique(run, old, new):
        run.techniques = [(new if name == old else name, options) for name, options in run.techniques]

    def remove_technique(run, technique):
        run.techniques = [one for one in run.techniques if one[0] != technique]

    def name_once(run, technique, options):
        Steps.remove_technique(run, technique)
        run.techniques.append((technique, options))

    def set_argument(run, name, value):
        run.arguments[name] = value

    def rename_argument(run, old, new):
        run.arguments[new] = run.arguments.pop(old)

    def add_flag(run, flag, value):
        run.flags[flag] = value

    def set_variable(run, name, value):
        run.variables[name] = value

    def use_checkpoint(run, path):
        run.arguments["resume_from_checkpoint"] = path

    def set_model_argument(run, name, value):
        run.model_arguments[name] = value

    def drop_rows(run, split, rows):
        run.rows[split] = [row for number, row in enumerate(run.rows[split]) if number not in rows]

    def rename_column(run, old, new):
        for rows in run.rows.values():
            rows[:] = [{new if name == old else name: value for name, value in row.items()} for row in rows]

    def remove_column(run, column):
        for rows in run.rows.values():
            rows[:] = [{name: value for name, value in row.items() if name != column} for row in rows]

    def encode_column(run, column):
        known = sorted({row[column] for row in run.rows["train"]})
        for rows in run.rows.values():
            rows[:] = [{**row, column: known.index(row[column])} for row in rows]

    def all_of(run, steps):
        for step in steps:
            apply(step, run)


def options_of(run, technique):
    return next(options for name, options in run.techniques if name == technique)


# ---- what it starts ----


@pytest.fixture
def start(tmp_path, processes):
    """Calls `hf-ft` with a run; what it read at the end of stderr where that was refused, else None."""
    model = tmp_path / "model"
    config = {"model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 8}
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))

    def call(run):
        (tmp_path / "out" / "done.json").unlink(missing_ok=True)
        process = processes.Process(target=be_hf_ft, args=(tmp_path, words(run, tmp_path), run.variables))
        process.start()
        process.join()
        output, said = ((tmp_path / name).read_text() for name in ("stdout.txt", "stderr.txt"))
        if process.exitcode == 0:
            if run.command == "run":
                assert json.loads((tmp_path / "out" / "done.json").read_text())["steps"] > 0
            return None
        assert process.exitcode == 2, said
        lines = (said if run.command == "run" else output).splitlines()
        return json.loads(lines[-1])

    return call


def words(run, folder):
    """The command line of a run, whose data and recipe are written into a folder."""
    (folder / "recipe.json").write_text(json.dumps({"techniques": [{name: given} for name, given in run.techniques]}))
    flags = [word for flag, value in run.flags.items() for word in (flag, value) if word is not None]
    ours = ["hf-ft", run.command, "--json", "--recipe", "recipe.json", *map(str, flags)]
    arguments = {name: value for name, value in run.arguments.items() if value is not None}
    if run.command == "check":
        given = (word for name, value in arguments.items() for word in ("--arg", f"{name}={value}"))
        return [*ours, "--model", "model", *given]
    (folder / "data").mkdir(exist_ok=True)
    for split, rows in run.rows.items():
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = ["--data", "data", "--model", "model", "--model_arguments", json.dumps(run.model_arguments)]
    theirs += [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [*ours, str(SCRIPT), *theirs]


def be_hf_ft(folder, arguments, variables):
    os.chdir(folder)
    os.environ.update(variables)
    for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = arguments
    from hf_ft_plugins.cli.app import main

    main()


# ---- ten faults ----


def rows(size, seed, label="labels", value=int):
    import random

    random = random.Random(seed)
    tokens = [[random.randrange(32) for _ in range(8)] for _ in range(size)]
    return [{"input_ids": row, label: value(row[0] >= 16)} for row in tokens]


def sound(*techniques, **arguments):
    """A run of two epochs that nothing is wrong with."""
    given = {"output_dir": "out", "num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1}
    given |= {
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "eval_strategy": "epoch",
        "disable_tqdm": True,
    }
    return Run(
        techniques=[parse_spec(spec) for spec in techniques],
        arguments=given | arguments,
        rows={"train": rows(16, 0), "eval": rows(8, 1)},
    )


def nan_labels():
    run = sound("task", eval_strategy="no")
    run.model_arguments = {"num_labels": 1, "problem_type": "regression"}
    run.rows = {"train": rows(16, 0, value=float), "eval": rows(8, 1, value=float)}
    for number in (3, 11):
        run.rows["train"][number]["labels"] = float("nan")
    return run


def other_label_column():
    run = sound("task")
    run.rows = {"train": rows(16, 0, label="category"), "eval": rows(8, 1, label="category")}
    return run


def over_budget():
    arguments = {"per_device_train_batch_size": 64}
    return Run("check", arguments=arguments, flags={"--memory": None, "--length": 8, "--budget": 0.0004})


FAULTS = {
    "an option with a typing error": (lambda: sound("adaptive-lr:patiense=2"), "option-unknown"),
    "a technique with a typing error": (lambda: sound("adaptiv-lr"), "technique-unknown"),
    "an option out of its range": (lambda: sound("adaptive-lr:patience=0"), "option-value"),
    "two techniques that exclude each other": (lambda: sound("task", "text2text"), "technique-conflict"),
    "nothing is evaluated": (lambda: sound("adaptive-lr:metric=accuracy", eval_strategy="no"), "training-arguments"),
    "labels that are not a number": (nan_labels, "not-finite"),
    "labels in a column of another name": (other_label_column, "data-columns"),
    "more memory than there is": (over_budget, "memory-over-budget"),
    "a checkpoint that was damaged": (
        lambda: sound("adaptive-lr", save_strategy="epoch", resume_from_checkpoint="out/checkpoint-8"),
        "checkpoint-damaged",
    ),
    "a checkpoint of other options": (
        lambda: sound("adaptive-lr:patience=5", save_strategy="epoch", resume_from_checkpoint="out/checkpoint-4"),
        "checkpoint-other-run",
    ),
}


def prepare(name, folder, start):
    """What has to be there before the fault: the checkpoints of an earlier run."""
    if "checkpoint" in name:
        assert start(sound("adaptive-lr", save_strategy="epoch")) is None
    if "damaged" in name:
        weights = folder / "out" / "checkpoint-8" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")


@pytest.mark.parametrize("name", FAULTS)
def test_a_program_mends_the_run_by_what_the_refusal_offers(name, tmp_path, start):
    make, code = FAULTS[name]
    prepare(name, tmp_path, start)
    assert repaired(make(), start) == [code]


@pytest.mark.parametrize("name", FAULTS)
def test_without_mends_the_program_gives_up(name, tmp_path, start):
    """Control: the runs are refused, and do not mend themselves."""
    make, _ = FAULTS[name]
    prepare(name, tmp_path, start)
    assert repaired(make(), start, read=lambda refusal: []) is None


def test_the_program_knows_every_step():
    """But for those that change the machine: a package to install, a launcher of several processes."""
    from hf_ft_plugins.mends import vocabulary

    steps = {name for name in vocabulary() if not hasattr(Steps, name.replace("-", "_"))}
    assert steps == {"install", "launch-with"}
    for name, (keys, _) in vocabulary().items():
        if name not in steps:
            assert getattr(Steps, name.replace("-", "_")).__code__.co_argcount == len(keys) + 1


def test_two_faults_at_once_take_two_tries(start):
    run = sound("adaptiv-lr:patiense=2")
    assert repaired(run, start) == ["technique-unknown", "option-unknown"]
    assert run.techniques == [("adaptive-lr", {"patience": "2"})]
