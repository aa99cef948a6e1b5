"""Architectures by name or ClassId: Registry and the look-ups.

    architecture("resnet8@cifar10")     one architecture: built in, or from a plug-in
    architectures("resnet*")            the names of all, or of those that match a pattern
    built_in_registry("cifar10")        the built-in architectures of a dataset with their ClassIds
    architecture_from_callable(spec)    the architecture of any importable function that builds a network

A plug-in is an entry point of the group `prepkit.architectures`. Its name is the architecture's name, and its value is
an Architecture or a function without arguments that returns one. A plug-in is imported only when it is looked at.
Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from prepkit.errors import RegistryError, listed, nearest
from prepkit.families.architecture import Architecture as Architecture
from prepkit.families.architecture import Known as Known
from prepkit.families.importing import load_plugin, origin, plugins, plugins_named
from prepkit.families.table import DATASETS, FAMILIES, TABLE, Row
from prepkit.support.reading import Key, Place, given, list_of, or_null, read_keys, reader_of, whole

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


ENTRIES = {"architectures": Key(list_of(reader_of(dict)))}  # keys of a registry as JSON has it
CLASS_ID = {"class_id": Key(or_null(whole()))}


@dataclass(frozen=True, init=False, repr=False)
class Registry:
    """An ordered set of architectures, in which the position of each is its ClassId.

    architectures: members with a ClassId, in ClassId order
    others:        members without a ClassId, such as a teacher
    """

    architectures: tuple[Architecture, ...]
    others: tuple[Architecture, ...]

    def __init__(
        self,
        architectures: Iterable[Architecture],
        others: Iterable[Architecture] = (),
        class_ids: Mapping[str, int] | None = None,
    ) -> None:
        """Put architectures into ClassId order.

        class_ids: ClassIds 0 .. A-1 by name; if missing, they ascend in packed parameters, then in names
        raises RegistryError if a name stands twice or the ClassIds are not 0 .. A-1, one for each architecture
        """
        members, others = tuple(architectures), tuple(others)
        names = [member.name for member in (*members, *others)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RegistryError(f"a registry holds each name once; found twice: {listed(twice)}.")
        if class_ids is None:
            members = tuple(sorted(members, key=lambda member: (member.num_parameters, member.name)))
        else:
            check_class_ids(class_ids, [member.name for member in members])
            members = tuple(sorted(members, key=lambda member: class_ids[member.name]))
        object.__setattr__(self, "architectures", members)
        object.__setattr__(self, "others", others)

    def __repr__(self) -> str:
        return f"<Registry: {listed([member.name for member in self.architectures], 3)}>"

    @cached_property
    def class_ids(self) -> dict[str, int]:
        """The ClassId of each architecture that has one, in their order."""
        return {member.name: class_id for class_id, member in enumerate(self.architectures)}

    @cached_property
    def _by_name(self) -> dict[str, Architecture]:
        return {member.name: member for member in (*self.architectures, *self.others)}

    def __getitem__(self, name: str) -> Architecture:
        """Return the member of this name, with or without ClassId."""
        if name not in self._by_name:
            raise RegistryError(unknown("architecture", name, self._by_name))
        return self._by_name[name]

    def class_id(self, name: str) -> int | None:
        """Return the ClassId of a member; None for a teacher."""
        return self.class_ids.get(self[name].name)

    def by_class_id(self, class_id: int) -> Architecture:
        """Return the architecture with this ClassId."""
        if not 0 <= class_id < len(self):
            raise RegistryError(f"unknown ClassId {class_id}; this registry has {len(self)}: {listed(self.class_ids)}.")
        return self.architectures[class_id]

    @property
    def teacher(self) -> Architecture | None:
        """The one member without ClassId, if there is one."""
        if len(self.others) > 1:
            raise RegistryError(f"which is the teacher? Without ClassId are {listed(o.name for o in self.others)}.")
        return self.others[0] if self.others else None

    def __len__(self) -> int:
        """Number of ClassIds."""
        return len(self.architectures)

    def __iter__(self) -> Iterator[Architecture]:
        """Iterate over the architectures with a ClassId, in ClassId order."""
        return iter(self.architectures)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data: `architectures`, each with its `class_id`, which is null for a teacher."""
        members = (*self.architectures, *self.others)
        return {
            "architectures": [{"class_id": self.class_ids.get(member.name), **member.to_dict()} for member in members]
        }

    @classmethod
    def from_dict(cls, data: object, place: str = "registry", *, trust_code: bool = False) -> Registry:
        """Read the registry that `to_dict` wrote; nothing is imported. `place` names the source in errors.

        trust_code: see Architecture.from_dict
        raises RegistryError or LayoutMismatch with the place of what is wrong
        """
        at = Place(place, error=RegistryError)
        numbered: dict[str, int] = {}
        members: list[Architecture] = []
        for index, entry in enumerate(read_keys(ENTRIES, data, at, strict=False)["architectures"]):
            where = at["architectures"][index]
            members.append(Architecture.from_dict(entry, where, trust_code=trust_code))
            class_id = given(CLASS_ID, entry, where, strict=False).get("class_id")
            if class_id is not None:
                numbered[members[-1].name] = class_id
        try:
            return cls(
                tuple(member for member in members if member.name in numbered),
                tuple(member for member in members if member.name not in numbered),
                numbered,
            )
        except RegistryError as error:
            raise RegistryError(f"{at}: {error}") from None


def check_class_ids(class_ids: Mapping[str, int], names: list[str]) -> None:
    """Raise RegistryError unless the ClassIds are 0 .. A-1, one for each name."""
    missing = [name for name in names if name not in class_ids]
    if missing:
        raise RegistryError(f"ClassIds are missing for {listed(missing)}; give all of them or none.")
    strangers = [name for name in class_ids if name not in names]
    if strangers:
        raise RegistryError(f"ClassIds are given for {listed(strangers)}, which the registry does not hold.")
    if sorted(class_ids.values()) != list(range(len(names))):
        given = listed(f"{name}: {class_ids[name]}" for name in names)
        raise RegistryError(f"ClassIds must be 0 to {len(names) - 1}, each once; given: {given}.")


# Look-ups -----------------------------------------------------------------------------------------------------


def architecture(name: str) -> Architecture:
    """Return the built-in or third-party architecture of this name, the same object each time.

    raises RegistryError if the name is unknown or claimed twice, or if the plug-in behind it is broken

    >>> prepkit.architecture("resnet8@cifar10").num_parameters
    77706
    """
    entries = plugins_named(name)
    check_claims(name, entries)
    if entries:
        return architecture_of(entries[0])
    if name not in built_in():
        raise RegistryError(unknown("architecture", name, [*built_in(), *(entry.name for entry in plugins())]))
    return built_in()[name]


def architectures(pattern: str = "*") -> list[str]:
    """Return the names of all architectures that match: built-in ones in the order of the table, then plug-ins.

    pattern: a shell pattern with `*`, `?` and `[...]`, as in fnmatch
    raises RegistryError if two distributions claim one name; no plug-in is imported

    >>> prepkit.architectures("resnet*@digits")
    ['resnet8@digits', 'resnet14@digits', 'resnet20@digits']
    """
    names = list(dict.fromkeys([*built_in(), *(entry.name for entry in plugins())]))
    for name in names:
        check_claims(name, plugins_named(name))
    return [name for name in names if fnmatchcase(name, pattern)]


@cache
def built_in_registry(name: str) -> Registry:
    """Return the built-in registry of a dataset: cifar10, tiny_imagenet, digits, sdf or sdf_small.

    raises RegistryError for another name

    >>> prepkit.built_in_registry("cifar10").by_class_id(3).name
    'resnet32@cifar10'
    """
    if name not in DATASETS:
        raise RegistryError(unknown("registry", name, DATASETS))
    rows = [row for row in TABLE if row.dataset == name]
    return Registry(
        tuple(built_in()[row.name] for row in rows if row.class_id is not None),
        tuple(built_in()[row.name] for row in rows if row.class_id is None),
        {row.name: row.class_id for row in rows if row.class_id is not None},
    )


def default_class_id(name: str) -> int | None:
    """Return the ClassId of a built-in architecture in its dataset's registry; None for a teacher or another name."""
    return next((row.class_id for row in TABLE if row.name == name), None)


@cache
def built_in() -> dict[str, Architecture]:
    """Return the architectures of the table by name."""
    return {row.name: from_row(row) for row in TABLE}


def from_row(row: Row) -> Architecture:
    """Return the architecture of a row of the table."""
    family = FAMILIES[row.family]
    input_shape, _ = DATASETS[row.dataset]
    known = Known(row.num_parameters, row.num_trainable)
    return Architecture(row.name, row.family, input_shape, family.builder, row.arguments, family.folded, known)


def architecture_of(entry: EntryPoint) -> Architecture:
    """Return the architecture that a plug-in registers.

    raises RegistryError with the distribution if it is broken
    """
    value = load_plugin(entry)
    if not isinstance(value, Architecture):
        raise RegistryError(
            f"architecture '{entry.name}' of {origin(entry)} ({entry.value}) is of type {type(value).__name__}, "
            "not a prepkit Architecture."
        )
    if value.name != entry.name:
        raise RegistryError(
            f"{origin(entry)} registers '{entry.name}', but {entry.value} is named '{value.name}'; "
            "give both the same name."
        )
    return value


def check_claims(name: str, entries: list[EntryPoint]) -> None:
    """Raise RegistryError if prepkit and a distribution, or two distributions, register this name."""
    claims = ["prepkit itself"] * (name in built_in()) + [origin(entry) for entry in entries]
    if len(claims) > 1:
        raise RegistryError(f"architecture '{name}' is registered by {' and by '.join(claims)}; uninstall one.")


def unknown(what: str, asked: str, choices: Iterable[str]) -> str:
    """Return the message for a failed look-up. A name without a dataset is compared with names without theirs."""
    import difflib

    names = list(choices)
    message = f"unknown {what} '{asked}'. Registered: {listed(names)}."
    if "@" in asked:
        return message + nearest(asked, names)
    first = {name.partition("@")[0]: name for name in reversed(names)}
    close = difflib.get_close_matches(asked, first, n=1, cutoff=0.5)
    return f"{message} Did you mean '{first[close[0]]}'?" if close else message


def architecture_from_callable(
    spec: str, input_shape: Iterable[int] | None, name: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Architecture:
    """Return the architecture of the network that an importable function builds. It is built once as a check.

    spec:        `module:callable`, such as `my_package.nets:small_net`
    input_shape: shape of one input, without the batch axis; None takes that of the network's `example_input_array`
    name:        `my_package.nets.small_net` if missing
    arguments:   keyword arguments of the callable, JSON-able
    raises RegistryError with the place and the reason if it cannot be imported or does not build an nn.Module, or if
    its input shape is not known
    """
    module, _, family = spec.rpartition(":")
    name = safe_name(f"{module}.{family}") if name is None else name
    if input_shape is None:
        input_shape = _shape_of_example(Architecture(name, family, (1,), spec, dict(arguments or {})), spec)
    draft = Architecture(name, family, tuple(input_shape), spec, dict(arguments or {}))
    return replace(draft, known=Known(num_trainable=draft.num_trainable))


def _shape_of_example(draft: Architecture, spec: str) -> tuple[int, ...]:
    """Return the shape, without the batch axis, of the first input that a network names in `example_input_array`."""
    network = draft.spare_network(folded=False)
    own = None if getattr(network, "example_input_array", None) is None else draft.example_for(network)
    first = next(iter(own.values() if isinstance(own, dict) else own), None) if isinstance(own, dict | tuple) else own
    shape = tuple(getattr(first, "shape", ()))[1:]
    if not shape:
        raise RegistryError(
            f"'{spec}' needs the shape of one input too: give `input_shape`, such as 3x32x32, or have the builder set "
            "`network.example_input_array`, as networks of several inputs or of token ids must."
        )
    return shape


def safe_name(text: str) -> str:
    """Turn the end of a text into a name that can stand in a file name: without `:` or `ü`."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", text)[-100:].lstrip(".") or "network"
