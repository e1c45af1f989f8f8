"""The gallery: its page is what its file says, and shows an example of every technique."""

import re
import shlex

import pytest

from benchmarks.gallery import EXAMPLES, PAGE, PICTURES, Example, block, keep_picture, known, measured, renewed
from benchmarks.results import ROOT
from hf_ft_plugins import registry

LARGEST_PICTURE = 130_000


def test_the_page_says_what_the_file_says():
    text = PAGE.read_text(encoding="utf-8")
    assert renewed(text, known()["examples"]) == text, "run: python -m benchmarks.gallery NAME --write"
    assert re.findall(r"<!-- gallery: ([\w-]+) -->", text) == list(EXAMPLES)


def test_every_technique_has_an_example_of_its_own_name():
    ours = {offer.name for offer in registry.offers() if offer.distribution == registry.DISTRIBUTION}
    assert ours <= set(EXAMPLES)
    for name in ours:
        assert any(name in command or "stages" in command for command in EXAMPLES[name].commands)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_measured_is_what_would_be_run(name):
    found = known()["examples"][name]
    assert found["commands"] == list(EXAMPLES[name].commands)
    assert found["data"] == EXAMPLES[name].data
    assert found["seconds"] > 0
    assert found["says"]
    scripts = [word for command in found["commands"] for word in shlex.split(command) if word.startswith("examples/")]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures_are_there_and_small(name):
    assert 0 < (PICTURES / f"{name}.png").stat().st_size < LARGEST_PICTURE


def test_an_example_is_run_and_its_telling_lines_are_kept(tmp_path):
    shown = measured(Example(("hf-ft list", "hf-ft --version"), "", says="^(peft|hf-ft-plugins)"))
    assert [line.split()[0] for line in shown["says"]] == ["peft", "hf-ft-plugins"]
    assert shown["cpu_seconds"] > 0
    with pytest.raises(SystemExit, match="no-such-script"):
        measured(Example(("hf-ft run --with peft no-such-script.py",), ""))


def test_a_block_tells_the_times_and_what_data_they_need():
    about = {"commands": ["hf-ft list"], "data": "flowers", "seconds": 200.0, "cpu_seconds": 201.0, "says": ["a → b"]}
    text = block("name", about)
    assert "3.4 min of one core's time; on a GPU: not measured." in text
    assert "With the folder FT_DATA: flowers." in text
    assert "a → b" in text


def test_a_picture_is_made_small(tmp_path):
    from PIL import Image

    Image.effect_noise((2800, 700), 50).convert("RGBA").save(tmp_path / "large.png")
    keep_picture(tmp_path / "large.png", tmp_path / "kept" / "small.png")
    with Image.open(tmp_path / "kept" / "small.png") as image:
        assert image.size == (1400, 350)
        assert image.mode == "P"
