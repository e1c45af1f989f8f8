"""`hf-ft`: list, show, check, run and compare techniques, explain what is refused, and start a new one."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.completion import completion_init

from .. import registry
from ..errors import PluginError
from ..host import state
from ..option_text import default_text
from ..technique import Technique
from .checkpoint import app as checkpoint
from .completion import VARIABLE, Shell, install_script, script_of, technique_names
from .explaining import explain
from .hosting import Hosting
from .options import (
    AllowChanged,
    AsJson,
    AsModule,
    Debug,
    Only,
    OnlyBuiltin,
    Recipe,
    RefusalAsJson,
    Script,
    ScriptArguments,
    With,
    keep_third_parties_out,
    log_to_stderr,
)
from .planning import memory_estimate, model_without_weights
from .plugin_facts import row_of
from .record import Watch
from .refusals import Asked, show_complaint, show_refusal
from .remembered_facts import facts_of
from .run import run as run_script
from .technique_commands import WithTechniqueCommands

# What follows the script belongs to the script, untouched.
SCRIPT_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}

app = typer.Typer(
    name="hf-ft",
    cls=WithTechniqueCommands,
    help="Fine-tuning techniques as plug-ins for the Hugging Face Trainer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(checkpoint, name="checkpoint")
console = Console()


def _version(ctx: typer.Context, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        print(f"hf-ft-plugins {version(registry.DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def hf_ft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tuning techniques as plug-ins for the Hugging Face Trainer."""


@app.command("list")
def list_techniques(as_json: AsJson = False, only_builtin: OnlyBuiltin = False) -> None:
    """What is installed, from which distribution; a plug-in that cannot be imported is listed with its error."""
    keep_third_parties_out(only_builtin)
    rows = [facts.row for facts in facts_of(registry.offers()) if facts is not None]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("technique", "from", "what it does", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Brackets in a plug-in's words are no markup of ours.
        words = escape(row.get("error") or row["summary"])
        what = f"[red]cannot be imported: {words}[/red]" if "error" in row else words
        origin = f"{row['distribution']} {row['version']}"
        table.add_row(f"[bold cyan]{escape(row['name'])}[/]", escape(origin), what)
    console.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The technique's name.", autocompletion=technique_names)],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Everything about one technique: where it comes from, the hooks it answers, its options."""
    offer = registry.find(name)
    row = row_of(offer, offer.load())
    if as_json:
        print(json.dumps(row, indent=1))
        return
    origin = f"({row['distribution']} {row['version']}): {row['summary']}"
    console.print(f"[bold cyan]{escape(row['name'])}[/] {escape(origin)}")
    console.print(f"answers: {', '.join(row['hooks']) or '(no hook)'}")
    table = Table("option", "type", "default", "help", box=None, header_style="bold")
    for info in row["options"]:
        table.add_row(*map(escape, (info["name"], info["type"], default_text(info["default"]), info["help"])))
    console.print(table)


@app.command()
def check(
    with_: With = None,
    recipe: Recipe = None,
    model: Annotated[
        str | None, typer.Option(help="A model's folder or hub name: what the techniques would do with it.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Estimate, for --model, the peak memory of a training step.")
    ] = False,
    length: Annotated[int, typer.Option(help="With --memory: tokens of a row.")] = 512,
    budget: Annotated[float | None, typer.Option(help="With --memory: GiB that there are; more is an error.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="With --memory: a TrainingArguments field, again for more."),
    ] = None,
    only_builtin: OnlyBuiltin = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """The plan before training: which technique answers which hook, and every conflict. Exit status 2 if any."""
    from .recipes import chosen_techniques

    keep_third_parties_out(only_builtin)
    techniques = chosen_techniques(with_, recipe)
    plan = _plan(techniques)
    empty = model_without_weights(model) if model else None
    plans = {} if empty is None else {technique.name: technique.plan_for(empty) for technique in techniques}
    estimate = None
    if memory:
        estimate = memory_estimate(model, arguments or [], length, budget, techniques)
    idle = {technique.name: found for technique in techniques if (found := technique.idle_options())}
    if as_json:
        about = {"techniques": state.describe(techniques), "hooks": plan, "model": plans, "idle": idle}
        if estimate is not None:
            about["memory"] = estimate.as_dict()
        print(json.dumps(about, indent=1))
        return
    for technique in techniques:
        origin = f"({' '.join(registry.origin(technique))})"
        console.print(f"[bold cyan]{escape(str(technique))}[/]  {escape(origin)}")
    table = Table("hook", "answered by", box=None, header_style="bold")
    for hook, names in plan.items():
        table.add_row(hook, ", then ".join(names))
    console.print(table)
    for name, words in plans.items():
        if words:
            console.print(f"[bold cyan]{name}[/] on {escape(str(model))}:")
            console.print(words, markup=False, highlight=False)
    if estimate is not None:
        console.print(f"memory: {estimate}", highlight=False)
    for name, options in idle.items():
        for option, reason in options.items():
            console.print(escape(f"{name}: option {option} has no effect: {reason}."), style="yellow", highlight=False)
    console.print("[green]no conflicts[/]")


@app.command(context_settings=SCRIPT_SETTINGS)
def run(
    script: Script,
    arguments: ScriptArguments = None,
    with_: With = None,
    recipe: Recipe = None,
    as_module: AsModule = False,
    only: Only = None,
    only_builtin: OnlyBuiltin = False,
    allow_changed_plugins: AllowChanged = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in output_dir, if there is one.")
    ] = False,
    record: Annotated[Path | None, typer.Option(hidden=True)] = None,
    output_subfolder: Annotated[str | None, typer.Option(hidden=True)] = None,
    comparison: Annotated[str, typer.Option(hidden=True)] = "",
    seed_shift: Annotated[int, typer.Option(hidden=True)] = 0,
    as_json: RefusalAsJson = False,
    debug: Debug = False,
) -> Any:
    """Run a Trainer script that nobody edited, with techniques."""
    from .recipes import chosen_techniques

    keep_third_parties_out(only_builtin)
    techniques = chosen_techniques(with_, recipe)
    if not techniques and record is None:
        raise PluginError(
            "run: no technique is named. Add --with NAME or --recipe FILE; `hf-ft list` shows the names.",
            code="command-line",
        )
    if allow_changed_plugins:
        os.environ[state.ALLOW_CHANGED_VARIABLE] = "1"
    if resume:
        os.environ[state.RESUME_VARIABLE] = "1"
    log_to_stderr()
    watch = None if record is None else Watch(record, output_subfolder, comparison, seed_shift)
    # Carried out by `main`, outside of click, which would swallow the script's own exceptions and exit status.
    return lambda: run_script(Hosting(techniques, only), script, arguments or [], as_module=as_module, watch=watch)


@app.command(context_settings=SCRIPT_SETTINGS)
def compare(
    script: Script,
    arguments: ScriptArguments = None,
    with_: With = None,
    recipe: Recipe = None,
    as_module: AsModule = False,
    only: Only = None,
    only_builtin: OnlyBuiltin = False,
    output: Annotated[Path, typer.Option(help="Where the picture, the table and both runs' logs are written.")] = Path(
        "hf-ft-compare"
    ),
    seeds: Annotated[
        int,
        typer.Option(help="Run both so often, each time with another seed; a verdict needs 2 or more, 3 are a start."),
    ] = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a script without and with the techniques, same seed, and show the two side by side."""
    from .compare.comparison import compare_runs
    from .recipes import chosen_techniques

    keep_third_parties_out(only_builtin)
    techniques = chosen_techniques(with_, recipe)
    if not techniques:
        raise PluginError("compare: no technique is named. Add --with NAME or --recipe FILE.", code="command-line")
    extra = (["--module"] if as_module else []) + (["--only", only] if only else [])
    compare_runs(
        techniques, [*extra, script, *(arguments or [])], output, console=console, as_json=as_json, seeds=seeds
    )


@app.command(context_settings=SCRIPT_SETTINGS)
def suggest(
    script: Script,
    arguments: ScriptArguments = None,
    as_module: AsModule = False,
    budget: Annotated[
        float | None, typer.Option(help="GiB of memory that there are; default: what the run's device has.")
    ] = None,
    only_builtin: OnlyBuiltin = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Look at a script's model, data and arguments without training: which techniques would help, and why."""
    from .suggest.command import suggest as suggest_for

    keep_third_parties_out(only_builtin)
    # As of `run`: outside of click.
    return lambda: suggest_for(
        script, arguments or [], as_module=as_module, budget=budget, as_json=as_json, console=console
    )


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="A run's output_dir, or compare's.")],
    output: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """One page of runs that needs nothing else: curves, decisions, what each technique reports, how to repeat it."""
    from .report import command

    file, found = command.write_report(folders, output, title)
    if as_json:
        print(command.as_json(found))
    else:
        console.print(f"{len(found.runs)} run{'s' * (len(found.runs) > 1)}: {escape(str(file))}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The new technique's name, for example freeze-embeddings.")],
    folder: Annotated[Path, typer.Option(help="Where to put the package's folder.")] = Path("."),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start a package with a technique of your own: it installs, is listed, and passes its own tests."""
    from .new import scaffold

    made = scaffold(name, folder)
    if as_json:
        print(json.dumps({"package": str(made)}))
        return
    package = escape(str(made))
    console.print(f"made {package}\nNext: [bold]pip install -e {package}[/] and [bold]pytest {package}[/]")


app.command()(explain)


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell.")],
    install: Annotated[bool, typer.Option("--install", help="Let it read the script whenever it starts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the script by which a shell completes techniques, options and values at the TAB key."""
    file = install_script(shell) if install else None
    if as_json:
        print(json.dumps({"shell": shell, "installed_in": str(file)} if install else {"script": script_of(shell)}))
    elif install:
        print(f"{shell} completes hf-ft from its next start on, by {file}")
    else:
        print(script_of(shell), end="")


def main() -> None:
    """The command's entry point; turns our errors into one paragraph and exit status 2."""
    # The script that a command runs gets an argv of its own.
    arguments = sys.argv[1:]
    Asked.debug = Asked.as_json = False
    if VARIABLE in os.environ:
        completion_init()
    try:
        todo = app(args=arguments, prog_name="hf-ft", standalone_mode=False)
        status = todo() if callable(todo) else todo
    except PluginError as error:
        show_refusal(error, arguments)
        status = 2
    except Exception as error:
        # click's own complaints about the command line; it is vendored by typer, so it is known by its method only.
        if not hasattr(error, "format_message"):
            raise
        show_complaint(error, arguments)
        status = getattr(error, "exit_code", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _plan(techniques: tuple[Technique, ...]) -> dict[str, list[str]]:
    plan: dict[str, list[str]] = {}
    for technique in techniques:
        for hook in filter(technique.answers, technique.hooks()):
            plan.setdefault(hook, []).append(technique.name)
    return plan
