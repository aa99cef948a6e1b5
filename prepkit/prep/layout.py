"""Layout: how the named tensors of a network lie in one matrix, and packing and unpacking them.

A PRep holds all parameters of a network row-major in a matrix `[H, W]`, layer after layer, zeros after the
last (Learning the Space of Deep Models, section III). This module is arithmetic on slots: it knows nothing of
files, and torch is imported only where tensors are touched.

Shapes: `*batch` any leading axes (none for one network), `H` height, `W` width, `H * W` cells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prepkit.errors import InvalidShape, LayoutMismatch, counted, listed
from prepkit.prep.contents import refuse_others
from prepkit.prep.shape import PRepShape as PRepShape
from prepkit.prep.slot import Kind, as_tensors, classified, is_pair_of_names, is_running_statistic, slot_from_dict
from prepkit.prep.slot import Slot as Slot
from prepkit.prep.slot import natural_key as natural_key
from prepkit.support.json_values import canonical_json as canonical_json
from prepkit.tensors import BITS, dtype_name, same_values, storage_identity, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """The slots of a network in packing order: all that is needed to get its tensors back, without its code.

    slots: contiguous from index 0
    ties:  (alias, name) for each tensor that is another name of a slot's tensor: packed once, unpacked tied

    A layout knows names, shapes and dtypes, not the network: it also takes the tensors of another network with these.

    >>> network = torch.nn.Linear(20, 10)
    >>> layout = Layout.of(network)
    >>> prep = layout.pack(network.state_dict(), layout.shape(width=16))
    >>> prep.shape                                   # 210 values in 14 rows of 16, rounded up to a multiple of 4
    torch.Size([16, 16])
    >>> network.load_state_dict(layout.unpack(prep))
    <All keys matched successfully>
    """

    slots: tuple[Slot, ...]
    ties: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.slots:
            raise LayoutMismatch("there is nothing to pack: no floating-point parameters were found.")
        start = 0
        for slot in self.slots:
            if slot.dtype not in BITS:
                raise LayoutMismatch(
                    f"'{slot.name}' has dtype {slot.dtype}; a PRep holds {listed(BITS)}. Cast it or leave it out."
                )
            if slot.start != start:
                raise LayoutMismatch(f"slot '{slot.name}' starts at {slot.start}, not at {start}: slots must touch.")
            start = slot.stop
        if len(self.names) != len(self.slots) + len(self.ties):
            raise LayoutMismatch("a name stands twice in the layout.")
        for alias, name in self.ties:
            if name not in self._names:
                raise LayoutMismatch(f"'{alias}' is tied to '{name}', which has no slot.")

    # Building -------------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, network: nn.Module) -> Layout:
        """Return the layout of a network: its parameters and floating-point buffers in registration order.

        raises LayoutMismatch for a parameter that is integer, complex, quantised, sparse or uninitialised
        """
        from torch.nn import Module, Parameter

        kind = type(network).__name__
        if not issubclass(type(network), Module):
            raise LayoutMismatch(f"Layout.of takes a network, not a {kind}; Layout.of_tensors takes a state dict.")
        tensors = network.state_dict(keep_vars=True)
        return cls._of_kinds(tensors, classified(tensors, lambda _, tensor: isinstance(tensor, Parameter)))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of a state dict without its network: in natural name order, `layers.2` before `layers.10`.

        The order of a state dict depends on the file it comes from; the natural order of its names does not.
        Integer tensors get no slot, since a state dict does not tell a parameter from a table of indices.
        raises LayoutMismatch for a tensor that is complex, quantised or sparse
        """
        ordered = {name: tensors[name] for name in sorted(tensors, key=natural_key)}
        kinds = classified(ordered, lambda name, tensor: tensor.is_floating_point() and not is_running_statistic(name))
        return cls._of_kinds(ordered, kinds)

    @classmethod
    def _of_kinds(cls, tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> Layout:
        """Give each tensor that has a kind the next slot, or a tie where its memory has a slot already."""
        slots: list[Slot] = []
        ties: list[tuple[str, str]] = []
        seen: dict[object, str] = {}
        start = 0
        for name, kind in kinds.items():
            tensor = tensors[name]
            first_name = seen.setdefault(storage_identity(tensor), name)
            if first_name != name:
                ties.append((name, first_name))
                continue
            slot = Slot(name, tuple(tensor.shape), dtype_name(tensor.dtype), kind, start)
            slots.append(slot)
            start = slot.stop
        return cls(tuple(slots), tuple(ties))

    def with_dtypes_of(self, tensors: Mapping[str, Tensor]) -> Layout:
        """Return the same slots with the dtypes of these tensors, such as float16 in place of float32."""
        slots = tuple(replace(slot, dtype=dtype_name(tensors[slot.name].dtype)) for slot in self.slots)
        return self if slots == self.slots else Layout(slots, self.ties)

    # Facts ----------------------------------------------------------------------------------------------------

    @cached_property
    def total(self) -> int:
        """Number of values in all slots, tied ones once."""
        return self.slots[-1].stop

    @cached_property
    def num_parameters(self) -> int:
        """Number of values in parameter slots: `total` without running statistics."""
        return sum(slot.size for slot in self.slots if slot.kind == "parameter")

    @cached_property
    def dtype(self) -> str:
        """The smallest dtype that holds the values of all slots exactly."""
        names = {slot.dtype for slot in self.slots}
        if names == {"float16", "bfloat16"}:
            return "float32"
        return max(names, key=BITS.__getitem__)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(slot.name for slot in self.slots)

    @cached_property
    def _sizes(self) -> list[int]:
        return [slot.size for slot in self.slots]

    @cached_property
    def _ordered_names(self) -> list[str]:
        return [slot.name for slot in self.slots]

    @cached_property
    def slot_shapes(self) -> list[tuple[int, ...]]:
        """The shape of each slot."""
        return [slot.shape for slot in self.slots]

    @cached_property
    def _fitting(self) -> set[tuple[int, int]]:
        """Heights and widths that are known to be legal and large enough."""
        return set()

    @cached_property
    def _is_mixed(self) -> bool:
        return len({slot.dtype for slot in self.slots}) > 1

    @cached_property
    def names(self) -> frozenset[str]:
        """All names that `unpack` returns: those of slots and of aliases."""
        return self._names | {alias for alias, _ in self.ties}

    def __repr__(self) -> str:
        return f"<Layout: {counted(self.total, 'value')} in {counted(len(self.slots), 'slot')}, {self.dtype}>"

    def __len__(self) -> int:
        return len(self.slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    def __contains__(self, item: object) -> bool:
        """Whether the layout has this slot, or this name of a slot or an alias."""
        return item in self.names if isinstance(item, str) else item in self.slots

    def shape(self, width: int, height: int | None = None) -> PRepShape:
        """Return the shape of this layout's PRep at a width: the least height, or the given one if that is enough.

        raises InvalidShape if width or height is illegal or the parameters do not fit
        """
        least = PRepShape.least(self.total, width)
        if height is None:
            return least
        if isinstance(height, int) and 0 < height < least.height and height * width < self.total:
            raise InvalidShape(
                f"{self.total:,} parameters do not fit a PRep of {height} x {width} ({height * width:,} values); "
                f"use height >= {least.height}."
            )
        return PRepShape(height, width)

    # Packing --------------------------------------------------------------------------------------------------

    def pack(
        self,
        tensors: Mapping[str, Tensor],
        shape: PRepShape | tuple[int, int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Write named tensors row-major into a PRep, zeros after the last. Differentiable.

        tensors: one for each slot, `[*batch, *slot.shape]`; tied aliases and integer buffers may be among them
        shape:   height and width of the PRep; not needed where `out` is given
        out:     `[*batch, H, W]` contiguous, overwritten and returned; if missing, allocated in the smallest dtype
                 that holds all tensors exactly
        raises LayoutMismatch if a name or shape differs from the layout or `out` cannot hold the values exactly,
               InvalidShape if the parameters do not fit
        """
        import torch

        if isinstance(shape, tuple | list):
            shape = PRepShape(*shape)
        values, batch = self._checked(as_tensors(tensors))
        height, width = self._resolved(shape, out, batch)
        if batch:
            pieces = [value.reshape(*batch, size) for value, size in zip(values, self._sizes, strict=True)]
        else:
            pieces = [*map(torch.flatten, values)]  # this is the fastest way from Python; small networks need it
        if height * width > self.total:
            pieces.append(values[0].new_zeros(*batch, height * width - self.total))
        if out is None:
            return torch.cat(pieces, dim=-1).view(*batch, height, width)
        self._write(pieces, out, flat_view(out))
        return out

    def _write(self, pieces: list[Tensor], out: Tensor, flat_out: Tensor) -> None:
        import torch

        tracked = torch.is_grad_enabled() and (out.requires_grad or any(piece.requires_grad for piece in pieces))
        if not tracked and {piece.dtype for piece in pieces} == {out.dtype} and pieces[0].device == out.device:
            torch.cat(pieces, dim=-1, out=flat_out)  # this touches each byte once
            return
        flat = torch.cat(pieces, dim=-1)
        if torch.promote_types(flat.dtype, out.dtype) != out.dtype:
            raise LayoutMismatch(
                f"a PRep of {dtype_name(out.dtype)} cannot hold values of {dtype_name(flat.dtype)} exactly; "
                "cast the tensors first or pass an `out` of their dtype."
            )
        flat_out.copy_(flat)

    def _checked(self, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], tuple[int, ...]]:
        """Return the slots' tensors in order, and the batch axes that all of them start with."""
        try:
            values = [tensors[name] for name in self._ordered_names]
        except KeyError:
            values = []
        if len(tensors) != len(self.slots) or not values:
            self._check_names(tensors)
        first = self.slots[0]
        batch = tuple(values[0].shape[: values[0].dim() - len(first.shape)])
        if not batch and [value.shape for value in values] == self.slot_shapes:  # one comparison for all tensors
            return values, batch
        for value, slot in zip(values, self.slots, strict=True):
            if value.shape != batch + slot.shape:
                raise LayoutMismatch(
                    f"'{slot.name}' has shape {list(value.shape)}; the layout says "
                    f"{list(slot.shape)}{f' after batch axes {list(batch)}' if batch else ''}."
                )
        return values, batch

    def _check_names(self, tensors: Mapping[str, Tensor]) -> None:
        missing = [slot.name for slot in self.slots if slot.name not in tensors]
        if missing:
            raise LayoutMismatch(f"tensors are missing: {listed(missing)}. Given: {listed(tensors)}.")
        aliases = dict(self.ties)
        others = [name for name in tensors if name not in self._names and name not in aliases]
        unexpected = [name for name in others if tensors[name].is_floating_point() or tensors[name].is_complex()]
        if unexpected:
            raise LayoutMismatch(
                f"tensors that the layout does not have: {listed(unexpected)}. It has "
                f"{counted(len(self.slots), 'slot')}, the first is '{self.slots[0].name}'."
            )
        for alias, name in self.ties:
            if alias in tensors and not same_values(tensors[alias], tensors[name]):
                raise LayoutMismatch(f"'{alias}' is tied to '{name}' in the layout, but their values differ.")

    def _resolved(self, shape: PRepShape | None, out: Tensor | None, batch: tuple[int, ...]) -> tuple[int, int]:
        """Return the height and width to pack to; each pair is checked once."""
        if out is not None and (out.dim() < 2 or out.shape[:-2] != batch):
            raise LayoutMismatch(f"out has shape {list(out.shape)}; the tensors need {[*batch, 'H', 'W']}.")
        if shape is None and out is None:
            raise LayoutMismatch("pack needs the shape of the PRep or a buffer `out`; see Layout.shape(width).")
        height, width = (shape.height, shape.width) if shape is not None else tuple(out.shape[-2:])  # type: ignore[union-attr]
        if out is not None and out.shape[-2:] != (height, width):
            found = f"{out.shape[-2]} x {out.shape[-1]}"
            raise LayoutMismatch(f"out is {found}, but shape says {shape}; leave one of them out.")
        if (height, width) not in self._fitting:
            self.shape(width, height)
            self._fitting.add((height, width))
        return height, width

    def unpack(self, prep: Tensor) -> dict[str, Tensor]:
        """Return the named tensors of a PRep as views: no value is copied. Differentiable.

        prep: `[*batch, H, W]`, its last two axes contiguous
        returns one tensor `[*batch, *slot.shape]` for each slot, and the same tensor under each tied alias, all in
                the PRep's dtype. Only where a layout has mixed dtypes and the PRep has the layout's dtype, each
                tensor is copied into its own dtype, exactly.
        raises LayoutMismatch if the PRep is not contiguous or too small, or was read from a zoo as that of an
               architecture whose tensors have other shapes
        """
        import torch

        refuse_others(prep, self.slot_shapes)
        flat = flat_view(prep)
        batch = flat.shape[:-1]
        tail = flat.shape[-1] - self.total
        if tail < 0:
            raise LayoutMismatch(f"a PRep of {list(prep.shape)} is too small for {counted(self.total, 'value')}.")
        parts = flat.split_with_sizes([*self._sizes, tail], -1)
        shapes = [(*batch, *shape) for shape in self.slot_shapes] if batch else self.slot_shapes
        # `map` stops at the last shape, before the tail; without a loop in Python it takes half the time.
        tensors = dict(zip(self._ordered_names, map(torch.Tensor.view, parts, shapes), strict=True))
        if self._is_mixed and dtype_name(prep.dtype) == self.dtype:
            tensors = {slot.name: tensors[slot.name].to(torch_dtype(slot.dtype)) for slot in self.slots}
        for alias, name in self.ties:
            tensors[alias] = tensors[name]
        return tensors

    # As data --------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as JSON-able data: `slots` in order, and `ties`."""
        return {
            "slots": [
                {"name": slot.name, "shape": list(slot.shape), "dtype": slot.dtype, "kind": slot.kind}
                for slot in self.slots
            ],
            "ties": [list(tie) for tie in self.ties],
        }

    @classmethod
    def from_dict(cls, data: object, place: str = "layout") -> Layout:
        """Read the layout that `to_dict` wrote; `place` names the source in errors.

        raises LayoutMismatch with the place and the reason if the data is not a layout
        """
        if not isinstance(data, dict) or not isinstance(data.get("slots"), list):
            raise LayoutMismatch(f"{place}: a layout is an object with a list `slots`.")
        slots: list[Slot] = []
        start = 0
        for index, item in enumerate(data["slots"]):
            slot = slot_from_dict(item, start, f"{place}.slots[{index}]")
            slots.append(slot)
            start = slot.stop
        ties = data.get("ties", [])
        if not isinstance(ties, list) or not all(is_pair_of_names(tie) for tie in ties):
            raise LayoutMismatch(f"{place}.ties: expected pairs of names.")
        try:
            return cls(tuple(slots), tuple((alias, name) for alias, name in ties))
        except LayoutMismatch as error:
            raise LayoutMismatch(f"{place}: {error}") from None

    def to_json(self) -> str:
        """Return the layout as canonical JSON; equal layouts give equal text."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str, place: str = "layout") -> Layout:
        """Read the layout that `to_json` wrote.

        raises LayoutMismatch if the text is not JSON or not a layout
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise LayoutMismatch(f"{place}: not JSON: {error}.") from None
        return cls.from_dict(data, place)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the canonical JSON in hex, which identifies a layout."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def flat_view(prep: Tensor) -> Tensor:
    """Return `[*batch, H, W]` as `[*batch, H * W]`, which is never a copy."""
    if prep.dim() < 2:
        raise LayoutMismatch(f"a PRep has shape [*batch, H, W], not {list(prep.shape)}.")
    try:
        return prep.view(*prep.shape[:-2], prep.shape[-2] * prep.shape[-1])
    except RuntimeError:
        raise LayoutMismatch(
            f"the PRep of shape {list(prep.shape)} and strides {list(prep.stride())} is not row-major in memory; "
            "call .contiguous() on it."
        ) from None
