"""Bars: when there is one, when the log has lines instead, and that a loop is the same with them as without."""

import contextlib
import functools
import io
import logging
import os
import pty
import random
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import ClassVar
from weakref import WeakSet

import datasets
import huggingface_hub.utils
import pytest
import tqdm
import transformers
from huggingface_hub.utils import disable_progress_bars

from hf_ft_plugins import progress as progress_module
from hf_ft_plugins.progress import bars_as_asked, progress
from hf_ft_plugins.testing import LogEverything, tiny_trainer


class Terminal(io.StringIO):
    """A terminal's screen."""

    def isatty(self):
        return True

    def screen(self):
        """The lines that are seen at the end."""
        lines, row, column = [""], 0, 0
        text = self.getvalue()
        while text:
            if text.startswith("\x1b[A"):
                row, text = row - 1, text[3:]
                continue
            sign, text = text[0], text[1:]
            if sign == "\r":
                column = 0
            elif sign == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            else:
                lines[row] = lines[row].ljust(column)[:column] + sign + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def bars_are_on():
    """Other tests of the process may have switched them off."""
    huggingface_hub.utils.enable_progress_bars()
    datasets.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def at_once(monkeypatch):
    """Without the wait of a second."""
    monkeypatch.setattr(progress_module, "SHOWN_AFTER", 0.0)


def given_a_terminal(monkeypatch):
    screen = Terminal()
    # Not in `sys` itself, where pytest puts its own between a fixture and its test.
    there = SimpleNamespace(**{**vars(sys), "stderr": screen})
    monkeypatch.setattr(progress_module, "sys", there)
    monkeypatch.setattr(tqdm.std, "sys", there)
    # Bars that other tests have left open would take the first lines.
    monkeypatch.setattr(tqdm.std.tqdm, "_instances", WeakSet())
    return screen


@pytest.fixture
def terminal(monkeypatch, at_once):
    return given_a_terminal(monkeypatch)


@pytest.fixture
def lines(caplog, at_once):
    caplog.set_level(logging.INFO, logger="hf_ft_plugins")
    return lambda: [record.getMessage() for record in caplog.records]


def no_bar_is_open():
    return len(tqdm.tqdm._instances) == 0


# ---- in a terminal ----


def test_a_terminal_shows_a_bar_that_says_what_and_how_many(terminal):
    assert list(progress("abc", "text2text: counting tokens", unit="letters")) == ["a", "b", "c"]
    assert terminal.screen()[0].startswith("text2text: counting tokens: 100%")
    assert "3/3" in terminal.screen()[0]
    assert "letters/s" in terminal.screen()[0]


def test_the_bar_counts_the_time_before_it_was_there(terminal, monkeypatch):
    monkeypatch.setattr(progress_module, "SHOWN_AFTER", 0.2)
    for _ in progress(range(3), "slow"):
        time.sleep(1.05)
    assert "[00:03<00:00," in terminal.screen()[0]


IN_A_TERMINAL = """
import time
from hf_ft_plugins.progress import progress
for _ in progress(range({number}), "what it is"):
    time.sleep(0.1)
"""


def written_to_a_terminal(code):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        subprocess.run([sys.executable, "-c", code], stderr=theirs, stdin=theirs, check=True)
        os.set_blocking(ours, False)
        found = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(ours, 1 << 16):
                found += part
        return found.decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_takes_less_than_a_second_shows_nothing_in_a_real_terminal():
    assert written_to_a_terminal(IN_A_TERMINAL.format(number=3)) == ""
    # Control: what takes longer does.
    assert "what it is: 100%" in written_to_a_terminal(IN_A_TERMINAL.format(number=14))


def test_a_bar_within_another_leaves_that_as_it_was(terminal):
    with tqdm.tqdm(total=2, desc="Trainer's") as outer:
        outer.update()
        for number in progress(range(4), "ours"):
            shown = terminal.screen()
            assert number == 0 or "ours" in shown[1]
            assert shown[0].startswith("Trainer's")
        outer.update()
    shown = terminal.screen()
    assert shown[0].startswith("Trainer's: 100%")
    assert "ours" not in "".join(shown)


def test_a_bar_beside_none_stays(terminal):
    list(progress(range(2), "first"))
    list(progress(range(2), "second"))
    assert [line.partition(":")[0] for line in terminal.screen()] == ["first", "second", ""]


# ---- in a notebook ----


def test_a_notebook_gets_its_own_kind_of_bar_though_it_is_no_terminal(at_once, monkeypatch):
    made = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            made.append(kwargs["desc"])
            super().__init__(*args, file=io.StringIO(), **kwargs)

    monkeypatch.setattr(progress_module, "_bar_class", lambda: Bar)
    assert list(progress(range(2), "in a file")) == [0, 1]
    assert made == []
    monkeypatch.setattr(huggingface_hub.utils, "is_notebook", lambda: True)
    assert list(progress(range(2), "in a notebook")) == [0, 1]
    assert made == ["in a notebook"]


IN_A_NOTEBOOK = """
import hf_ft_plugins.progress as module
module.SHOWN_AFTER = 0.0
print(list(module.progress(range(3), "what it is")))
"""


def test_a_real_kernel_shows_the_bar_in_the_cells_output():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cell = nbformat.v4.new_code_cell(IN_A_NOTEBOOK)
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), kernel_name="python3").execute()
    shown = "".join(output.get("text", "") or str(output.get("data")) for output in cell.outputs)
    assert "[0, 1, 2]" in shown
    # Text, or where there are ipywidgets, one of them.
    assert "what it is: 100%" in shown or "widget-view" in shown


# ---- elsewhere ----


def test_a_log_file_gets_no_bar_and_one_line_at_the_end(lines, capsys):
    assert sum(progress(range(2000), "sequential: Fisher information")) == 1999000
    assert lines() == ["sequential: Fisher information: 2,000 rows in 0:00:00"]
    assert capsys.readouterr().err == ""


def test_a_log_file_gets_a_line_at_the_beginning_if_it_will_be_long(lines, monkeypatch):
    clock = iter([0.0, 2.0, 2.0, *[60.0] * 9])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    list(progress(range(30), "what it is", unit="batches"))
    assert lines() == [
        "what it is: 1 of 30 batches; about 0:00:58 to go",
        "what it is: 30 batches in 0:01:00",
    ]


def test_of_unknown_length_the_line_at_the_beginning_says_so(lines):
    list(progress(iter("ab"), "what it is", total=lambda: None))
    assert lines() == ["what it is: 1 rows in 0:00:00; it goes on", "what it is: 2 rows in 0:00:00"]


def test_what_takes_less_than_a_second_says_nothing_in_a_log(lines, monkeypatch):
    monkeypatch.setattr(progress_module, "SHOWN_AFTER", 1.0)
    asked = []
    list(progress(range(100), "what it is", total=lambda: asked.append(1)))
    assert lines() == asked == []


def test_the_length_of_an_iterator_counts_what_it_has_given(lines, monkeypatch):
    monkeypatch.setattr(progress_module, "ANNOUNCED_FROM", 0.0)
    list(progress(iter([1, 2, 3]), "what it is"))
    assert lines()[0].startswith("what it is: 1 of 3 rows; about")


# ---- who sees it ----


def test_other_ranks_than_the_first_show_nothing(terminal, lines, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert list(progress(range(9), "what it is")) == list(range(9))
    with disable_progress_bars():
        assert list(progress(range(9), "what it is")) == list(range(9))
    assert terminal.getvalue() == ""
    assert lines() == []


@pytest.mark.parametrize("rank", [0, 1])
def test_of_ranks_that_torch_alone_knows_the_first_shows_it(rank, terminal, monkeypatch):
    here = {"is_available": lambda: True, "is_initialized": lambda: True, "get_rank": lambda: rank}
    monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace(**here))
    list(progress(range(9), "what it is"))
    assert ("what it is: 100%" in terminal.getvalue()) == (rank == 0)


SWITCHES = {
    "disable_tqdm": lambda: bars_as_asked(SimpleNamespace(disable_tqdm=True)),
    "huggingface_hub": disable_progress_bars,
    "transformers": lambda: switched(
        transformers.utils.logging.disable_progress_bar, transformers.utils.logging.enable_progress_bar
    ),
    "datasets": lambda: switched(datasets.disable_progress_bars, datasets.enable_progress_bars),
}


@contextlib.contextmanager
def switched(off, on):
    off()
    try:
        yield
    finally:
        on()


@pytest.mark.parametrize("switch", SWITCHES)
def test_where_bars_are_switched_off_the_log_has_its_line(switch, terminal, lines):
    with SWITCHES[switch]():
        list(progress(range(3), "what it is"))
    assert terminal.getvalue() == ""
    assert lines() == ["what it is: 3 rows in 0:00:00"]
    # Control: and they are on again.
    list(progress(range(3), "what it is"))
    assert "what it is: 100%" in terminal.getvalue()


def test_the_environments_switches_hold(monkeypatch):
    code = IN_A_TERMINAL.format(number=12)
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert written_to_a_terminal(code) == "", variable


def test_a_script_may_have_a_module_called_datasets(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    list(progress(range(3), "what it is"))
    assert "what it is: 100%" in terminal.getvalue()


@dataclass(frozen=True, kw_only=True)
class TakesLong(LogEverything):
    """Prepares in one hook before, and in one within training and evaluation."""

    name: ClassVar[str] = "takes-long"

    def ft_model(self, model):
        list(progress(range(2), "building"))

    def ft_evaluation(self, trainer):
        list(progress(range(2), "evaluating"))


@pytest.mark.parametrize("disabled", [False, True])
def test_under_the_host_the_trainers_arguments_decide(disabled, tmp_path, terminal):
    trainer = tiny_trainer(tmp_path, TakesLong(), disable_tqdm=disabled, max_steps=1, save_strategy="no")
    trainer.train()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert terminal.getvalue().count("building: 100%") == (0 if disabled else 1)
    assert ("evaluating" in terminal.getvalue()) == (not disabled)


# ---- the loop ----


def test_items_come_in_order_and_each_when_it_is_asked_for(terminal):
    made = []

    def items():
        for number in range(5):
            made.append(number)
            yield number

    for number in progress(items(), "what it is"):
        assert made == list(range(number + 1))
    assert made == list(range(5))


def test_no_random_number_is_drawn(terminal):
    random.seed(3)
    drawn = [random.random() for _ in progress(range(4), "what it is")]
    random.seed(3)
    assert drawn == [random.random() for _ in range(4)]


def fails_at_two():
    yield from range(2)
    raise ValueError("in the iterable")


@pytest.mark.parametrize("iterable", [fails_at_two(), range(9)], ids=["in the iterable", "in the loop"])
def test_a_loop_that_raises_closes_the_bar(iterable, terminal):
    def loop():
        for number in progress(iterable, "what it is"):
            if number == 4:
                raise ValueError("in the loop")

    with pytest.raises(ValueError, match=r"in the (iterable|loop)"):
        loop()
    assert no_bar_is_open()
    assert "what it is" in terminal.screen()[0]
    assert terminal.screen()[-1] == ""


def test_a_loop_that_is_left_early_closes_the_bar_and_leaves_the_iterator(terminal):
    items = (number for number in range(9))
    for number in progress(items, "what it is", total=9):
        assert not no_bar_is_open() or number == 0
        if number == 3:
            break
    assert no_bar_is_open()
    assert list(items) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("how", ["a log", "another rank", "TQDM_DISABLE"])
def test_without_a_bar_too_an_iterator_goes_on_where_the_loop_was_left(how, at_once, monkeypatch):
    if how == "another rank":
        monkeypatch.setenv("RANK", "1")
    screen = given_a_terminal(monkeypatch) if how == "TQDM_DISABLE" else Terminal()
    if how == "TQDM_DISABLE":
        disabled = functools.partial(tqdm.tqdm, disable=True)
        monkeypatch.setattr(progress_module, "_bar_class", lambda: disabled)
    items = (number for number in range(9))
    assert list(islice(progress(items, "what it is"), 4)) == [0, 1, 2, 3]
    assert list(items) == [4, 5, 6, 7, 8]
    assert screen.getvalue() == ""


def test_an_item_costs_less_than_a_microsecond(at_once):
    count = 300_000

    def seconds(items):
        began = time.perf_counter()
        for _ in items:
            pass
        return time.perf_counter() - began

    best = min(seconds(progress(range(count), "what it is")) - seconds(range(count)) for _ in range(3))
    assert best / count < 1e-6
