"""Source: the architecture that a view is of, and all that a view may ask of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from prepkit.errors import PrepkitError, RegistryError
from prepkit.families.registry import Architecture
from prepkit.families.registry import architecture as registered
from prepkit.prep.layout import Layout, PRepShape
from prepkit.support.text import Brief

if TYPE_CHECKING:
    from torch import nn

DEFAULT_WIDTH = 512  # of the PReps that `inverse` makes where no zoo says another


@runtime_checkable
class HasSource(Protocol):
    """A zoo."""

    def view_source(self) -> Source:
        """Return what its instances have in common; raises ZooError if they are of several architectures."""


@dataclass(frozen=True, repr=False)
class Source(Brief):
    """One architecture as a view sees it.

    name:         names it in errors
    layout:       the layout of its PReps
    shape:        height and width of the PReps that `inverse` makes
    architecture: what builds the network; None if only the layout or one network is known
    folded:       whether the PReps are those of the network without BatchNorm, or of the one that is trained
    given:        a network that was given in place of an architecture
    """

    name: str
    layout: Layout
    shape: PRepShape
    architecture: Architecture | None = None
    folded: bool = True
    given: nn.Module | None = None

    @classmethod
    def of(cls, of: object) -> Source:
        """Return the source of a zoo, an architecture, its name, a network or a layout.

        raises PrepkitError for anything else, RegistryError for an unknown name, ZooError for a zoo of several
        architectures
        """
        from torch import nn

        if isinstance(of, Source):
            return of
        if isinstance(of, str):
            of = registered(of)
        if isinstance(of, Architecture):
            return cls(of.name, of.layout, of.layout.shape(DEFAULT_WIDTH), of)
        if isinstance(of, Layout):
            return cls("this layout", of, of.shape(DEFAULT_WIDTH))
        if isinstance(of, nn.Module):
            layout = Layout.of(of)
            return cls(type(of).__name__, layout, layout.shape(DEFAULT_WIDTH), given=of)
        if isinstance(of, HasSource):
            return of.view_source()
        raise PrepkitError(
            f"a view is of a zoo, an architecture, the name of one, a network or a layout; found {type(of).__name__}."
        )

    @cached_property
    def network(self) -> nn.Module | None:
        """The network, to look at its modules only, as it may lack values; None if it cannot be built here."""
        if self.given is not None or self.architecture is None:
            return self.given
        try:
            network = self.architecture.spare_network(self.folded)
        except RegistryError:
            return None  # the builder is another package's, which is missing or not trusted
        return network if self.layout.names <= network.state_dict().keys() else None

    def running_network(self) -> nn.Module:
        """Return a network of its own in evaluation, with any values; only where `network` is not None.

        raises RegistryError, FusionError if it cannot be built
        """
        import torch

        if self.given is not None:
            return copy.deepcopy(self.given).eval()
        if self.architecture is None:
            raise RegistryError(f"only the tensors of {self.name} are known, so no network can be built.")
        with torch.random.fork_rng(devices=[]):
            network = self.architecture.build_folded() if self.folded else self.architecture.build()
        return network.eval()

    @property
    def note(self) -> list[str]:
        """What to tell of a view that asks for the modules: nothing if they are known."""
        if self.network is not None:
            return []
        return [
            f"The network of {self.name} is not known here, so the roles of its tensors were told from the names of "
            "their modules and from their shapes."
        ]


def described(value: Any) -> str:
    """Return what a caller gave in place of a tensor, for errors."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else str(list(shape))
