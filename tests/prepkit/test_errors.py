"""The parts that messages share."""

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
