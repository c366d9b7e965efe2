"""Off a terminal whole lines, half a minute apart; on one a bar, also where the terminal says that it has no size."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import sys
import termios
import types

import pytest

from autolora.common import progress
from autolora.common.progress import bar, duration, named


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr("time.monotonic", found)
    monkeypatch.setattr("tqdm.std.time", found)
    return found


def said(clock, steps, seconds, **options):
    """What is written of so many steps that take so long each."""
    file = io.StringIO()
    with named("finetune"), bar(steps, "autolora", "epoch", file=file, **options) as shown:
        for _ in range(steps):
            clock.now += seconds
            shown.update(1)
    return file.getvalue()


def test_a_line_every_half_minute(clock):
    lines = said(clock, 60, 10).splitlines()
    assert len(lines) == 20
    assert lines[0] == "finetune: autolora: 5%| 3 of 60 epochs, 30 s so far, about 9 min still"
    assert lines[-1] == "finetune: autolora: 100%| 60 of 60 epochs, 10 min so far, about 0 s still"


def test_nothing_to_do_shows_nothing(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    with bar(0, "square", file=file):
        pass
    assert file.getvalue() == ""


def test_work_that_follows_at_once_is_not_silent(clock):
    """Four attacks of twenty seconds each; what begins a minute later is other work."""
    said(clock, 1, 31)
    clock.now += 60
    texts = [said(clock, 20, 1) for _ in range(4)]
    assert [len(text.splitlines()) for text in texts] == [0, 1, 1, 0]
    clock.now += 60
    assert said(clock, 20, 1) == ""


def test_no_carriage_return_and_nothing_of_short_work(clock):
    assert "\r" not in said(clock, 60, 10)
    assert said(clock, 60, 0.4) == ""


def test_steps_slower_than_half_a_minute_are_a_line_each(clock):
    assert len(said(clock, 5, 100).splitlines()) == 5


def test_what_was_done_before_counts_for_no_speed(clock):
    """Gone on from 50 of 60: ten steps of 40 s are left, whatever the first fifty took."""
    file = io.StringIO()
    with bar(60, "autolora", "epoch", file=file, initial=50) as shown:
        clock.now += 40
        shown.update(1)
    assert file.getvalue() == "autolora: 85%| 51 of 60 epochs, 40 s so far, about 6 min still\n"


def test_postfix_new_words_and_a_total_that_shrinks(clock):
    file = io.StringIO()
    with bar(100, "square: 9 of 9 stand", file=file) as shown:
        clock.now += 60
        shown.total -= 50
        shown.set_description_str("square: 4 of 9 stand", refresh=False)
        shown.set_postfix(loss=1, refresh=False)
        shown.update(25)
    assert file.getvalue() == "square: 4 of 9 stand: 50%| 25 of 50 steps, 60 s so far, about 60 s still (loss=1)\n"


def test_a_length_that_is_not_known(clock):
    file = io.StringIO()
    for _ in bar(None, "prepare", " image", file=file, iterable=iter(range(7))):
        clock.now += 10
    assert file.getvalue().splitlines()[0] == "prepare: 3 images, 30 s so far"


def test_a_message_in_between_stands_on_its_own_line(clock):
    file = io.StringIO()
    with bar(10, "merge", file=file) as shown:
        shown.update(1)
        shown.write("merge: alpha = 0", file=file)
    assert file.getvalue() == "merge: alpha = 0\n"


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (80, 24)])
def test_a_terminal_shows_a_bar_also_when_its_size_is_0(columns, rows):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(follower, "w") as terminal, bar(4, "autolora", file=terminal) as shown:
        shown.update(4)
        shown.refresh()
        seen = ""
        while "4/4" not in seen and select.select([leader], [], [], 10)[0]:  # it comes in pieces
            seen += os.read(leader, 65536).decode()
    os.close(leader)
    assert "autolora: 100%|" in seen
    assert "4/4" in seen
    assert "more hidden" not in seen


def test_a_notebook_gets_a_bar_of_its_own(monkeypatch):
    """A kernel is known by its configuration; tqdm then chooses what its page can show."""
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert progress.in_notebook()
    with bar(3, "autolora", file=io.StringIO()) as shown:
        assert not isinstance(shown, progress.Lines)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not progress.in_notebook()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"), (200_000, "2 days 7 h")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words
