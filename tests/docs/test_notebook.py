"""The notebook of the one line: run from its first cell to its last, in a kernel where there is one."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"
OF_A_MACHINE = re.compile(r"/(root|home|tmp|work|Users|usr|opt|mnt)/|[A-Z]:\\\\")
# How it ended, as JSON on the last line of what is printed.
ENDING = """
import json
print(json.dumps({
    "techniques": [technique.name for technique in Trainer._ft_techniques],
    "bases": [base.__name__ for base in Trainer.__mro__].count("Host"),
    "accuracy": {which: run.predict(data["test"]).metrics["test_accuracy"] for which, run in runs.items()},
    "steps": {which: run.state.global_step for which, run in runs.items()},
    "pictures": sorted(file.name for file in Path("runs").rglob("*.png")),
    "worst": len(worst),
}))
"""
# Where there is no IPython: a picture is read, and not shown.
STAND_IN = """
import sys, types
shows = types.ModuleType("IPython.display")
shows.Image = lambda file, width: open(file, "rb").close()
sys.modules["IPython.display"] = shows
"""


def content():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells():
    return ["".join(cell["source"]) for cell in content()["cells"] if cell["cell_type"] == "code"]


def with_the_line_run_twice(cells):
    """The second time with another option, as somebody does who tries one."""
    ((place, line),) = [(place, cell) for place, cell in enumerate(cells) if "with_plugins(" in cell]
    first = line.replace('controller="rollback"', 'controller="plateau", patience=9')
    assert first != line
    return [*cells[:place], first, *cells[place:]]


def has_a_kernel():
    return all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel"))


def run_in_a_kernel(cells, folder):
    """What the cells print, and the kinds of what they show."""
    import nbclient
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", resources=where, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    printed = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    return printed, [kind for output in outputs for kind in output.get("data", {})], notebook


def run_as_a_script(cells, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    code = "\n".join([STAND_IN, *cells])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_all_cells_run_and_the_line_may_be_run_again(tmp_path):
    shutil.copy(EXAMPLES / "digits.py", tmp_path)
    cells = [*with_the_line_run_twice(code_cells()), ENDING]
    if has_a_kernel():
        printed, kinds, notebook = run_in_a_kernel(cells, tmp_path)
        # The comparison, the report's two pictures, and digits drawn inline: by the notebook's own backend still.
        assert kinds.count("image/png") == 4
        tables = [str(output) for cell in notebook.cells for output in cell.outputs if "text/html" in str(output)]
        assert any("adaptive-lr:controller=rollback" in table for table in tables)
        assert sum("Validation Loss" in table for table in tables) >= 2
    else:
        printed = run_as_a_script(cells, tmp_path)
    ended = json.loads(printed.splitlines()[-1])
    assert ended["techniques"] == ["adaptive-lr", "task"]
    assert ended["steps"]["with"] < ended["steps"]["without"] == 400
    assert ended["accuracy"]["with"] > ended["accuracy"]["without"] + 0.05
    assert ended["pictures"] == ["compare.png", "confusion.png", "reliability.png"]
    assert ended["worst"] == 50
    assert re.search(r"^rollback +eval_loss: .* is no better", printed, re.MULTILINE)


def test_the_notebook_is_valid():
    found = content()
    assert (found["nbformat"], sorted(found)) == (4, ["cells", "metadata", "nbformat", "nbformat_minor"])
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    assert {cell["cell_type"] for cell in found["cells"]} == {"code", "markdown"}
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(found))


def test_the_notebook_holds_no_outputs_and_nothing_of_a_machine():
    for cell in content()["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert not cell["metadata"], "where and when it was run"
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 20_000
    assert not OF_A_MACHINE.search(text)


@pytest.mark.parametrize("path", ["/home/me/x", "C:\\files"])
def test_control_paths_of_a_machine_are_found(path):
    assert OF_A_MACHINE.search(json.dumps(f"saved in {path}"))
    assert not OF_A_MACHINE.search(json.dumps("saved in runs/notebook"))


def test_the_readme_links_it():
    assert "](examples/notebook.ipynb)" in (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
