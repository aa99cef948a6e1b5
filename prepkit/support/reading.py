"""Data from outside, TOML or JSON, read into frozen dataclasses whose fields say what each key may hold.

    @dataclass(frozen=True)
    class Batch:
        instances: Annotated[int, whole(1), "instances of one step"]
        shuffle: Annotated[bool, "whether their order is drawn"] = True

    read(Batch, {"instances": 8}, Place("my.toml", ("batch",)))     # Batch(instances=8, shuffle=True)

Type, reader, documentation and default of a key stand together in its field; `reference` writes the documentation of
all keys from them. Each error names the file, the key, what is expected there and what was found.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from prepkit.errors import PrepkitError, ZooError, listed, nearest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

BAR = "\\|"  # how a cell of a Markdown table writes |
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
REQUIRED: Any = object()  # the default of a key that must be there
NOT_A_KEY = object()  # in a field's Annotated: the field is not read from data

T = TypeVar("T")


class Place:
    """Where a value stands: a file, and the keys and positions that lead to it; `str` gives `x.toml, training.epochs`.

    error: the class of the errors about this file
    """

    __slots__ = ("error", "file", "keys")  # A dataclass would make opening a zoo of many shards a third slower.

    def __init__(self, file: str, keys: tuple[str | int, ...] = (), error: type[PrepkitError] = ZooError) -> None:
        self.file, self.keys, self.error = file, keys, error

    def __getitem__(self, key: str | int) -> Place:
        return Place(self.file, (*self.keys, key), self.error)

    def __str__(self) -> str:
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{_written(key)}" for key in self.keys)
        return f"{self.file}, {path.removeprefix('.')}" if path else self.file


class Reader(NamedTuple):
    """Returns what a value means, or raises an error that names its place.

    words:   what the value may be, as errors and the reference say it
    example: a right value, as TOML writes it
    section: the dataclass that it reads, if it reads one
    """

    words: str
    read: Callable[[Any, Place], Any]
    example: str = ""
    section: type | None = None

    def __call__(self, value: Any, place: Place) -> Any:
        """Read a value."""
        return self.read(value, place)


class Key(NamedTuple):
    """One key of a table."""

    reader: Reader
    doc: str = ""
    default: Any = REQUIRED


Keys = Mapping[str, Key]
_KEYS_OF: dict[type, Keys] = {}  # finding them takes a hundred times as long as reading a table


def read(section: type[T], data: Any, place: Place) -> T:
    """The section that a table describes; keys it does not know are ignored if it has IGNORES_UNKNOWN, else refused.

    raises the place's error for an unknown, missing or wrong key
    """
    strict = not getattr(section, "IGNORES_UNKNOWN", False)
    return section(**read_keys(keys_of(section), data, place, strict=strict))


def read_keys(keys: Keys, data: Any, place: Place, *, strict: bool = True) -> dict[str, Any]:
    """The values of a table in which each key stands that has no default.

    strict: whether keys that are not among the known ones are refused instead of ignored
    raises the place's error for an unknown, missing or wrong key
    """
    values = given(keys, data, place, strict=strict)
    if len(values) < len(keys):
        require(keys, values, place)
    return values


def given(keys: Keys, data: Any, place: Place, *, strict: bool = True) -> dict[str, Any]:
    """The values of those keys that a table has; see `read_keys`."""
    if not isinstance(data, Mapping):
        raise wrong(place, _table_of(keys), data)
    for key in data if strict else ():
        if key not in keys:
            raise unknown(place, "key", key, keys)
    return {name: key.reader.read(data[name], place[name]) for name, key in keys.items() if name in data}


def require(keys: Keys, values: Iterable[str], place: Place) -> None:
    """Raise the place's error if a key that has no default is not among the values."""
    for name, key in keys.items():
        if key.default is REQUIRED and name not in values:
            raise missing(place[name], key.reader)


def keys_of(section: type) -> Keys:
    """The keys of a section by name, in the order of its fields."""
    if section not in _KEYS_OF:
        hints = get_type_hints(section, include_extras=True)
        keys = [field for field in fields(section) if not _is_no_key(hints[field.name])]
        _KEYS_OF[section] = {field.name: _key(field, hints[field.name]) for field in keys}
    return _KEYS_OF[section]


def _is_no_key(hint: Any) -> bool:
    return any(note is NOT_A_KEY for note in getattr(hint, "__metadata__", ()))


def _key(field: dataclasses.Field[Any], hint: Any) -> Key:
    hint, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    reader = next((note for note in notes if isinstance(note, Reader)), None) or reader_of(hint)
    doc = next((note for note in notes if isinstance(note, str)), "")
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    elif default is dataclasses.MISSING:
        default = REQUIRED
    return Key(or_null(reader) if NoneType in get_args(hint) else reader, doc, default)


# Errors ---------------------------------------------------------------------------------------------------------


def wrong(place: Place, expected: str, value: Any, hint: str = "") -> PrepkitError:
    """The error for a value that is not what its place needs; the hint begins with a space."""
    return place.error(f"{place}: expected {expected}; found {as_toml(value)}.{hint}")


def missing(place: Place, reader: Reader) -> PrepkitError:
    """The error for a key that must be there and is not."""
    table, key = Place(place.file, place.keys[:-1]), _written(str(place.keys[-1]))
    hint = f"e.g. {key} = {reader.example}" if reader.example else f"expected {reader.words}"
    return place.error(f"{table}: '{key}' is missing; {hint}.")


def unknown(place: Place, what: str, asked: object, choices: Iterable[str]) -> PrepkitError:
    """The error for a name that is none of the choices."""
    names = list(choices)
    known = listed(names, 20) or "none"
    return place.error(f"{place}: unknown {what} {asked!r}; known are {known}.{nearest(str(asked), names)}")


def as_toml(value: Any) -> str:
    """A value as TOML writes it, shortened."""
    text = str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _written(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else f'"{key}"'


# Readers --------------------------------------------------------------------------------------------------------


def checked(words: str, holds: Callable[[Any], object], meaning: Callable[[Any], Any] | None = None) -> Reader:
    """A reader of values for which `holds` is true; it returns their `meaning`, or themselves."""

    def check(value: Any, place: Place) -> Any:
        if not holds(value):
            raise wrong(place, words, value)
        return value if meaning is None else meaning(value)

    return Reader(words, check)


def whole(least: int | None = None, most: int | None = None) -> Reader:
    """A whole number from `least` to `most`, which are allowed themselves."""
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    words = "a whole number" + _limits(least, most)
    return checked(words, lambda value: type(value) is int and low <= value <= high)


def number(words: str, holds: Callable[[float], bool]) -> Reader:
    """A finite number for which `holds` is true."""
    return checked(words, lambda value: is_number(value) and holds(value), float)


def between(least: float, most: float | None = None) -> Reader:
    """A finite number from `least` to `most`, which are allowed themselves."""
    high = math.inf if most is None else most
    return number("a number" + _limits(least, most), lambda value: least <= value <= high)


def _limits(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return f" of at least {least:,}" if most is None else f" from {least:,} to {most:,}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; `true` is none."""
    return type(value) in (int, float) and math.isfinite(value)


def choice(*choices: str) -> Reader:
    """One of several names."""
    words = f"one of {listed(choices, 20)}" if len(choices) > 1 else f"{choices[0]!r}"

    def check(value: Any, place: Place) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise wrong(place, words, value, nearest(str(value), choices))

    return Reader(words, check)


def list_of(item: Reader, words: str = "a list", least: int = 0) -> Reader:
    """A list of at least so many items, which the other reader reads; it becomes a tuple."""

    def read_items(value: Any, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise wrong(place, words, value)
        return tuple([item.read(each, place[index]) for index, each in enumerate(value)])

    return Reader(words, read_items)


def or_null(reader: Reader) -> Reader:
    """What the other reader reads, or null, which JSON has where TOML leaves a key out."""
    return reader._replace(read=lambda value, place: None if value is None else reader(value, place))


def reader_of(hint: Any) -> Reader:
    """The reader of values of a type, which may be a section."""
    if hint in BY_TYPE:
        return BY_TYPE[hint]
    if is_dataclass(hint):
        return section_reader(hint)  # type: ignore[arg-type]  # a class, not an instance
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return choice(*arguments)
    if origin is tuple:
        return list_of(reader_of(arguments[0]))
    if origin in (Union, UnionType):
        return reader_of(next(kind for kind in arguments if kind is not NoneType))
    return TABLE


def section_reader(section: type) -> Reader:
    """The reader of a table that a dataclass describes; its EXAMPLE, if it has one, is shown where it is missing."""
    example = getattr(section, "EXAMPLE", "")
    words = _table_of(keys_of(section))
    return Reader(words, lambda value, place: read(section, value, place), example, section)


def _table_of(keys: Keys) -> str:
    return f"a table of {listed(keys, 20)}"


TEXT = checked("text", lambda value: isinstance(value, str))
LINE = checked("one line of text", lambda value: isinstance(value, str) and value.strip() and value.isprintable())
BOOLEAN = checked("true or false", lambda value: isinstance(value, bool))
TABLE = checked("a table", lambda value: isinstance(value, Mapping), dict)
FINITE = number("a number", lambda value: True)
BY_TYPE: dict[Any, Reader] = {str: TEXT, bool: BOOLEAN, int: whole(), float: FINITE}


# Files ----------------------------------------------------------------------------------------------------------


def read_file(path: Traversable, place: Place, hint: str = "") -> str:
    """The text of a file.

    hint: what to say when there is none
    raises the place's error if it cannot be read or is not UTF-8
    """
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors begin with a byte order mark
    except OSError as error:
        raise place.error(f"{place}: cannot be read: {error.strerror}.{hint}") from None
    except UnicodeDecodeError as error:
        raise place.error(f"{place}: is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def parse_toml(content: str, place: Place) -> dict[str, Any]:
    """The tables of a TOML text; raises the place's error if it is none."""
    import tomllib

    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise place.error(f"{place}: is not TOML: {error}.") from None


# The reference of keys ------------------------------------------------------------------------------------------


def reference(section: type, name: str = "") -> str:
    """The keys of a section as a Markdown table, and then those of the sections in it.

    name: of the section, as TOML writes it between brackets; the top level has none
    """
    lines = [f"### `[{name}]`", ""] if name else []
    lines += [_summary(section), ""]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    parts = []
    for key_name, key in keys_of(section).items():
        words = "a table, see below" if key.reader.section else key.reader.words
        cells = (f"`{key_name}`", words, _default(key), key.doc or _summary(key.reader.section))
        lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
        if key.reader.section:
            parts.append(reference(key.reader.section, f"{name}.{key_name}" if name else key_name))
    return "\n\n".join(["\n".join(lines), *parts])


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.default is None or key.reader.section:
        return ""
    return f"`{key.default if is_dataclass(key.default) else as_toml(key.default)}`"


def _summary(section: type | None) -> str:
    return (section.__doc__ or "").split("\n\n")[0].replace("\n", " ")
