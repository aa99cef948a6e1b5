"""The bar and the lines of progress, on streams that are no real terminal."""

import io
import re
from contextlib import redirect_stderr, suppress

import pytest
from fake_terminal import Terminal

from prepkit.support import progress
from prepkit.support.progress import SHARE, ProgressBar, ProgressInWords, StatusLine, one_at_a_time


class Clock:
    """A clock that a test sets."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


# pytest sets sys.stderr anew before each test, so each test redirects it itself.
def no_terminal() -> redirect_stderr[io.StringIO]:
    return redirect_stderr(io.StringIO())


def a_terminal() -> redirect_stderr[io.StringIO]:
    return redirect_stderr(Terminal())


# Lines ----------------------------------------------------------------------------------------------------------


def test_lines_come_now_and_then(clock):
    with no_terminal() as lines, ProgressBar("packing", "model") as bar:
        bar.begin(1_500)
        for _ in range(30):
            clock.now += 1
            bar.advance(10)
    assert lines.getvalue().splitlines() == [
        "packing: 100 of 1,500 models, 02:20 left",
        "packing: 200 of 1,500 models, 02:10 left",
        "packing: 300 of 1,500 models, 02:00 left",
    ]


def test_a_short_task_prints_nothing(clock):
    with no_terminal() as lines, ProgressBar("pulling", "B") as bar:
        bar.begin(2048)
        clock.now += 9
        bar.advance(2048, "6 of 6 instances")
    assert lines.getvalue() == ""


def test_a_text_at_the_beginning_is_printed_at_once_and_the_end_too(clock):
    with no_terminal() as lines, ProgressBar("training", SHARE) as bar:
        bar.begin(8.0, text="0/4 instances")
        clock.now += 1
        bar.advance(8.0)
        bar.advance(0.0, "4/4 instances")
    assert lines.getvalue().splitlines() == ["training: 0%, 0/4 instances", "training: 100%, 4/4 instances"]


def test_there_is_no_estimate_before_something_is_done_and_none_of_what_was_done_before(clock):
    with no_terminal() as lines, ProgressBar("training", "step") as bar:
        bar.begin(100, 50, "50 left")
        clock.now += 10
        bar.advance(0)
        clock.now += 10
        bar.advance(25, "loss 0.1")
    assert lines.getvalue().splitlines() == [
        "training: 50 of 100 steps, 50 left",
        "training: 50 of 100 steps, 50 left",
        "training: 75 of 100 steps, loss 0.1, 00:20 left",
    ]


def test_bytes_are_readable_and_their_end_may_be_unknown(clock):
    with no_terminal() as lines, ProgressBar("merging", "B") as bar:
        bar.begin(0)
        clock.now += 10
        bar.advance(1536)
        bar.begin(4096)
        clock.now += 10
        bar.advance(1024)
    assert lines.getvalue().splitlines() == ["merging: 1.5 KiB", "merging: 1.0 KiB of 4.0 KiB, 00:30 left"]


def test_what_is_said_has_a_line_of_its_own():
    for stream in (no_terminal(), a_terminal()):
        with stream as drawn, ProgressBar("training", "step") as bar:
            bar.begin(2)
            bar.say("note: well")
        assert "note: well\n" in drawn.getvalue()


def test_nothing_where_it_is_quiet(clock):
    for stream in (no_terminal(), a_terminal()):
        with stream as drawn:
            with ProgressBar("training", "step", quiet=True) as bar:
                bar.begin(2, text="two")
                clock.now += 20
                bar.advance(2, "none")
                bar.say("note: well")
            line = StatusLine(quiet=True)
            line.show("training", "step 1")
            line.close()
        assert drawn.getvalue() == ""


def test_nothing_where_a_command_says_so():
    before = progress.show_progress.set(False)
    try:
        with a_terminal() as drawn:
            with ProgressBar("training", "step") as bar:
                bar.begin(2, text="two")
            StatusLine().show("training", "step 1")
        assert drawn.getvalue() == ""
    finally:
        progress.show_progress.reset(before)


# Bars -----------------------------------------------------------------------------------------------------------


def test_a_bar_of_work_with_its_text():
    with a_terminal() as terminal, ProgressBar("training", SHARE) as bar:
        bar.begin(8.0, text="0/4 instances")
        bar.advance(4.0)
        bar.advance(4.0)
        bar.advance(0.0, "4/4 instances, accuracy 0.962 in the last stack")
    first, *_, last = terminal.getvalue().strip().split("\r")
    assert re.match(r"training   0%\| +\| 0/4 instances \[00:00<\?\]", first)
    assert re.match(r"training 100%\|█+\| 4/4 instances, accuracy 0\.962 in the last stack \[\d\d:\d\d<00:00\]", last)


def test_a_bar_of_steps_that_goes_on():
    with a_terminal() as terminal, ProgressBar("training", "step") as bar:
        bar.begin(10, 5, "5 left")
        bar.advance(5, "loss 0.1")
    last = terminal.getvalue().strip().split("\r")[-1]
    assert re.match(r"training: 100%\|█+\| 10/10 \[.*step.*, loss 0\.1\]", last)


@pytest.mark.parametrize("done", [0, 1])
def test_a_bar_of_a_task_that_was_refused_goes(done):
    with a_terminal() as terminal, suppress(ValueError), ProgressBar("packing", "model") as bar:
        bar.begin(2)
        bar.advance(done)
        raise ValueError
    last = terminal.getvalue().split("\r")[-1]
    assert (last.strip() == "") == (done == 0)
    assert ("1/2" in terminal.getvalue()) == (done == 1)


def test_a_bar_of_whole_numbers():
    with a_terminal() as terminal, ProgressBar("packing", "model") as bar:
        bar.begin(2)
        bar.advance(2)
    assert re.search(r"packing:   0%\| +\| 0/2 \[.*\rpacking: 100%\|█+\| 2/2 \[", terminal.getvalue())


def test_a_bar_of_bytes():
    with a_terminal() as terminal, ProgressBar("pulling", "B") as bar:
        bar.begin(2_000_000)
        bar.advance(2_000_000)
    assert re.search(r"pulling: 100%\|█+\| 2\.00M/2\.00M \[.*B/s\]", terminal.getvalue())


# Words, threads, status -----------------------------------------------------------------------------------------


def test_progress_in_words():
    heard = []
    words = ProgressInWords("step", heard.append)
    words.begin(1_500)
    words.advance(20, "loss 0.31")
    words.advance(20)
    assert heard == ["0 of 1,500 steps", "20 of 1,500 steps, loss 0.31", "40 of 1,500 steps, loss 0.31"]


def test_one_at_a_time_hands_on_all_and_needs_no_listener():
    heard = []
    one_at_a_time(heard.append)(3)
    one_at_a_time(None)(3)
    assert heard == [3]


def test_a_status_line_without_a_terminal(clock):
    with no_terminal() as lines:
        line = StatusLine()
        for topic, text, seconds in (("a", "a 1", 0), ("a", "a 2", 9), ("b", "b 1", 0), ("b", "b 2", 10)):
            clock.now += seconds
            line.show(topic, text)
        line.close()
    assert lines.getvalue().splitlines() == ["a 1", "b 1", "b 2"]


def test_a_status_line_is_drawn_over_and_cut_to_the_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "8")
    with a_terminal() as terminal:
        line = StatusLine()
        line.show("a", "0123456789")
        line.show("a", "too soon")
        clock.now += 1
        line.show("a", "end")
        line.close()
    assert terminal.getvalue() == "\r0123456\rend    \n"
