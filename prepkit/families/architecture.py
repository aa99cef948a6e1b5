"""Architecture: the structure of a network without values, and facts about it that need no network.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from prepkit.errors import LayoutMismatch, RegistryError
from prepkit.families.importing import load_builder, load_plugin, plugins_named, reason
from prepkit.families.table import FAMILIES, OF_IMPORTED_ZOOS
from prepkit.prep.layout import Layout, canonical_json
from prepkit.support.reading import Place, read
from prepkit.support.text import Brief

if TYPE_CHECKING:
    from torch import Tensor, nn

BUILT_IN_BUILDERS = frozenset((*(family.builder for family in FAMILIES.values()), *OF_IMPORTED_ZOOS))
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}")  # names are part of the file names of zoos

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Known:
    """Facts about an architecture that were written down, so that it need not be built to learn them."""

    num_parameters: int | None = None
    num_trainable: int | None = None
    layout: Layout | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Architecture(Brief):
    """The structure of a network without values.

    name:             unique, such as `resnet8@cifar10`
    family:           the kind of network
    input_shape:      shape of one input, without the batch axis
    builder:          `module:callable`, imported when a network is built
    arguments:        keyword arguments of the builder, JSON-able
    folded_arguments: arguments to add for the network without BatchNorm; None if prepkit.fusion must fold it
    known:            counts and layout, where they are known without building
    trusted:          False for a builder that a file names, which is imported only if it is built in or registered

    Two architectures are equal if `to_dict` writes the same for both.
    raises RegistryError for an illegal name or input shape, or arguments that are not JSON
    """

    name: str
    family: str
    input_shape: tuple[int, ...]
    builder: str
    arguments: Mapping[str, Any]
    folded_arguments: Mapping[str, Any] | None = None
    known: Known = Known()
    trusted: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise RegistryError(
                f"{self.name!r} cannot name an architecture: use up to 100 letters, digits and _ . @ + -, "
                "the first one a letter, digit or _."
            )
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        if not self.input_shape or not all(type(size) is int and size > 0 for size in self.input_shape):
            raise RegistryError(
                f"'{self.name}': {list(self.input_shape)} is not an input shape; give whole numbers such as 3x32x32."
            )
        try:
            canonical_json([self.arguments, self.folded_arguments])
        except (TypeError, ValueError) as error:
            raise RegistryError(f"'{self.name}': the builder's arguments are not JSON: {reason(error)}.") from None

    # Networks -------------------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """Build a trainable network with fresh weights from torch's global random generator.

        raises RegistryError if the builder cannot be imported, is not trusted, fails or returns no nn.Module
        """
        return self._network(self.arguments)

    def build_folded(self) -> nn.Module:
        """Build the network without BatchNorm whose tensors `layout` packs, with fresh weights.

        A BatchNorm that has no layer to go into is a scale and a shift of each channel there.
        raises RegistryError as `build` does, FusionError if a BatchNorm cannot even become that
        """
        if self.folded_arguments is not None:
            return self._network({**self.arguments, **self.folded_arguments})
        if self.known.layout is not None:  # it says what became of each BatchNorm when it was written
            from prepkit.fusion.norm import without_batch_norm

            return without_batch_norm(self.build().eval(), self.known.layout.names)
        from prepkit.fusion.fold import fold

        network = self.build().eval()
        _draw_what_was_left(network)
        folded: nn.Module = fold(network, self.example_for(network), keep_unfoldable="affine").network
        return folded

    def _network(self, arguments: Mapping[str, Any]) -> nn.Module:
        from torch import nn
        from torch.nn.parameter import is_lazy

        self._check_trusted()
        builder = load_builder(self.builder)
        if isinstance(builder, nn.Module):
            raise RegistryError(f"'{self.builder}' is a network already; name the function or class that builds it.")
        try:
            network = builder(**copy.deepcopy(dict(arguments)))
        except (Exception, SystemExit) as error:
            needs = isinstance(error, TypeError) and "argument" in str(error)
            remedy = " Give what it needs with arguments={...}." if needs else ""
            raise RegistryError(f"'{self.builder}' failed to build '{self.name}': {reason(error)}.{remedy}") from error
        if not isinstance(network, nn.Module):
            raise RegistryError(
                f"'{self.builder}' returned an object of type {type(network).__name__}, not a torch.nn.Module."
            )
        if any(map(is_lazy, network.parameters())):
            raise RegistryError(f"'{self.builder}' returned lazy layers; run the network once before returning it.")
        return network

    def _check_trusted(self) -> None:
        """Raise RegistryError for a builder that only a file names: opening a zoo, which is data, must not run code."""
        if self.trusted or self.builder in BUILT_IN_BUILDERS:
            return
        registered = [getattr(load_plugin(entry), "config", None) for entry in plugins_named(self.name)]
        if registered != [self.config]:
            raise RegistryError(
                f"'{self.name}' is built by '{self.builder}', which a file names and nothing here registers, so it is "
                "not imported. Install the package that registers it, or read the file with trust_code=True."
            )

    def spare_network(self, folded: bool) -> nn.Module:
        """Build a network to look at, not to run: without values if it is built in. Random states stay as they were.

        Folding needs values, so a folded network has some, unless its builder makes it without BatchNorm.
        """
        import torch

        build = self.build_folded if folded else self.build
        needs_values = folded and self.folded_arguments is None and self.known.layout is None
        if self.builder in BUILT_IN_BUILDERS and not needs_values:
            with torch.device("meta"):
                return build()
        with torch.random.fork_rng(devices=[]):
            return build()

    def example_input(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Draw normal inputs `[batch, *input_shape]`, the same for a seed; the global generator is not used."""
        import torch

        return torch.randn(batch, *self.input_shape, generator=torch.Generator().manual_seed(seed))

    def example_for(self, network: nn.Module) -> Tensor | tuple[Any, ...] | dict[str, Any]:
        """Return the inputs that a network names in `example_input_array`, as Lightning's do; else those drawn.

        A network with several inputs, with token ids, or for another batch than two needs its own.
        raises RegistryError if the attribute holds no tensor, tuple, list or dict
        """
        from torch import Tensor

        own = getattr(network, "example_input_array", None)
        if own is None:
            return self.example_input()
        if isinstance(own, list):
            return tuple(own)
        if not isinstance(own, Tensor | tuple | dict):
            raise RegistryError(
                f"'{self.name}': its example_input_array is of type {type(own).__name__}; give a tensor, a tuple of "
                "positional arguments or a dict of keyword arguments."
            )
        return own

    # Facts ----------------------------------------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """The layout of the packed network, in which BatchNorm is folded."""
        try:
            return self.known.layout or Layout.of(self.spare_network(folded=True))
        except LayoutMismatch as error:
            raise LayoutMismatch(f"'{self.name}': {error}") from None

    @cached_property
    def num_parameters(self) -> int:
        """Number of packed parameters, in which BatchNorm is folded."""
        return self.layout.num_parameters if self.known.num_parameters is None else self.known.num_parameters

    @cached_property
    def num_trainable(self) -> int:
        """Number of parameters in the network that is trained, with BatchNorm."""
        if self.known.num_trainable is not None:
            return self.known.num_trainable
        return sum(parameter.numel() for parameter in self.spare_network(folded=False).parameters())

    @property
    def signature(self) -> str:
        """The sha256 of the layout, which is equal for networks whose PReps can be exchanged."""
        return self.layout.sha256

    @cached_property
    def trainable_shapes(self) -> Shapes:
        """Names and shapes of the floating-point tensors in the trained network's state dict."""
        return floating_shapes(self.spare_network(folded=False).state_dict())

    @cached_property
    def folded_shapes(self) -> Shapes:
        """Names and shapes of the floating-point tensors in the folded network's state dict."""
        shapes = {slot.name: slot.shape for slot in self.layout}
        return shapes | {alias: shapes[name] for alias, name in self.layout.ties}

    # As data --------------------------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """JSON-able data from which the network can be built again."""
        folded = None if self.folded_arguments is None else dict(self.folded_arguments)
        config = {"builder": self.builder, "arguments": dict(self.arguments), "folded_arguments": folded}
        return copy.deepcopy(config)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data with the layout, so that tensors come back even where the builder is missing."""
        return {
            "name": self.name,
            "family": self.family,
            "input_shape": list(self.input_shape),
            "num_parameters": self.num_parameters,
            "num_trainable": self.num_trainable,
            "layout": self.layout.to_dict(),
            "config": self.config,
        }

    @classmethod
    def from_dict(cls, data: object, place: str | Place = "architecture", *, trust_code: bool = False) -> Architecture:
        """Read the architecture that `to_dict` wrote; nothing is imported, and unknown keys are ignored.

        trust_code: whether `build` may import a builder that is neither built in nor registered here
        raises RegistryError or LayoutMismatch with the place of what is wrong
        """
        at = Place(place, error=RegistryError) if isinstance(place, str) else place
        stored = read(_Stored, data, at)
        layout = Layout.from_dict(stored.layout, str(at["layout"]))
        if layout.num_parameters != stored.num_parameters:
            raise RegistryError(
                f"{at}: num_parameters is {stored.num_parameters:,}, but its layout has {layout.num_parameters:,}."
            )
        try:
            return cls(
                stored.name,
                stored.family,
                stored.input_shape,
                **vars(stored.config),
                known=Known(stored.num_parameters, stored.num_trainable, layout),
                trusted=trust_code,
            )
        except RegistryError as error:
            raise RegistryError(f"{at}: {error}") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        if self is other or not self._is_built_as(other):
            return self is other
        return self.known == other.known or self.to_dict() == other.to_dict()

    def _is_built_as(self, other: Architecture) -> bool:
        """Return whether name and builder are the same, which is known without building, let alone folding."""
        mine, others = ((each.name, each.family, each.input_shape, each.config) for each in (self, other))
        return mine == others

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class _Config:
    """How a stored architecture is built."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    builder: str
    arguments: dict[str, Any]
    folded_arguments: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Stored:
    """An architecture as JSON has it."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    name: str
    family: str
    input_shape: tuple[int, ...]
    num_parameters: int
    num_trainable: int
    layout: dict[str, Any]
    config: _Config


def _draw_what_was_left(network: nn.Module) -> None:
    """Draw values for parameters that a constructor left as memory was, for folding must run the network.

    Such memory (`torch.empty`) holds anything, NaN and 1e38 included, and another thing in each process.
    """
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and not parameter.abs().lt(1e6).all():
                parameter.normal_(0.0, 0.1)


def floating_shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return names and shapes of the floating-point tensors, so without integer buffers such as counters."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}
