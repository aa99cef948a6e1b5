"""Tests of conditions against Python's own eval, row by row; hostile texts end in a WhereError and nothing else."""

import math
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prepkit.errors import WhereError
from prepkit.zoo.read.where import MAX_LENGTH, parse_where

COLUMNS = ("whole", "real", "word", "flag")
SCHEMA = pa.schema([("whole", pa.int64()), ("real", pa.float64()), ("word", pa.string()), ("flag", pa.bool_())])


@dataclass(frozen=True)
class Leaf:
    """A comparison of two terms, or a boolean column: its text, and the columns in it."""

    text: str
    names: tuple[str, ...]

    def of(self, row):
        if any(row[name] is None for name in self.names):
            return None
        return eval(self.text, {}, dict(row))


@dataclass(frozen=True)
class Presence:
    """`is None` and the like, which are true or false for every row."""

    text: str

    def of(self, row):
        return eval(self.text, {}, dict(row))


@dataclass(frozen=True)
class Not:
    one: object

    @property
    def text(self):
        return f"not ({self.one.text})"

    def of(self, row):
        value = self.one.of(row)
        return None if value is None else not value


@dataclass(frozen=True)
class Many:
    word: str
    parts: tuple

    @property
    def text(self):
        return f" {self.word} ".join(f"({part.text})" for part in self.parts)

    def of(self, row):
        values = [part.of(row) for part in self.parts]
        deciding = self.word == "or"
        if any(value is deciding for value in values):
            return deciding
        return None if None in values else not deciding


@dataclass(frozen=True)
class Chain(Many):
    """`low <= name < high`, which means `low <= name and name < high`."""

    written: str = ""

    @property
    def text(self):
        return self.written


wholes = st.integers(-5, 5)
reals = st.sampled_from([-1.5, 0.0, 0.1, 0.25, 2.0, 3.0, 1e300, math.inf])
words = st.sampled_from(["", "a", "b", "train", "é'\"\\", "None"])
operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
constants = {
    "whole": (wholes | reals.filter(math.isfinite)).map(repr),
    "real": (wholes | reals.filter(math.isfinite)).map(repr),
    "word": words.map(repr),
    "flag": st.sampled_from(["True", "False"]),
}


@st.composite
def comparisons(draw):
    name = draw(st.sampled_from(COLUMNS))
    operator = draw(operators if name != "flag" else st.sampled_from(["==", "!="]))
    kind = draw(st.sampled_from(["right", "left", "column", "chain", "list", "none", "plain"]))
    first, second = draw(constants[name]), draw(constants[name])
    if kind == "column":
        other = {"whole": "real", "real": "whole"}.get(name, name)
        return Leaf(f"{name} {operator} {other}", (name, other))
    if kind == "chain":
        links = (Leaf(f"{first} {operator} {name}", (name,)), Leaf(f"{name} {operator} {second}", (name,)))
        return Chain("and", links, f"{first} {operator} {name} {operator} {second}")
    if kind == "list":
        word = draw(st.sampled_from(["in", "not in"]))
        left, right = draw(st.sampled_from([("(", ",)"), ("[", "]"), ("{", "}")]))
        return Leaf(f"{name} {word} {left}{first}, {second}{right}", (name,))
    if kind == "none":
        return Presence(draw(st.sampled_from([f"{name} is None", f"{name} is not None", f"{name} == None"])))
    if kind == "plain":
        return Leaf("flag", ("flag",))
    return Leaf(f"{name} {operator} {first}" if kind == "right" else f"{first} {operator} {name}", (name,))


conditions = st.recursive(
    comparisons(),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(Many, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {
        "whole": st.none() | wholes,
        "real": st.none() | reals | st.just(math.nan),
        "word": st.none() | words,
        "flag": st.none() | st.booleans(),
    }
)


def selected(text, table):
    numbered = table.append_column("number", pa.array(range(len(table)), pa.int64()))
    return numbered.filter(parse_where(text, table.column_names))["number"].to_pylist()


def table_of(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@settings(max_examples=400, deadline=None)
@given(conditions, st.lists(rows, min_size=1, max_size=6))
@example(Not(Leaf("whole in (1, 2)", ("whole",))), [{"whole": None, "real": None, "word": None, "flag": None}])
def test_a_condition_selects_what_python_would(condition, some_rows):
    expected = [number for number, row in enumerate(some_rows) if condition.of(row) is True]
    assert selected(condition.text, table_of(some_rows)) == expected, condition.text


FIVE = table_of(
    [
        {"whole": whole, "real": real, "word": word, "flag": flag}
        for whole, real, word, flag in [
            (1, 0.5, "a", True),
            (2, math.nan, "b", False),
            (None, 0.7, None, None),
            (4, None, "a", True),
            (5, 0.9, "c", None),
        ]
    ]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("whole > 1", [1, 3, 4]),
        ("not whole > 1", [0]),  # the row without a value is in neither
        ("whole in (1, 2)", [0, 1]),
        ("whole not in (1, 2)", [3, 4]),
        ("not whole in (1, 2)", [3, 4]),
        ("not (whole not in (1, 2))", [0, 1]),
        ("not whole > 100 and word is None", []),
        ("whole > 100 or word is None", [2]),  # the other side decides
        ("whole is None", [2]),
        ("whole == None", [2]),
        ("None != whole", [0, 1, 3, 4]),
        ("real != 0.5", [1, 2, 4]),  # NaN is a value that equals nothing
        ("flag", [0, 3]),
        ("not flag", [1]),
        ("flag and 1 <= whole < 4", [0]),
        ("whole in (1, 2.5)", [0]),
        ("whole > -1 and real < +0.8", [0]),
        ("  word == 'a'  # two of them", [0, 3]),
    ],
)
def test_missing_values_and_the_forms_of_a_condition(text, expected):
    assert selected(text, FIVE) == expected


def test_a_column_without_any_value_matches_nothing_but_none():
    empty = pa.table({"x": pa.nulls(2)})
    assert selected("x == 3", empty) == selected("not x > 3", empty) == []
    assert selected("x is None", empty) == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "whole >",
        "whole = 1",
        "open('/etc/passwd')",
        "__import__('os').system('true') == 0",
        "whole.__class__ == 1",
        "word.upper() == 'A'",
        "(lambda: 1)() == whole",
        "[whole for whole in (1,)] == 1",
        "whole[0] == 1",
        "(whole := 3) == 3",
        "f'{whole}' == word",
        "b'a' == word",
        "whole == 1j",
        "whole == ...",
        "whole + 1 > 2",
        "whole if flag else real",
        "1 < 2",
        "'a' in word",
        "whole in ()",
        "whole in word",
        "whole in (1, None)",
        "whole in (1, real)",
        "whole in (*word,)",
        "whole is True",
        "whole is 3",
        "whole < None",
        "None is None",
        "- -1 < whole",
        "-True < whole",
        "~whole == 1",
        "True",
        "'a'",
        "__class__ == 1",
        "__number__ == 1",
        "whole > 1; flag",
        "whole > 1\nflag",
        "import os",
        "await whole",
        "yield",
        "whole == 'a\0'",
        "\0",
        "\ud800",
        "word == '\\ud800'",
        "whole > 99999999999999999999",
        "whole < " + "9" * 5000,
        "(" * 5000 + "flag" + ")" * 5000,
        "[" * 150 + "]" * 150 + " == whole",
        "not " * 2400 + "flag",
        "-" * 9000 + "1 < whole",
        "flag" + ".x" * 4000,
        "x" * (MAX_LENGTH + 1),
        "flag and " * 10**6 + "flag",
    ],
    ids=lambda text: text[:40].encode("ascii", "backslashreplace").decode(),
)
def test_what_is_no_condition_is_a_where_error_in_one_short_line(text):
    with pytest.raises(WhereError) as error:
        parse_where(text, COLUMNS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 900
    str(error.value).encode()


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | st.text("()[]{}<>=!.,'\"notandris wholef123-+*:\\", max_size=60))
def test_any_text_is_a_condition_or_a_where_error(text):
    with suppress(WhereError):
        parse_where(text, COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy > 0.8", "there is no column 'acuracy'; there are accuracy, split. Did you mean 'accuracy'?"),
        ("accuracy", None),
        ("accuracy > 0.8 and split", None),
        ("split in 'train'", "at \"'train'\": `in` needs a list of constants such as ('train', 'test')"),
        ("accuracy > open", "there is no column 'open'"),
        ("accuracy > 0.8 & split", "use `and`, `or`, `not`"),
        ("accuracy > 0.8 & epoch == 5", "at '0.8 & epoch': use `and`, `or`, `not`"),
        ("(accuracy > 0.8) | (split == 'train')", "use `and`, `or`, `not`"),
        ("~(accuracy > 0.8)", "use `and`, `or`, `not`"),
        ("accuracy >", "is not a condition: invalid syntax. Example: accuracy > 0.8 and split == 'train'"),
    ],
)
def test_errors_say_the_place_and_what_to_do(text, message):
    if message is None:
        parse_where(text, ["accuracy", "split"])  # whether a column is boolean, the table says
        return
    with pytest.raises(WhereError) as error:
        parse_where(text, ["accuracy", "split"])
    assert message in str(error.value)


def test_a_long_flat_condition_is_no_deep_tree():
    text = " or ".join(f"whole == {number % 7}" for number in range(600))
    assert selected(text, FIVE) == [0, 1, 3, 4]
    assert selected(f"whole in {tuple(range(1500))}", FIVE) == [0, 1, 3, 4]


# Names in backticks -------------------------------------------------------------------------------------------

NAMED = pa.table(
    {"config.l2": [1, 2, 3], "train-acc": [0.1, 0.5, 0.9], "a b": ["`x`", "y", "config.l2"], "class": [1, 2, 3]}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`config.l2` > 1", [1, 2]),
        ("0.2 < `train-acc` < 0.6 and `class` == 2", [1]),
        ("`a b` == '`x`'", [0]),
        ('`a b` in ("`x`", "config.l2")', [0, 2]),
        ("not`config.l2`in(1,2)", [2]),
        ("`config.l2` is not None", [0, 1, 2]),
        ("`a b` == 'it\\'s `'", []),
    ],
)
def test_names_in_backticks(text, expected):
    assert selected(text, NAMED) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config.l2 > 1", "put the name of the column in backticks: `config.l2`"),
        ("train-acc > 0.5", "put the name of the column in backticks: `train-acc`"),
        ("`config.l3` > 1", "there is no column 'config.l3'; there are config.l2, train-acc, a b, class. Did you mean"),
        ("`config.l2 > 1", "is not a condition: a backtick is not closed"),
        ("`` > 1", "there is no column ''"),
        ("'config.l2' > 1", "a comparison needs a column"),
    ],
)
def test_errors_on_names_in_backticks(text, message):
    with pytest.raises(WhereError) as error:
        parse_where(text, NAMED.schema)
    assert message in str(error.value)
