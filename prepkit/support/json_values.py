"""Values as JSON has them, and trees of them under dotted keys."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from typing import Any

from prepkit.support.text import is_unicode


def none_for(number: float) -> None:
    """Put None in the place of a number that is not finite, which JSON does not have."""


def json_value(value: Any, place: str = "value", *, not_finite: Callable[[float], Any] = none_for) -> Any:
    """Return a value as JSON has it: arrays and tensors as lists, keys as text.

    Dates and times become text as in ISO 8601, decimal numbers and durations text, and bytes hexadecimal digits.

    place:      where the value stands, for the error
    not_finite: what becomes of NaN and infinities
    raises TypeError for a value that has no such form
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else not_finite(value)
    if isinstance(value, Mapping):
        return {str(key): json_value(item, f"{place}, {key}", not_finite=not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, f"{place}, [{at}]", not_finite=not_finite) for at, item in enumerate(value)]
    if hasattr(value, "tolist"):  # arrays, tensors, and scalars of numpy
        return json_value(value.tolist(), place, not_finite=not_finite)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    from decimal import Decimal  # it takes a millisecond, which a command that prints help need not wait

    if isinstance(value, timedelta | Decimal):
        return str(value)
    raise TypeError(f"{place}: a {type(value).__name__} has no form in JSON.")


def by_dotted_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their keys joined with dots: `{"a": {"b": 1}}` gives `{"a.b": 1}`.

    raises ValueError with the key that two values would have, as in `{"a.b": 1, "a": {"b": 2}}`
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        own = by_dotted_key(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        for name in own:
            if name in flat:
                raise ValueError(name)
        flat |= own
    return flat


def broken_text(value: Any, path: str = "") -> str | None:
    """Return where in a JSON value a text stands that no file can hold, such as `[2].name`; None if there is none.

    JSON can write one half of a surrogate pair, which is no Unicode text.
    """
    if isinstance(value, str):
        return None if is_unicode(value) else path
    if isinstance(value, list):
        parts = [(f"{path}[{at}]", item) for at, item in enumerate(value)]
    elif isinstance(value, dict):
        if not all(map(is_unicode, value)):
            return path
        parts = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    else:
        return None
    return next((place for place in (broken_text(item, at) for at, item in parts) if place is not None), None)


def canonical_json(data: object) -> str:
    """Return JSON with sorted keys and no spaces, so that equal data gives equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
