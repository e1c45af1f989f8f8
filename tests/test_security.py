"""What is not named is never imported, and nothing that a run reads is code."""

import ast
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.host import manifest, state

PACKAGE = Path(__file__).resolve().parent.parent / "hf_ft_plugins"
SCRIPT = Path(__file__).parent / "scripts" / "train_tiny.py"


@pytest.fixture(scope="module")
def trapped(tmp_path_factory):
    """An installed plug-in that leaves a file behind as soon as it is imported; the folder, and that file."""
    site = tmp_path_factory.mktemp("site")
    sprung = site / "sprung"
    (site / "trap_plugin.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    info = site / "trap_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hf_ft_plugins]\na-trap = trap_plugin:Trap\n")
    return site, sprung


COMMANDS = {
    "run": ["run", "--with", "adaptive-lr:controller=plateau", SCRIPT],
    "check": ["check", "--with", "adaptive-lr"],
    "show": ["show", "adaptive-lr"],
    "unknown": ["run", "--with", "a-trp", SCRIPT],
    "shortcut": ["stages", "--help"],
    "named": ["check", "--with", "a-trap"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_plugin_that_a_run_does_not_name_is_never_imported(name, trapped, tmp_path):
    site, sprung = trapped
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [sys.executable, "-m", "hf_ft_plugins", *map(str, COMMANDS[name])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == (2 if name in ("unknown", "named") else 0), process.stderr[-2000:]
    # The control: the trap works.
    assert sprung.exists() == (name == "named")


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", [manifest.STATE_FILE, manifest.TENSORS_FILE, manifest.MANIFEST_FILE])
@pytest.mark.parametrize("saved", ["pickle", "torch"])
def test_a_pickle_in_place_of_our_files_is_refused_and_does_nothing(file, saved, tmp_path):
    mark = tmp_path / "went-off"
    state.write_state(tmp_path, [], {"part": {"tensor": torch.ones(2)}})
    manifest.write_manifest(tmp_path)
    content = io.BytesIO()
    if saved == "torch":
        torch.save(Bomb(mark), content)
    else:
        pickle.dump(Bomb(mark), content)
    (tmp_path / file).write_bytes(content.getvalue())
    assert manifest.damage(tmp_path) is not None
    if file != manifest.MANIFEST_FILE:
        with pytest.raises(PluginError):
            state.read_state(tmp_path)
    assert not mark.exists()


# A script that the user names is run; that is what `hf-ft run` is for.
MAY_EXECUTE = {"cli/run.py"}
# The kit looks whether parts can be pickled, of objects that it has made itself.
MAY_UNPICKLE = {"testing/checks.py"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_reads_no_code(file):
    name = file.relative_to(PACKAGE).as_posix()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, arguments = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        assert called not in ("exec", "eval") or name in MAY_EXECUTE, (name, node.lineno)
        assert called not in ("pickle.load", "pickle.loads") or name in MAY_UNPICKLE, (name, node.lineno)
        assert called not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), (name, node.lineno)
        if called == "torch.load":
            assert ast.unparse(arguments["weights_only"]) == "True", (name, node.lineno)
        trusts = arguments.get("trust_remote_code")
        assert trusts is None or ast.unparse(trusts) != "True", (name, node.lineno)
