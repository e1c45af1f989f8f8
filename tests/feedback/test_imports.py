"""Between the converter of logs and the rest there is one arrow, and it points here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_ft_plugins
from hf_ft_plugins import feedback

ROOT = Path(hf_ft_plugins.__file__).parent
INSIDE = "hf_ft_plugins.feedback"
# What the converter takes from the rest of the package.
SHARED = {f"hf_ft_plugins.{name}" for name in ("errors", "lazy", "mends", "near", "progress")}
# What it never imports, not even within a function. `transformers` counts tokens, where that is asked for.
FORBIDDEN = {"torch", "trl", "peft", "accelerate"}
# The one module with a door of its own: `hf-ft` adds it as a sub-command.
DOORS = {INSIDE, f"{INSIDE}.command"}


def imported(file, *, at_import=False):
    """The modules, and the names of modules, that a file imports anywhere, or when it is imported itself."""
    package = [ROOT.name, *file.relative_to(ROOT).parent.parts]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((module, alias.name) for alias in node.names)


def test_names_of_imports_are_resolved():
    """Control: what is known to be imported is found."""
    technique = set(imported(ROOT / "techniques" / "behavioral" / "fit_to_length.py"))
    assert (INSIDE, "label_of") in technique
    assert ("hf_ft_plugins.errors", "PluginError") in technique
    assert ("torch", None) in set(imported(ROOT / "techniques" / "behavioral" / "collator.py"))


@pytest.mark.parametrize("file", sorted((ROOT / "feedback").rglob("*.py")), ids=lambda file: file.stem)
def test_the_converter_knows_nothing_of_training(file):
    found = {module for module, _ in imported(file)}
    outside = {module for module in found if module.split(".")[0] == ROOT.name and not module.startswith(INSIDE)}
    assert outside <= SHARED
    assert not {module.split(".")[0] for module in found} & FORBIDDEN
    assert "transformers" not in {module for module, _ in imported(file, at_import=True)}
    assert "transformers" not in found or file.stem == "token_lengths"


def test_the_rest_knows_the_face_alone():
    files = [file for file in ROOT.rglob("*.py") if (ROOT / "feedback") not in file.parents]
    arrows = {(module, name) for file in files for module, name in imported(file) if module.startswith(INSIDE)}
    assert {module for module, _ in arrows} <= DOORS
    assert {name for module, name in arrows if module == INSIDE} <= {*feedback.__all__, "command"}


def test_only_one_technique_knows_of_it():
    techniques = {
        file.relative_to(ROOT / "techniques").parts[0]
        for file in (ROOT / "techniques").rglob("*.py")
        if any(module.startswith(INSIDE) for module, _ in imported(file))
    }
    assert techniques == {"behavioral"}


def test_every_name_of_the_face_is_there_and_brings_no_torch(tmp_path):
    """A log is read and written as preferences without torch or transformers."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}\n')
    code = (
        "import sys; from hf_ft_plugins import feedback; [getattr(feedback, name) for name in feedback.__all__];"
        "found = feedback.preferences_from_log(sys.argv[1]); assert len(list(found.pairs())) == 1;"
        "print(sorted({'torch', 'transformers', 'trl', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
