"""`hf-ft sequential stages`, for short `hf-ft stages`: scripts as stages; and `hf-ft sequential matrix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...cli.completion import recipes
from ...errors import PluginError
from .settings import NAME

app = typer.Typer(help="Stages of one sequence.", no_args_is_help=True, add_completion=False)
console = Console()


@app.callback()
def sequential() -> None:
    """Stages of one sequence."""


@app.command()
def stages(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A YAML file with 'folder' and 'stages'.", autocompletion=recipes),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; what the scripts print goes to stderr.")] = False,
) -> None:
    """Run scripts as stages, one after the other; run again, it goes on where it was."""
    from .script_stages import run_scripts

    done = run_scripts(recipe, Console(stderr=True) if as_json else console, as_json=as_json)
    if as_json:
        print(json.dumps(done, indent=1))


@app.command()
def matrix(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the stages.")],
    metric: Annotated[str | None, typer.Option(help="Of those that were measured; none: the first, else loss.")] = None,
    greater: Annotated[
        bool | None, typer.Option("--greater/--lower", help="What is better; none: by the metric's name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What finished stages have taught, and what later ones have undone; draws it, too."""
    from .stage_records import StageRecords
    from .transfer_matrix import matrix_of, write_matrix

    finished = StageRecords(folder).finished()
    found = matrix_of(finished, metric, greater)
    if found is None:
        known = sorted({name for stage in finished for values in stage.after.values() for name in values})
        raise PluginError(
            f"{NAME}: in {folder} nothing was measured{f' as {metric}' if metric else ''}. "
            + (
                f"Of {len(finished)} stages there is {', '.join(known)}: --metric." if known else "Name stages' folder."
            ),
            code="metric-unknown",
        )
    picture = write_matrix(found, folder)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        console.print(f"{found.as_text()}\n{picture}", markup=False, highlight=False)
