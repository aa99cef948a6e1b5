"""Values as JSON has them, and trees of them under dotted keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def none_for(number: float) -> None:
    """Put None in the place of a number that is not finite, which JSON does not have."""


def json_value(value: Any, place: str = "value", *, not_finite: Callable[[float], Any] = none_for) -> Any:
    """Return a value as JSON has it: arrays and tensors as lists, keys as text.

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
    raise TypeError(f"{place}: a {type(value).__name__} has no form in JSON.")


def by_dotted_key(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a tree by their keys joined with dots: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= by_dotted_key(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
