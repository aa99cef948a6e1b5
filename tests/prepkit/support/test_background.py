"""Calls beside the caller: in order, one at a time, and no error is lost."""

import threading

import pytest

from prepkit.support.background import Background


def test_calls_are_made_one_after_another_beside_the_caller():
    seen, may_go_on = [], threading.Event()

    def first():
        assert may_go_on.wait(10)
        seen.append("first")

    with Background() as background:
        background.call(first)
        seen.append("caller")  # the call is not waited for
        may_go_on.set()
        background.call(seen.append, "second")
    assert seen == ["caller", "first", "second"]


@pytest.mark.parametrize("at_end", [True, False])
def test_an_error_is_raised_by_the_next_call_or_at_the_end(at_end):
    def fails():
        raise OSError("disk full")

    seen = []

    def calls():
        with Background() as background:
            background.call(fails)
            if not at_end:
                background.call(seen.append, 1)

    with pytest.raises(OSError, match="disk full"):
        calls()
    assert seen == []
