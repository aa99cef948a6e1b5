"""Tables, sizes and times as people read them."""

import pytest

from prepkit.text import readable_bytes, readable_seconds, table


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
