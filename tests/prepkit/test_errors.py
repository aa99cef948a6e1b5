"""The parts that messages share."""

import time

import pytest

from prepkit.errors import counted, listed, nearest


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1_200, "1,200 rows"), (-1, "-1 rows")]
)
def test_a_noun_agrees_with_its_number(number: int, text: str) -> None:
    assert counted(number, "row") == text


def test_an_unusual_plural_is_given() -> None:
    assert (counted(1, "class", "classes"), counted(2, "class", "classes")) == ("1 class", "2 classes")


def test_a_long_list_is_cut() -> None:
    assert listed("abcdef") == "a, b, c, d, e, f"
    assert listed("abcdefgh", limit=3) == "a, b, c and 5 more"


def test_only_a_close_choice_is_suggested() -> None:
    assert nearest("resnet88", ["resnet8", "lenet"]) == " Did you mean 'resnet8'?"
    assert nearest("resnet88", ["vgg"]) == ""


def test_the_nearest_of_a_million_names_is_found_at_once() -> None:
    names = [f"resnet8-{number:07}" for number in range(1_000_000)]
    started = time.process_time()
    asked = {
        "resnet8-012345": "resnet8-0",
        "resnet8-0999998xy": "resnet8-0999998",
        "rsenet8-0000017": "resnet8-0000017",
        "RESNET8-0000017": "resnet8-0000017",
    }
    for wrong, right in asked.items():
        assert f"Did you mean '{right}" in nearest(wrong, names)
    assert nearest("chair", names) == ""
    assert time.process_time() - started < 8  # comparing all took 18 s for one
