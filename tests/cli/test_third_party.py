"""The example of a third party's plug-in, installed from its own pyproject.toml, beside one that cannot be imported."""

import json
import shutil

import pytest

from tests import plugin_packages
from tests.conftest import ROOT

SCRIPT = ROOT / "tests" / "scripts" / "train_for_plugins.py"
EXAMPLE, BROKEN = ROOT / "examples" / "third_party_plugin", ROOT / "examples" / "broken_plugin"
CUTTING = "adaptive-lr:controller=plateau,patience=1,min_delta=1e9,max_cuts=2,stop=false"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    # Built from copies: a build leaves its traces in the source folder.
    copies = [shutil.copytree(package, folder / package.name) for package in (EXAMPLE, BROKEN)]
    plugin_packages.install(folder / "site", *copies)
    return folder / "site"


@pytest.fixture
def hf_ft(site, tmp_path):
    return lambda *arguments: plugin_packages.hf_ft(site, *arguments, cwd=tmp_path)


def trained(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_both_are_listed_the_broken_one_with_its_reason(hf_ft):
    rows = {row["name"]: row for row in json.loads(hf_ft("list", "--json").stdout)}
    assert set(rows) >= {"adaptive-lr", "wsd-schedule", "broken"}
    assert (rows["wsd-schedule"]["distribution"], rows["wsd-schedule"]["version"]) == ("hf-ft-wsd", "0.1.0")
    assert "hf_ft_no_such_library" in rows["broken"]["error"]
    assert "warmup" in hf_ft("show", "wsd-schedule").stdout


@pytest.mark.slow
def test_its_own_tests_pass(processes, site, tmp_path):
    status, output = plugin_packages.own_tests(processes, site, EXAMPLE, cwd=tmp_path)
    assert status == 0, output


def test_it_shapes_the_rate_of_a_script_that_nobody_edited_and_factors_of_another_multiply_it(hf_ft):
    rates = trained(hf_ft("run", "--with", "wsd-schedule:decay=0.5", "--with", CUTTING, SCRIPT))["rates"]
    schedule = [0.01] * 6 + [0.008, 0.006, 0.004, 0.002]
    scales = [1] * 4 + [0.3] * 2 + [0.09] * 4
    assert rates == pytest.approx([rate * scale for rate, scale in zip(schedule, scales, strict=True)])


def test_a_script_with_a_scheduler_of_its_own_is_refused_before_it_trains(hf_ft):
    refused = hf_ft("run", "--with", "wsd-schedule", SCRIPT, "--own_scheduler")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a LambdaLR, from optimizers=(...)" in " ".join(refused.stderr.split())


def test_the_broken_one_breaks_nothing_but_itself(hf_ft):
    unharmed = hf_ft("run", "--with", CUTTING, SCRIPT)
    assert trained(unharmed)["rates"][-1] == pytest.approx(0.09 * 0.001)
    assert "broken" not in unharmed.stderr
    refused = hf_ft("run", "--with", "broken", SCRIPT)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "hf_ft_no_such_library" in refused.stderr
    assert "Traceback" not in refused.stderr
