"""Inert stand-ins for what training scripts save beside the weights, such as `args=Namespace(...)`.

Nothing of the file is imported or called: torch's restricted reader gets a class of ours for each name, which takes any
arguments and state, keeps them, and does nothing else. A state dict must hold none of them; see `check_entries`.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from typing import Any

# Names of the standard library that hold data. All others may run something, so a file that has one is refused, though
# a stand-in would run nothing: such a file was made to do harm, or is a whole network.
HARMLESS = frozenset(
    [
        "argparse.Namespace",
        "types.SimpleNamespace",
        "collections.defaultdict",
        "collections.deque",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "datetime.datetime",
        "datetime.date",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "pathlib._local.Path",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "builtins.list",
        "builtins.dict",
        "builtins.tuple",
        "builtins.set",
        "builtins.frozenset",
        "builtins.complex",
        "builtins.bytes",
        "builtins.slice",
        "builtins.range",
        "builtins.object",
        "copyreg._reconstructor",
        "typing.Any",  # OmegaConf notes the types of its values
        "typing.Dict",
        "typing.List",
        "typing.Tuple",
        "typing.Union",
    ]
)
CODE = ("torch", "functools", "operator", "importlib", "dill", "cloudpickle", "joblib")


class Inert:
    """Takes whatever a pickle gives it, and does nothing with it but keep it.

    arguments, state: what the pickle gave
    """

    arguments: tuple[Any, ...] = ()
    state: object = None

    def __new__(cls, *arguments: object, **_: object) -> Inert:
        """Make an object whatever the arguments."""
        made = object.__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """Run nothing."""

    def __setstate__(self, state: object) -> None:
        """Keep the state."""
        self.state = state


def is_harmless(name: str) -> bool:
    """Whether a name in a pickle is known to be data, or belongs to other people's code, of which nothing is run.

    The names of a whole network are not: torch's modules, and functions of the standard library.
    """
    module, _, attribute = name.rpartition(".")
    module = IMPORT_MAPPING.get(module, module)  # pickles of protocol 2 name modules as Python 2 did
    top = module.partition(".")[0]
    if f"{module}.{attribute}" in HARMLESS or module == "__main__":
        return True
    return top not in CODE and top not in sys.stdlib_module_names and top not in IMPORT_MAPPING


class InertMapping:
    """Stands for a kind of mapping: torch's reader fills only plain ones."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[object, object]:  # type: ignore[misc]
        """Make a mapping whatever the arguments."""
        return OrderedDict()


class InertList:
    """Stands for a kind of list."""

    def __new__(cls, *_: object, **__: object) -> list[object]:  # type: ignore[misc]
        """Make a list whatever the arguments."""
        return []


KINDS: dict[str, type] = {"collections.defaultdict": InertMapping, "collections.deque": InertList}


def stand_in_for(name: str, kind: type | None = None) -> type:
    """Return what torch's reader calls in place of a global; its name is the global's, for messages."""
    base: type = kind or KINDS.get(name, Inert)
    return type(name, (base,), {})


def other_kind(error: Exception) -> dict[str, type]:
    """Return a better stand-in if the reader could not fill one, since the user's class is a list or a mapping."""
    if earlier := re.fullmatch(r"'(\S+)' object does not support item assignment", str(error)):  # torch before 2.7
        return {earlier[1]: stand_in_for(earlier[1], InertMapping)}
    unfilled = re.search(rf"Can only (\w+) [^\n]*but got <class '{re.escape(__name__)}\.(\S+)'>", str(error))
    if unfilled is None:
        return {}
    return {unfilled[2]: stand_in_for(unfilled[2], InertList if unfilled[1] in ("append", "extend") else InertMapping)}
