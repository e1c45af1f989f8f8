"""`hf-ft new NAME`: write a third party's plug-in package, with one small technique that works and a test of it.

The package's files are Jinja2 templates in `scaffold/`. They are a technique to change, not blanks to fill in: what
comes out installs, is listed, trains, resumes and passes its own tests before its author has written a line.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path

import jinja2

from .. import registry
from ..errors import PluginError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# With it the templates' longest line stays within 120 characters.
LONGEST_NAME = 38
# What the package's modules import: a class of that name would hide it (a callback is called `{class}Callback`).
IMPORTED_CLASSES = {"Any", "ClassVar", "Example", "OptionError", "Technique", "Trainer"}

# Template in `scaffold/` to file in the package; `technique` and `module` are filled in.
LAYOUT = {
    "pyproject.toml.jinja": "pyproject.toml",
    "README.md.jinja": "README.md",
    "technique.py.jinja": "{module}/__init__.py",
    "callback.py.jinja": "{module}/callback.py",
    "py.typed.jinja": "{module}/py.typed",
    "test_technique.py.jinja": "tests/test_{technique}.py",
}


def scaffold(name: str, folder: Path) -> Path:
    """Write the package `hf-ft-NAME` into `folder`, which is made where it is missing.

    Args:
        name: the technique's name, as users will say it: lower-case words joined by hyphens.
        folder: where the package's own folder is to be made.

    Returns:
        The package's folder.

    Raises:
        PluginError: the name is unfit or taken, or the folder exists (nothing is written then) or cannot be written.
    """
    refuse_name(name)
    package = folder / f"hf-ft-{name}"
    contents = rendered(name)
    if package.exists():
        raise PluginError(
            f"new: {package} exists already. Choose another name or --folder, or remove it.", code="file-unusable"
        )
    try:
        for path, text in contents.items():
            file = package / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PluginError(
            f"new: {package} cannot be written ({error}). Choose another --folder.", code="file-unusable"
        ) from error
    return package


def rendered(name: str) -> dict[str, str]:
    """The package's files: path inside its folder to text."""
    words = {"name": name, "technique": name.replace("-", "_"), "module": module_name(name), "cls": class_name(name)}
    templates = files(__package__).joinpath("scaffold")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return {
        path.format(**words): environment.from_string(templates.joinpath(template).read_text(encoding="utf-8")).render(
            words
        )
        for template, path in LAYOUT.items()
    }


def module_name(name: str) -> str:
    """`my-idea` to `hf_ft_my_idea`."""
    return f"hf_ft_{name.replace('-', '_')}"


def class_name(name: str) -> str:
    """`my-idea` to `MyIdea`."""
    return "".join(word.capitalize() for word in name.split("-"))


def refuse_name(name: str) -> None:
    """Raise `PluginError` unless `name` can be a new technique's name."""
    if not NAME.fullmatch(name):
        # MyIdea and my_idea are my-idea.
        likely = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-0123456789")
        raise PluginError(
            f"new: the name {name!r} is not allowed: use lower-case words and digits joined by hyphens, a letter "
            f"first, for example {likely or 'my-idea'!r}.",
            code="command-line",
        )
    if len(name) > LONGEST_NAME:
        raise PluginError(
            f"new: the name {name!r} has {len(name)} characters. Use at most {LONGEST_NAME}.", code="command-line"
        )
    cls = class_name(name)
    if cls in IMPORTED_CLASSES or keyword.iskeyword(cls):
        raise PluginError(
            f"new: the name {name!r} would make a class {cls}, which its module imports or Python keeps for itself. "
            "Add a word to it.",
            code="command-line",
        )
    for offer in registry.offers():
        if offer.name == name:
            raise PluginError(
                f"new: the name {name!r} is taken: {offer.distribution} {offer.version} offers it. Choose another.",
                code="command-line",
            )
    if importlib.util.find_spec(module_name(name)) is not None:
        raise PluginError(
            f"new: the name {name!r} would make a module {module_name(name)}, which is installed already. "
            "Choose another.",
            code="command-line",
        )
