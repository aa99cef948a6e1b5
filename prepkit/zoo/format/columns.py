"""Columns of a zoo's table: which names and values they may have, and the types that hold the values without loss.

A value is a number, text, a boolean, a date, a timestamp, a list of numbers, texts or booleans (such as a training
curve), or None.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError
from prepkit.support.text import is_unicode

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that the zoo itself fills; every other column is the user's.
OWN_COLUMNS = ("id", "architecture", "class_id", "split", "shard", "row")
MAX_NAME_LENGTH = 200
EXACT_INTEGERS = 2**53  # a float64 holds all whole numbers up to this; larger ones are of kind "long"
SCALARS = frozenset((bool, int, float, str))
DATES = frozenset((date, datetime))
LIST = "list of "  # a list's kind is this and the kind of its items
ZONED = "timestamp with time zone"
TAGS: dict[type, str] = {date: "date", datetime: "timestamp"}  # keys of values that JSON does not have


def plain_columns(columns: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the user's columns as plain Python values.

    raises ZooError for a reserved or illegal name, or another kind of value
    """
    return {checked_name(name, place): plain(value, f"{place}, column '{name}'") for name, value in columns.items()}


def plain(value: Any, place: str) -> Any:
    """Return a value as number, text, boolean, date, timestamp, list of such or None.

    Arrays and tensors become lists, and without axes their only value. Timestamps with a time zone become those of UTC.
    raises ZooError for another kind of value, or one that the table cannot hold exactly
    """
    if value is None or type(value) in (float, bool):
        return value
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return [_plain_item(item, f"{place}, [{at}]") for at, item in enumerate(_items(value))]
    return _plain_scalar(value, place)


def _items(value: Any) -> Iterable[Any]:
    """Return the items of a list or an array; times of numpy one by one, as `tolist` makes numbers of some."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    items: Iterable[Any] = value.tolist() if hasattr(value, "tolist") and kind not in ("M", "m") else value
    return items


def _plain_item(value: Any, place: str) -> Any:
    item = _plain_scalar(value, place)
    if type(item) in DATES:
        raise ZooError(f"{place}: a list in the table holds numbers, texts or booleans, not a {TAGS[type(item)]}.")
    return item


def _plain_scalar(value: Any, place: str) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = _python_value(value, place)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, datetime):
        value = _timestamp(value, place)
    elif isinstance(value, date):
        value = date(value.year, value.month, value.day)
    if value is not None and type(value) not in SCALARS and type(value) not in DATES:
        raise ZooError(
            f"{place}: a {type(value).__name__} cannot stand here; give a number, text, boolean, date or timestamp, or "
            "in the column a list of numbers, texts or booleans."
        )
    if type(value) is str and not is_unicode(value):
        raise ZooError(f"{place}: {value!r} is not Unicode text.")
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise ZooError(f"{place}: {value} does not fit 64 bits; give it as text.")
    return value


def _python_value(value: Any, place: str) -> Any:
    """Return the only value of an array or tensor; a time of numpy is never a mere number."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    plain = value.item()
    if kind not in ("M", "m") or not isinstance(plain, int):
        return plain
    if kind == "M" and value.astype("datetime64[us]") == value:
        return value.astype("datetime64[us]").item()
    raise ZooError(f"{place}: {value!r} is no date or timestamp to the microsecond; give it as text or a number.")


def _timestamp(value: datetime, place: str) -> datetime | None:
    """Return a timestamp, in UTC if it has a time zone; None for the missing time of pandas."""
    if value != value:
        return None
    if getattr(value, "nanosecond", 0):
        raise ZooError(f"{place}: {value} is finer than a microsecond; round it, or give it as text.")
    try:
        value = value if value.utcoffset() is None else value.astimezone(UTC)
    except OverflowError:
        raise ZooError(f"{place}: {value} is out of the years 1 to 9999 in UTC.") from None
    time = value.hour, value.minute, value.second, value.microsecond
    return datetime(value.year, value.month, value.day, *time, tzinfo=None if value.tzinfo is None else UTC)


class Schema:
    """The types that hold the user's columns without loss, gathered row by row.

    kinds: by column, see `_kind`; "none" for a column without values so far
    """

    def __init__(self, kinds: Mapping[str, str] | None = None) -> None:
        self.kinds = dict(kinds or {})

    def extended(self, rows: Iterable[Mapping[str, Any]], place: str) -> Schema:
        """Return the schema that holds these rows too.

        raises ZooError if a value is of another kind than the values before it
        """
        kinds = dict(self.kinds)
        for columns in rows:
            for name, value in columns.items():
                known = kinds.get(name, "none")
                kind = _kind(value, f"{place}, column '{name}'")
                joined = kinds[name] = _joined(known, kind)
                if not joined:
                    raise ZooError(f"{place}, column '{name}': {_short(value)} is {kind}, but other rows have {known}.")
        return Schema(kinds)

    def arrow(self) -> pa.Schema:
        """Return the schema of the table, the zoo's own columns first."""
        import pyarrow as pa

        own = [pa.string(), pa.string(), pa.int32(), pa.string(), pa.int32(), pa.int64()]
        users = [(name, _arrow_type(kind)) for name, kind in self.kinds.items()]
        return pa.schema([*zip(OWN_COLUMNS, own, strict=True), *users])


def _arrow_type(kind: str) -> pa.DataType:
    import pyarrow as pa

    if kind.startswith(LIST):
        return pa.list_(_arrow_type(kind.removeprefix(LIST)))
    numbers = {"bool": pa.bool_(), "int": pa.int64(), "long": pa.int64(), "float": pa.float64()}
    times = {"date": pa.date32(), "timestamp": pa.timestamp("us"), ZONED: pa.timestamp("us", "UTC")}
    return {**numbers, **times, "str": pa.string(), "none": pa.null()}[kind]


def _kind(value: Any, place: str) -> str:
    """Return the kind of a plain value, such as "float", "str", "date" or "list of int"; "none" for None.

    raises ZooError if the items of a list are of several kinds
    """
    if value is None:
        return "none"
    if type(value) is int and abs(value) > EXACT_INTEGERS:
        return "long"
    if type(value) is datetime and value.tzinfo is not None:
        return ZONED
    if type(value) is not list:
        return TAGS.get(type(value)) or type(value).__name__
    kind = "none"
    for item in value:
        known, new = kind, _kind(item, place)
        kind = _joined(known, new)
        if not kind:
            raise ZooError(f"{place}: the items of a list are of one kind, not {known} and {new}.")
    return LIST + kind


def _joined(first: str, second: str) -> str:
    """Return the kind that holds values of both kinds, "" if there is none."""
    if first == second or second == "none":
        return first
    if first == "none":
        return second
    if {first, second} == {"int", "float"}:
        return "float"
    if {first, second} == {"int", "long"}:
        return "long"
    if first.startswith(LIST) and second.startswith(LIST):
        items = _joined(first.removeprefix(LIST), second.removeprefix(LIST))
        return items and LIST + items
    return ""


def _short(value: Any) -> str:
    text = str(value) if type(value) in DATES else repr(value)
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}..."


def checked_name(name: str, place: str) -> str:
    """Return the name of a column of the user's.

    raises ZooError if it is one of the zoo's own, or conditions could not name it
    """
    if name in OWN_COLUMNS:
        raise ZooError(f"{place}: the column '{name}' is filled by the zoo itself; choose another name.")
    if not name.isprintable() or name != name.strip() or not name or "`" in name or len(name) > MAX_NAME_LENGTH:
        raise ZooError(
            f"{place}: {name[:MAX_NAME_LENGTH]!r} cannot name a column; use up to {MAX_NAME_LENGTH} printable "
            "characters, no backtick, and no space at the ends (conditions name columns)."
        )
    return name


# As JSON ------------------------------------------------------------------------------------------------------


def tagged(value: Any) -> dict[str, str]:
    """Return a date or a timestamp as JSON that `untagged` reads, such as {"date": "2026-11-27"}.

    raises TypeError for another value
    """
    return {TAGS[type(value)]: value.isoformat()} if type(value) in DATES else _no_json(value)


def untagged(value: Any) -> Any:
    """Return the date or timestamp that JSON holds, and every other value as it is.

    raises ValueError, KeyError or TypeError for an object that `tagged` did not write
    """
    if type(value) is not dict:
        return value
    ((tag, text),) = value.items()
    return {name: kind for kind, name in TAGS.items()}[tag].fromisoformat(text)  # type: ignore[attr-defined]


def _no_json(value: Any) -> dict[str, str]:
    raise TypeError(f"a {type(value).__name__} has no form in JSON.")
