"""`hf-ft explain CODE`: what a refusal means and how it is mended, from the installed package."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import mends
from ..error_codes import table
from ..errors import PluginError
from ..near import nearest
from .options import AsJson, Debug

console = Console()


def explain(
    code: Annotated[str | None, typer.Argument(help="The code of a refusal; without it, all are listed.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """What the code of a refusal means, what usually causes it, and how it is mended."""
    if code is None:
        _list_all(as_json)
        return
    found = table().get(code)
    if found is None:
        raise PluginError(
            f"explain: there is no code {code!r}.{nearest(code, table())} `hf-ft explain` lists them.",
            code="command-line",
        )
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print(f"{code}\n\n{found.as_text()}", end="")


def _list_all(as_json: bool) -> None:
    codes = {code: found.meaning for code, found in table().items()}
    if as_json:
        steps = {name: {"keys": keys, "means": means} for name, (keys, means) in mends.vocabulary().items()}
        print(json.dumps({"codes": codes, "steps": steps}, indent=1))
        return
    rows = Table("code", "what it means", box=None, pad_edge=False, header_style="bold")
    for code, meaning in codes.items():
        rows.add_row(f"[bold cyan]{code}[/]", escape(meaning))
    console.print(rows)
