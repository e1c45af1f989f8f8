"""Installs a plug-in's package from its own pyproject.toml, and runs commands that see it."""

import os
import subprocess
import sys
from pathlib import Path


def install(site, *packages):
    """As `pip install PACKAGE ...` into an environment of its own: the folder `site`, found through PYTHONPATH."""
    quietly = ("--quiet", "--disable-pip-version-check")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    command = ["-m", "pip", "install", *quietly, *offline, "--target", str(site), *map(str, packages)]
    subprocess.run([sys.executable, *command], check=True)


def python(site, *arguments, cwd):
    """`python ARGUMENTS...` with the packages in `site` installed."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def hf_ft(site, *arguments, cwd):
    return python(site, "-m", "hf_ft_plugins", *arguments, cwd=cwd)


def own_tests(processes, site, package: Path, cwd):
    """Exit status and output of the package's own tests, against the installed package rather than its folder."""
    output = cwd / "output.txt"
    process = processes.Process(target=_run_tests, args=(site, package, cwd, output))
    process.start()
    process.join()
    return process.exitcode, output.read_text()


def _run_tests(site, package, cwd, output):
    import pytest

    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
    os.chdir(cwd)
    sys.path.insert(0, str(site))
    sys.exit(int(pytest.main(["-q", "-p", "no:cacheprovider", str(package / "tests")])))
