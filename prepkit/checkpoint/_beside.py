"""What a file says beside its weights, `{"model": ..., "epoch": 3, "config": {"lr": 0.1}}`, as plain values.

    epoch       3                   numbers, texts, booleans, times, lists of such
    config.lr   0.1                 entries of dicts, of argparse.Namespace, OmegaConf and the like by dotted names
    item.1      0.93                entries of a tuple such as (state_dict, accuracy) by their place

Nothing of the file is run: the values of numpy and of other modules are read out of the inert stand-ins for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint._inert import Inert

if TYPE_CHECKING:
    from torch import Tensor

MAX_DEPTH = 12  # a dict may hold itself
MAX_VALUES = 2_000  # that one file may say
MAX_ITEMS = 10_000  # of a list, and letters of a text
MISSING = object()
# Codes of numpy's types, and those of `struct` for the same bytes.
NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "b1": "?"}
NUMBERS |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
TEXTS = ("decimal.Decimal", "uuid.UUID", "builtins.str")


def beside(value: object, key: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plain values in a saved object by dotted name, and the names of all else but the state dict.

    key: dotted key of the state dict; empty if it is the object itself
    """
    said: dict[str, Any] = {}
    others: list[str] = []
    if key:
        for name, child in _named(value, ""):
            _gather(name, child, key, "item." if isinstance(value, list | tuple) else "", said, others, 0)
    elif isinstance(value, Mapping):
        _gather_among(value, "", said, others)
    return said, tuple(others)


def plain_value(value: object) -> Any:
    """Return a number, text, time or path (as text), or a list of such; None for everything else."""
    plain = _plain(_read_out(value))
    return None if plain is MISSING else plain


def is_plain(value: object) -> bool:
    """Whether a value that stands among the tensors of a state dict is a number, a text or a boolean."""
    value = _read_out(value)
    return isinstance(value, bool | int | float | str) and _plain(value) is not MISSING


def is_array(value: object) -> bool:
    """Whether a value is the stand-in for an array of numpy."""
    return isinstance(value, Inert) and type(value).__name__ in ARRAYS


def _gather(
    name: str, value: object, key: str, start: str, said: dict[str, Any], others: list[str], depth: int
) -> None:
    """Put a value, and all that is in it, where it belongs."""
    if name == key:
        if isinstance(value, Mapping):
            _gather_among(value, start + name + ".", said, others)
        return
    value = _read_out(value)
    inside = isinstance(value, Mapping) and key.startswith(f"{name}.")
    if isinstance(value, Mapping) and (inside or not _is_state(value)) and depth < MAX_DEPTH:
        for below, child in _named(value, f"{name}."):
            _gather(below, child, key, start, said, others, depth + 1)
        return
    _put(start + name, value, said, others)


def _gather_among(state: Mapping[object, object], start: str, said: dict[str, Any], others: list[str]) -> None:
    """Put what stands among the tensors of a state dict where it belongs."""
    for name, child in state.items():
        if is_plain(child):
            _put(f"{start}{name}", _read_out(child), said, others)


def _put(name: str, value: object, said: dict[str, Any], others: list[str]) -> None:
    plain = _plain(value)
    if is_array(value):
        others.append(f"{name} (an array)")
    elif plain is MISSING or len(said) >= MAX_VALUES:
        others.append(name)
    elif name not in said:
        said[name] = plain
    elif repr(said[name]) != repr(plain):  # {"a": {"b": 1}, "a.b": 2} has two
        others.append(f"{name} (another value of this name)")


def _named(value: object, start: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"{start}{name}", child) for name, child in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{start}{place}", child) for place, child in enumerate(value))


def _is_state(value: Mapping[object, object]) -> bool:
    """Return whether a mapping is the state of a network or an optimizer, which a table has no place for."""
    from torch import Tensor

    if {"state", "param_groups"} <= value.keys():
        return True
    return any(isinstance(child, Tensor) and child.dim() > 0 for child in value.values())


def _plain(value: object) -> Any:
    """Return a value as the table has it, MISSING for what it has no place for."""
    if value is None or isinstance(value, bool | int | float | date):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_ITEMS else MISSING
    if isinstance(value, list | tuple):
        items = [_scalar(_read_out(item)) for item in value[: MAX_ITEMS + 1]]
        return items if len(items) <= MAX_ITEMS and MISSING not in items else MISSING
    return _scalar(value)


def _scalar(value: object) -> Any:
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return _only_value(value)
    return str(value) if isinstance(value, torch.dtype | torch.device) else MISSING


def _only_value(tensor: Tensor) -> Any:
    import torch

    is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_complex()
    return tensor.item() if tensor.dim() == 0 and is_plain else MISSING


def _read_out(value: object) -> object:
    """Return what a stand-in stands for, if it is data that is known here; every other value as it is."""
    if not isinstance(value, Inert):
        return value
    name = type(value).__name__
    arguments, state = value.arguments, value.state
    if name.startswith("omegaconf.") and isinstance(state, Mapping):
        return _read_out(state["_val"]) if "_val" in state else state.get("_content", value)
    if name in NAMESPACES and isinstance(state, Mapping):
        return state
    if name.startswith("numpy.") and name.endswith(".multiarray.scalar") and len(arguments) == 2:
        return _number(*arguments)
    if name.startswith("pathlib.") and all(isinstance(part, str) for part in arguments):
        return "/".join(arguments).replace("//", "/") if arguments else "."
    if name in ("datetime.datetime", "datetime.date") and arguments and all(type(a) in (bytes, int) for a in arguments):
        return _time(datetime if name == "datetime.datetime" else date, arguments)
    if name in TEXTS and len(arguments) == 1 and isinstance(arguments[0], str):
        return arguments[0]
    return value


def _number(kind: object, content: object) -> object:
    """Return a number of numpy, given its type and its bytes."""
    if not isinstance(kind, Inert) or not kind.arguments or not isinstance(content, bytes):
        return MISSING
    code = NUMBERS.get(str(kind.arguments[0]))
    state = kind.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if code is None or len(content) != struct.calcsize(f"={code}"):
        return MISSING
    return struct.unpack(f"{'>' if order == '>' else '<'}{code}", content)[0]


def _time(kind: type[date], arguments: tuple[Any, ...]) -> object:
    try:
        return kind(*arguments)
    except (TypeError, ValueError):
        return MISSING
