"""`hf-ft`: list, show, check, run and compare techniques, and start a new one."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import registry
from ..errors import OptionError, PluginError
from ..host import hooks, state
from ..technique import Technique
from .checkpoint import app as checkpoint
from .technique_commands import WithTechniqueCommands

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
errors = Console(stderr=True, soft_wrap=True, highlight=False)

# What follows the script belongs to the script, untouched.
SCRIPT_SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}

With = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", help="A technique, as name or name:option=value,option=value. May be repeated."),
]
Recipe = Annotated[
    Path | None, typer.Option(help="A YAML file with the same list under the key 'techniques'; --with comes after it.")
]
OnlyBuiltin = Annotated[bool, typer.Option("--only-builtin", help="Keep third-party techniques out.")]
AsModule = Annotated[bool, typer.Option("-m", "--module", help="SCRIPT names a module, as for python -m.")]
Only = Annotated[str | None, typer.Option(help="Act only on trainers of this class (or its subclasses), by its name.")]
AllowChanged = Annotated[
    bool,
    typer.Option("--allow-changed-plugins", help="Resume from a checkpoint that was made with other techniques."),
]
Script = Annotated[str, typer.Argument(metavar="SCRIPT", help="The training script (or module, with -m).")]
ScriptArguments = Annotated[list[str] | None, typer.Argument(metavar="ARGS...", help="Its own arguments.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show our own traceback with an error.")]


@app.command("list")
def list_techniques(as_json: AsJson = False, only_builtin: OnlyBuiltin = False) -> None:
    """What is installed, from which distribution; a plug-in that cannot be imported is listed with its error."""
    _keep_third_parties_out(only_builtin)
    rows = [_row(offer) for offer in registry.offers()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("technique", "from", "what it does", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # Brackets in a plug-in's words are no markup of ours.
        words = escape(row.get("error") or row["summary"])
        what = f"[red]cannot be imported: {words}[/red]" if "error" in row else words
        table.add_row(f"[bold cyan]{row['name']}[/]", f"{row['distribution']} {row['version']}", what)
    console.print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The technique's name.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Everything about one technique: where it comes from, the hooks it answers, its options."""
    offer = registry.find(name)
    row = _row(offer, technique=offer.load())
    if as_json:
        print(json.dumps(row, indent=1))
        return
    console.print(f"[bold cyan]{row['name']}[/] ({row['distribution']} {row['version']}): {row['summary']}")
    console.print(f"answers: {', '.join(row['hooks']) or '(no hook)'}")
    table = Table("option", "type", "default", "help", box=None, header_style="bold")
    for info in row["options"]:
        table.add_row(info["name"], info["type"], json.dumps(info["default"]), info["help"])
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
    _keep_third_parties_out(only_builtin)
    techniques = _techniques(with_, recipe)
    plan = _plan(techniques)
    empty = _without_weights(model) if model else None
    plans = {} if empty is None else {technique.name: technique.plan_for(empty) for technique in techniques}
    estimate = _memory(model, arguments or [], length, budget, techniques) if memory else None
    if as_json:
        about = {"techniques": state.describe(techniques), "hooks": plan, "model": plans}
        if estimate is not None:
            about["memory"] = estimate.as_dict()
        print(json.dumps(about, indent=1))
        return
    for technique in techniques:
        console.print(f"[bold cyan]{technique}[/]  ({' '.join(registry.origin(technique))})")
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
    record: Annotated[Path | None, typer.Option(hidden=True)] = None,
    output_subfolder: Annotated[str | None, typer.Option(hidden=True)] = None,
    debug: Debug = False,
) -> Any:
    """Run a Trainer script that nobody edited, with techniques."""
    from .run import Hosting
    from .run import run as run_script

    _keep_third_parties_out(only_builtin)
    techniques = _techniques(with_, recipe)
    if not techniques and record is None:
        raise PluginError("run: no technique is named. Add --with NAME or --recipe FILE; `hf-ft list` shows the names.")
    if allow_changed_plugins:
        os.environ[state.ALLOW_CHANGED_VARIABLE] = "1"
    _tell_what_happens()
    if record is not None:
        from .record import watch

        watch(record, output_subfolder)
    # Carried out by `main`, outside of click, which would swallow the script's own exceptions and exit status.
    return lambda: run_script(Hosting(techniques, only), script, arguments or [], as_module=as_module)


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
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a script without and with the techniques, same seed, and show the two side by side."""
    from .compare import compare_runs

    _keep_third_parties_out(only_builtin)
    techniques = _techniques(with_, recipe)
    if not techniques:
        raise PluginError("compare: no technique is named. Add --with NAME or --recipe FILE.")
    extra = (["--module"] if as_module else []) + (["--only", only] if only else [])
    compare_runs(techniques, [*extra, script, *(arguments or [])], output, console=console, as_json=as_json)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The new technique's name, for example freeze-embeddings.")],
    folder: Annotated[Path, typer.Option(help="Where to put the package's folder.")] = Path("."),
    debug: Debug = False,
) -> None:
    """Start a package with a technique of your own: it installs, is listed, and passes its own tests."""
    from .new import scaffold

    made = scaffold(name, folder)
    console.print(f"made {made}\nNext: [bold]pip install -e {made}[/] and [bold]pytest {made}[/]")


def main() -> None:
    """The command's entry point; turns our errors into one paragraph and exit status 2."""
    arguments = sys.argv[1:]
    from .run import one_paragraph

    try:
        todo = app(args=arguments, prog_name="hf-ft", standalone_mode=False)
        status = todo() if callable(todo) else todo
    except PluginError as error:
        errors.print(one_paragraph(error, debug="--debug" in arguments), markup=False)
        status = 2
    except Exception as error:
        # click's own complaints about the command line; it is vendored by typer, so it is known by its method only.
        if not hasattr(error, "format_message"):
            raise
        error.show()  # type: ignore[attr-defined]
        status = getattr(error, "exit_code", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _tell_what_happens() -> None:
    """Show our own log on stderr: which techniques run, which checkpoint is resumed; on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("hf-ft: %(message)s"))
        logger = logging.getLogger("hf_ft_plugins")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _keep_third_parties_out(only_builtin: bool) -> None:
    if only_builtin:
        os.environ[registry.ONLY_BUILTIN_VARIABLE] = "1"


def _techniques(with_: list[str] | None, recipe: Path | None) -> tuple[Technique, ...]:
    specs = [*(_read_recipe(recipe) if recipe else []), *(with_ or [])]
    techniques = tuple(registry.resolve(spec) for spec in specs)
    # Raises what a Trainer with them would raise, before anything is loaded or run.
    hooks.manager(techniques)
    return techniques


def _read_recipe(file: Path) -> list[Any]:
    import yaml

    if not file.is_file():
        raise PluginError(f"there is no recipe {str(file)!r}. Name a YAML file with a list under 'techniques'.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise PluginError(f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict) or set(content) != {"techniques"} or not isinstance(content["techniques"], list):
        raise OptionError(
            f"{file}: a recipe is a mapping with the one key 'techniques', whose value is a list of techniques, "
            "each 'name', 'name:option=value' or {name: {option: value}}."
        )
    return content["techniques"]


def _memory(
    model: str | None, given: list[str], length: int, budget: float | None, techniques: tuple[Technique, ...]
) -> Any:
    """The estimate for a model's folder or name under TrainingArguments said as NAME=VALUE."""
    if model is None:
        raise PluginError("memory: --memory estimates a model; name its folder or hub name with --model.")
    import tempfile

    import torch
    from transformers import AutoConfig, HfArgumentParser, TrainingArguments

    from ..memory.estimate import GIB, estimate_memory, refuse_over_budget

    flags = [part for one in given for part in ("--" + one.split("=", 1)[0], *one.split("=", 1)[1:])]
    with tempfile.TemporaryDirectory() as folder:
        (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
            ["--output_dir", folder, "--report_to", "none", *flags]
        )
    config = AutoConfig.from_pretrained(model)

    def estimated(args: Any, another: str | None = None) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        listed = techniques if another is None else (*techniques, registry.resolve(another))
        if another is not None and "ft_adapter" in _plan(techniques):
            return None
        return estimate_memory(config, args, length=length, techniques=listed, device=device)

    estimate = estimated(args)
    if budget is not None:
        refuse_over_budget(estimate, round(budget * GIB), estimated, args)
    return estimate


def _without_weights(name: str) -> Any:
    """The model class that a config names first, on torch's meta device."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    cls = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
    with torch.device("meta"):
        return cls.from_config(config) if cls is transformers.AutoModel else cls(config)


def _plan(techniques: tuple[Technique, ...]) -> dict[str, list[str]]:
    plan: dict[str, list[str]] = {}
    for technique in techniques:
        for hook in technique.hooks():
            plan.setdefault(hook, []).append(technique.name)
    return plan


def _row(offer: registry.Offer, technique: type[Technique] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": offer.name, "distribution": offer.distribution, "version": offer.version}
    try:
        technique = technique or offer.load()
    except PluginError as error:
        return row | {"error": str(error.__cause__ or error)}
    return row | {
        "summary": technique.summary,
        "hooks": technique.hooks(),
        "options": [vars(info) for info in technique.option_infos()],
    }
