"""Tables, sizes and times as people read them."""

import math

import pytest

from prepkit.support.text import duration, readable_bytes, readable_seconds, short_number, table


def test_a_table_aligns_whole_numbers_to_the_right():
    assert table([("a", 1_200, "x"), ("long", 7, "yy")], ("name", "rows", "")).splitlines() == [
        "name   rows",
        "----  -----  --",
        "a     1,200  x",
        "long      7  yy",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_bytes(count, text):
    assert readable_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (123.9, "02:03"), (3600, "1:00:00"), (93_784, "26:03:04")])
def test_seconds(seconds, text):
    assert readable_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (1234, "1,234"),
        (0.98765, "0.9877"),
        (-2.5, "-2.5"),
        (12345.6, "12,346"),
        (math.nan, "none"),
    ],
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
