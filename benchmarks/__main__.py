"""List the benchmarks, or print what one of them measures, without importing it: `python -m benchmarks [NAME]`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def docstrings() -> dict[str, str]:
    """What each benchmark says of itself, by its name; modules that cannot be run are not among them."""
    found = {}
    for file in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py")]):
        name = file.parent.name if file.parent != FOLDER else file.stem
        text = file.read_text(encoding="utf-8")
        if file != Path(__file__) and 'if __name__ == "__main__":' in text:
            found[name] = ast.get_docstring(ast.parse(text)) or ""
    return found


def main(argv: list[str]) -> int:
    found = docstrings()
    if not argv:
        width = max(map(len, found))
        print("\n".join(f"{name:{width}}  {text.splitlines()[0]}" for name, text in found.items()))
        return 0
    unknown = [name for name in argv if name not in found]
    if unknown:
        print(f"No benchmark {', '.join(unknown)}; there are {', '.join(found)}.", file=sys.stderr)
        return 1
    print("\n\n".join(found[name] for name in argv))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
