"""Writes what the documentation says of the code, from the code: `python docs/generate.py`, or with `--check`.

In a page, whatever stands between `<!-- generated: WHAT -->` and `<!-- end -->` is written anew; WHAT is `hooks`,
`options NAME` of a technique, `techniques`, `errors`, `error CODE` or `mends`. A code without a page gets one.
`--check` writes nothing and exits 1 if a page is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hf_ft_plugins import error_codes, hookspecs, mends, registry
from hf_ft_plugins.option_text import default_text

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def hooks() -> str:
    """One section a hook, in the order of a run: signature and docstring."""
    sections = []
    for name, spec in vars(hookspecs).items():
        if name.startswith(hookspecs.PREFIX):
            arguments = ", ".join(inspect.signature(spec).parameters)
            sections.append(f"### `{name}({arguments})`\n\n{inspect.getdoc(spec)}\n")
    return "\n".join(sections)


def options(name: str) -> str:
    """A table of a technique's options."""
    rows = ["| option | type | default | |", "| --- | --- | --- | --- |"]
    for info in registry.find(name).load().option_infos():
        default = _cell(default_text(info.default))
        rows.append(f"| `{info.name}` | {_cell(info.type)} | {default} | {_cell(info.help)} |")
    return "\n".join(rows) + "\n"


def techniques() -> str:
    """A table of the built-in techniques, one row each."""
    rows = ["| technique | what it does |", "| --- | --- |"]
    for offer in registry.offers():
        if offer.distribution == registry.DISTRIBUTION:
            rows.append(f"| [{offer.name}](techniques/{offer.name}.md) | {_cell(offer.load().summary)} |")
    return "\n".join(rows) + "\n"


def errors() -> str:
    """A table of the codes of refusals."""
    rows = ["| code | what it means |", "| --- | --- |"]
    rows += [f"| [`{code}`]({code}.md) | {_cell(found.meaning)} |" for code, found in error_codes.table().items()]
    return "\n".join(rows) + "\n"


def error(code: str) -> str:
    """One code: its meaning, causes and mends."""
    return error_codes.table()[code].as_text()


def steps() -> str:
    """A table of the steps that a mend is made of."""
    rows = ["| `do` | its keys | what to do |", "| --- | --- | --- |"]
    for name, (keys, means) in mends.vocabulary().items():
        rows.append(f"| `{name}` | {', '.join(f'`{key}`' for key in keys)} | {_cell(' '.join(means.split()))} |")
    return "\n".join(rows) + "\n"


GENERATORS: dict[str, Callable[..., str]] = {
    "hooks": hooks,
    "options": options,
    "techniques": techniques,
    "errors": errors,
    "error": error,
    "mends": steps,
}
ERROR_PAGE = """# `{code}`

<!-- generated: error {code} -->
<!-- end -->

[All codes](README.md), and what a program does with them: [agents](../guide/agents.md).
"""


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def generated(text: str) -> str:
    """A page's text with every generated block as the code has it now."""

    def block(match: re.Match[str]) -> str:
        what, *arguments = match[2].split()
        return f"{match[1]}{GENERATORS[what](*arguments)}{match[4]}"

    return BLOCK.sub(block, text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    stale = []
    new_pages = {ROOT / found.page: ERROR_PAGE.format(code=code) for code, found in error_codes.table().items()}
    for page in dict.fromkeys((*pages(), *new_pages)):
        text = page.read_text(encoding="utf-8") if page.is_file() else new_pages[page]
        new = generated(text)
        if new != text or not page.is_file():
            stale.append(page)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    for page in stale:
        print(f"{page.relative_to(ROOT)} {'is out of date' if '--check' in sys.argv else 'is written anew'}")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
