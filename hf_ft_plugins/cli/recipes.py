"""The lists of techniques that a command line gives: `--with`, and `--recipe`, a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .. import registry
from ..errors import OptionError, PluginError
from ..host import hooks
from ..option_text import shown
from ..technique import Technique

FORM = (
    "a recipe is a mapping with the one key 'techniques', whose value is a list of techniques, each 'name', "
    "'name:option=value' or {name: {option: value}}."
)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without code, in which a key that stands twice in one mapping is an error: PyYAML keeps the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Any, Any] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            # One that cannot be a key is refused below.
            if key.__hash__ is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    "while reading a mapping", node.start_mark, f"the key {shown(key)} stands there twice", seen[key]
                )
            if key.__hash__ is not None:
                seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: Any) -> Any:
        # JSON, which is YAML, writes what lies beyond 16 bits as two escapes, and PyYAML keeps them as two characters.
        try:
            return super().construct_scalar(node).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark) from error


def chosen_techniques(with_: Sequence[str] | None, recipe: Path | None) -> tuple[Technique, ...]:
    """The techniques of a recipe, then those of `--with`.

    Raises:
        PluginError: what a Trainer with them would raise, before anything is loaded or run.
    """
    specs = [*(read_recipe(recipe) if recipe else []), *(with_ or [])]
    techniques = tuple(registry.resolve(spec) for spec in specs)
    hooks.manager(techniques)
    return techniques


def read_recipe(file: Path) -> list[Any]:
    """The list under a recipe's one key, `techniques`.

    Raises:
        PluginError: there is no such file, or it is no YAML of that form.
    """
    content = read_yaml(file, FORM)
    if not isinstance(content, dict) or set(content) != {"techniques"} or not isinstance(content["techniques"], list):
        raise OptionError(f"{file}: {FORM}", code="recipe-unreadable")
    return content["techniques"]


def read_yaml(file: Path, form: str) -> Any:
    """The content of a YAML file: UTF-8, or UTF-16 with a byte order mark.

    Args:
        form: what it is to hold, a sentence for errors.

    Raises:
        PluginError: there is no such file, or it is no YAML.
    """
    if not file.is_file():
        raise PluginError(f"there is no recipe {str(file)!r}. Name a YAML file: {form}", code="file-unusable")
    try:
        return _UniqueKeys(file.read_bytes()).get_single_data()
    except yaml.reader.ReaderError as error:
        raise PluginError(
            f"{file} cannot be read as text ({error.reason}). Save it in UTF-8.", code="file-unusable"
        ) from error
    except yaml.YAMLError as error:
        raise PluginError(f"{file} is not YAML: {error}. {form.capitalize()}", code="recipe-unreadable") from error
    except OSError as error:
        raise PluginError(
            f"{file} cannot be read ({error}). Name a file that you may read.", code="file-unusable"
        ) from error
    except Exception as error:
        # Impossible dates, numbers of too many digits, lists nested too deep.
        raise PluginError(
            f"{file} holds a value that YAML cannot read ({type(error).__name__}: {error}).", code="recipe-unreadable"
        ) from error
