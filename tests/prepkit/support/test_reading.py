"""Reading data from outside: what sections accept, what errors say, and the reference of their keys."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from prepkit.errors import RegistryError, ZooError
from prepkit.support.reading import (
    NOT_A_KEY,
    Place,
    between,
    checked,
    choice,
    keys_of,
    list_of,
    number,
    parse_toml,
    read,
    read_file,
    reference,
    whole,
)

FILE = Place("my.toml")


@dataclass(frozen=True)
class Inner:
    """The part inside. More is said below."""

    EXAMPLE = "{size = 3}"

    size: Annotated[int, whole(1, 9), "size of the part"]


@dataclass(frozen=True)
class Outer:
    """All of it."""

    name: str
    inner: Inner
    kind: Annotated[Literal["red", "blue"], "colour | shade"] = "red"
    share: Annotated[float | None, between(0, 1), "share of all"] = None
    names: tuple[str, ...] = ()
    flag: bool = False
    other: Inner = Inner(2)
    table: Any = None
    note: Annotated[str, NOT_A_KEY] = "ours"


LEAST = {"name": "x", "inner": {"size": 3}}


def test_a_table_becomes_a_section():
    data = {**LEAST, "kind": "blue", "share": 1, "names": ["a"], "flag": True, "table": {"a": 1}}
    section = read(Outer, data, FILE)
    assert section == Outer("x", Inner(3), "blue", 1.0, ("a",), True, Inner(2), {"a": 1})
    assert type(section.share) is float
    assert read(Outer, {**LEAST, "share": None}, FILE) == Outer("x", Inner(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"nam": "x"},
            "my.toml: unknown key 'nam'; known are name, inner, kind, share, names, flag, other, table. Did",
        ),
        ({"note": "x"}, "my.toml: unknown key 'note'"),
        ({"name": 3}, "my.toml, name: expected text; found 3."),
        ({"inner": 3}, "my.toml, inner: expected a table of size; found 3."),
        ({"inner": {}}, "my.toml, inner: 'size' is missing; expected a whole number from 1 to 9."),
        ({"inner": {"size": 10}}, "my.toml, inner.size: expected a whole number from 1 to 9; found 10."),
        ({"inner": {"size": True}}, "my.toml, inner.size: expected a whole number from 1 to 9; found true."),
        ({"kind": "rod"}, "my.toml, kind: expected one of red, blue; found 'rod'. Did you mean 'red'?"),
        ({"kind": ["red"]}, "my.toml, kind: expected one of red, blue; found ['red']."),
        ({"share": float("nan")}, "my.toml, share: expected a number from 0 to 1; found nan."),
        ({"names": "abc"}, "my.toml, names: expected a list; found 'abc'."),
        ({"names": ["a", 3]}, "my.toml, names[1]: expected text; found 3."),
        ({"flag": 0}, "my.toml, flag: expected true or false; found 0."),
    ],
)
def test_an_error_says_where_what_is_expected_and_what_was_found(change, message):
    with pytest.raises(ZooError) as caught:
        read(Outer, {**LEAST, **change}, FILE)
    assert str(caught.value).startswith(message)


def test_what_is_missing_is_shown_by_example():
    with pytest.raises(ZooError, match=r"^my\.toml: 'inner' is missing; e\.g\. inner = \{size = 3\}\.$"):
        read(Outer, {"name": "x"}, FILE)


def test_a_section_may_ignore_unknown_keys():
    @dataclass(frozen=True)
    class Lenient(Outer):
        IGNORES_UNKNOWN: ClassVar[bool] = True

    assert read(Lenient, {**LEAST, "later": 3}, FILE) == Lenient("x", Inner(3))
    with pytest.raises(ZooError, match="unknown key 'later'"):
        read(Lenient, {"name": "x", "inner": {"size": 3, "later": 3}}, FILE)


def test_errors_are_of_the_class_that_the_place_names():
    with pytest.raises(RegistryError, match=r'^x\.json, a\[2\]\."b c": expected a list; found 3\.$'):
        list_of(whole())(3, Place("x.json", error=RegistryError)["a"][2]["b c"])


def test_long_values_are_cut():
    with pytest.raises(ZooError) as caught:
        choice("a", "b")("x" * 100, FILE)
    assert str(caught.value) == f"my.toml: expected one of a, b; found '{'x' * 76}...."


def test_own_readers():
    even = checked("an even number", lambda value: type(value) is int and value % 2 == 0, lambda value: value // 2)
    assert list_of(even, "even numbers", least=1)([2, 4], FILE) == (1, 2)
    with pytest.raises(ZooError, match=r"my\.toml: expected even numbers; found \[\]\."):
        list_of(even, "even numbers", least=1)([], FILE)
    with pytest.raises(ZooError, match=r"^my\.toml, \[1\]: expected an even number; found 3"):
        list_of(even)([2, 3], FILE)
    assert number("any", lambda value: True)(3, FILE) == 3.0


def test_files(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes("\ufeffa = 'ä'".encode())
    assert parse_toml(read_file(path, FILE), FILE) == {"a": "ä"}
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ZooError, match=r"^my\.toml: is not UTF-8 text: invalid start byte at byte 5\.$"):
        read_file(path, FILE)
    with pytest.raises(ZooError, match=r"^my\.toml: cannot be read: No such file or directory\. Look elsewhere\.$"):
        read_file(tmp_path / "none", FILE, " Look elsewhere.")
    with pytest.raises(ZooError, match=r"^my\.toml: is not TOML: "):
        parse_toml("a = = 3", FILE)


def test_the_reference_of_a_section():
    assert list(keys_of(Outer)) == ["name", "inner", "kind", "share", "names", "flag", "other", "table"]
    assert reference(Outer, "x").split("\n\n") == [
        "### `[x]`",
        "All of it.",
        "| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `name` | text | required |  |\n"
        "| `inner` | a table, see below | required | The part inside. More is said below. |\n"
        "| `kind` | one of red, blue | `'red'` | colour \\| shade |\n"
        "| `share` | a number from 0 to 1 |  | share of all |\n"
        "| `names` | a list | `[]` |  |\n"
        "| `flag` | true or false | `false` |  |\n"
        "| `other` | a table, see below |  | The part inside. More is said below. |\n"
        "| `table` | a table |  |  |",
        "### `[x.inner]`",
        "The part inside. More is said below.",
        "| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `size` | a whole number from 1 to 9 | required | size of the part |",
        "### `[x.other]`",
        "The part inside. More is said below.",
        "| key | value | default | meaning |\n| --- | --- | --- | --- |\n"
        "| `size` | a whole number from 1 to 9 | required | size of the part |",
    ]
