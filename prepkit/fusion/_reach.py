"""Which layers a BatchNorm can go into beyond the one right before it: layers behind it, or before moved values.

Between a layer and a BatchNorm there may be operations that only move values, or average values of one channel: views,
transpositions, concatenations, average pooling. To learn where a channel comes from, each channel gets a random number,
and the operations of the watched run are done again on tensors of these numbers. A BatchNorm goes into

    the layers before it      if each of its channels is one feature of one layer, and nothing else reads these layers
    the layers that read it   if nothing else reads it, and they mix no zeros of a padding with its channels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.utils import _pytree as pytree

from prepkit.fusion._output import Output, View
from prepkit.fusion._site import Site, standard_layer, tampering
from prepkit.fusion.norm import num_channels, num_features
from prepkit.fusion.step import Part
from prepkit.support.storages import storage_key

_SAME = 1e-12  # numbers of two channels differ by more, and averages of equal ones by less


def parts_before(site: Site) -> tuple[Part, ...] | None:
    """Return the layers before a BatchNorm that can take it in together; None if they cannot."""
    view = site.seen.inputs[site.name][0]
    if site.seen.calls[site.name] != 1 or view is None:
        return None
    before = _before(site, view.output)
    if before is None or any(output.held for output in before):
        return None
    at = {id(output): output for output in before if output.call is None}
    names = [*site.seen.layers, *site.seen.layer_functions]
    layers = [output for name in names for output in site.seen.outputs.get(name, []) if id(output) in at]
    if not layers or not all(_can_change(site, output.module) for output in layers):
        return None
    axes = [output.axes - _weight(site, output.module).dim() + 1 for output in layers]
    sizes = [output.view.size[axis] for output, axis in zip(layers, axes, strict=True)]
    if sizes != [_num_features(site, output.module) for output in layers]:
        return None

    def roots(values: Tensor) -> dict[int, Tensor]:
        parts = zip(layers, torch.split(values, sizes), axes, strict=True)
        return {id(output): _along(part, output.view.size, axis) for output, part, axis in parts}

    numbers = _numbers(sum(sizes))
    channels = _channels(_Replay(site, roots(numbers), absent=torch.nan).values(view), 1, numbers)
    if channels is None or len(channels) != num_channels(site.batch_norm) or bool((channels < 0).any()):
        return None
    features = torch.full((sum(sizes),), -1)
    features[channels] = torch.arange(len(channels))
    if int((features >= 0).sum()) != len(channels):  # two channels come from one feature
        return None
    marked = torch.zeros(sum(sizes), dtype=torch.float64).masked_fill(features >= 0, torch.nan)
    if _others_read(site, before, _Replay(site, roots(marked), absent=0.0)):
        return None
    return tuple(
        Part(output.module, part, site.seen.layer_functions.get(output.module))
        for output, part in zip(layers, torch.split(features, sizes), strict=True)
    )


def _others_read(site: Site, before: list[Output], marked: _Replay) -> bool:
    """Return whether anything but a BatchNorm and what it folds over reads the values that are NaN in `marked`."""
    places = {site.name, *(output.module for output in before if output.call is None)}
    for output in before:
        for reader in output.readers:
            if reader.moves or reader.place in places:
                continue
            if reader.view is None or marked.values(reader.view).isnan().any():
                return True
    known = set(before)
    copies = [move for move in site.seen.moved if move not in known and not known.isdisjoint(move.parents)]
    return any(bool(marked.values(replace(move.view, output=move)).isnan().any()) for move in copies)


def parts_behind(site: Site) -> tuple[Part, ...] | None:
    """Return the layers behind a BatchNorm that can take it in together; None if they cannot."""
    seen = site.seen
    outputs = seen.outputs.get(site.name, [])
    if seen.calls[site.name] != 1 or len(outputs) != 1 or any(True for _ in site.batch_norm.children()):
        return None
    places = {*seen.layers, *site.steps}
    if any(not reader.moves and reader.place not in places for reader in outputs[0].readers):
        return None  # this is known before all that is made of the output is looked for
    behind, norms = _behind(site, outputs[0])
    layers = [name for name in seen.layers if any(v and v.output in behind for v in seen.inputs.get(name, []))]
    if not layers or not _only_readers(behind, {*layers, *norms}):
        return None
    numbers = _numbers(num_channels(site.batch_norm))
    replay = _Replay(site, {id(outputs[0]): _along(numbers, outputs[0].view.size, 1)}, absent=0.0)
    parts = []
    for name in layers:
        layer: Any = site.network.get_submodule(name)
        view = seen.inputs[name][0]
        if view is None or not _can_change(site, name) or not _takes_no_zeros(layer):
            return None
        axis = len(view.size) - 1 if isinstance(layer, nn.Linear) else len(view.size) - layer.weight.dim() + 1
        channels = _channels(replay.values(view), axis, numbers)
        if channels is None or len(channels) != (
            layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        ):
            return None
        parts.append(Part(name, channels))
    return tuple(parts)


def _before(site: Site, output: Output | None) -> list[Output] | None:
    """Return all outputs from which a BatchNorm's input is made, back to layers; None if anything else is in it."""
    found: dict[int, Output] = {}
    waiting = [output]
    while waiting:
        output = waiting.pop()
        if output is None:
            return None
        if id(output) in found:
            continue
        found[id(output)] = output
        if output.call is not None:
            waiting += output.parents
        elif output.module in site.seen.batch_norms:
            view = _input_of_folded(site, output.module)
            if view is None:
                return None
            waiting.append(view.output)
    return list(found.values())


def _behind(site: Site, output: Output) -> tuple[set[Output], set[str]]:
    """Return a BatchNorm's output and all that is made of it, up to layers, and the BatchNorms on the way.

    Those are BatchNorms that go into layers behind them, so that they will have been removed.
    """
    found, norms = {output}, set[str]()
    grown = True
    while grown:
        made = [move for move in site.seen.moved if move not in found and not found.isdisjoint(move.parents)]
        for name, step in site.steps.items():
            view = _input_of_folded(site, name) if step.kind == "ahead" else None
            if view is not None and view.output in found and name not in norms:
                norms.add(name)
                made += site.seen.outputs[name]
        found.update(made)
        grown = bool(made)
    return found, norms


def _input_of_folded(site: Site, name: str) -> View | None:
    """Return the input of a BatchNorm that ran once and that a step has removed; None if there is no such one."""
    step = site.steps.get(name)
    module = site.network.get_submodule(name)
    if (
        step is None
        or step.kind == "affine"
        or step.leaves_shift
        or site.seen.calls[name] != 1
        or any(True for _ in module.children())
    ):
        return None
    return site.seen.inputs[name][0]


def _only_readers(outputs: Iterable[Output], places: set[str]) -> bool:
    """Return whether only these modules, and operations that move values, read the outputs."""
    if any(output.held for output in outputs):
        return False
    return all(reader.moves or reader.place in places for output in outputs for reader in output.readers)


def _can_change(site: Site, name: str) -> bool:
    """Return whether the parameters of a layer may be changed: it ran once, as torch's layer of its kind, and alone.

    That a subclass computes what torch's class does is left to the proof. A function's parameters are its own alone.
    """
    if function := site.seen.layer_functions.get(name):
        own = [storage_key(site.network.get_parameter(parameter)) for parameter in function.parameters]
        return site.seen.calls[name] == 1 and site.seen.other_reads.keys().isdisjoint(own)
    layer: Any = site.network.get_submodule(name)
    bias = layer._parameters.get("bias")
    return (
        standard_layer(layer) is not None
        and site.seen.calls[name] == 1
        and tampering("it", name, layer, site.seen) is None
        and layer._parameters.get("weight") is not None
        and bias is layer.bias
        and (bias is None or bias.dim() == 1)
    )


def _takes_no_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    padded = layer.padding_mode == "zeros" and any(layer._reversed_padding_repeated_twice)
    return not padded and not isinstance(layer, TransposedConvolution)


def _weight(site: Site, name: str) -> Tensor:
    """Return the weight of a layer, which goes by its module's name, or by its weight's if it is called as a function.

    The axis of its features is the last but one for each axis of its kernel; the batch axis may be missing.
    """
    if name in site.seen.layer_functions:
        return site.network.get_parameter(name)
    layer: Any = site.network.get_submodule(name)
    weight: Tensor = layer.weight
    return weight


def _num_features(site: Site, name: str) -> int:
    function = site.seen.layer_functions.get(name)
    return (
        num_features(site.network.get_submodule(name))
        if function is None
        else function.num_features(_weight(site, name))
    )


# Numbers of channels ------------------------------------------------------------------------------------------


class _Replay:
    """Does the operations of a run again, on numbers of channels in place of values.

    roots:  numbers in the shapes of outputs, by id
    absent: the number of all other values
    """

    def __init__(self, site: Site, roots: dict[int, Tensor], absent: float) -> None:
        self.site, self.roots, self.absent = site, roots, absent
        self._storages: dict[int, Tensor] = {}

    def values(self, view: View) -> Tensor:
        """Return the numbers in a tensor of the run."""
        if view.output is None:
            return torch.full(view.size, self.absent, dtype=torch.float64)
        return self._storage(view.output).as_strided(view.size, view.stride, view.offset)

    def _storage(self, output: Output) -> Tensor:
        if id(output) not in self._storages:
            values = self._values(output)
            storage = torch.full((output.length,), self.absent, dtype=torch.float64)
            storage.as_strided(output.view.size, output.view.stride, output.view.offset).copy_(values)
            self._storages[id(output)] = storage
        return self._storages[id(output)]

    def _values(self, output: Output) -> Tensor:
        if id(output) in self.roots:
            return self.roots[id(output)]
        if output.call is not None:
            func, args, kwargs = pytree.tree_map(self._argument, output.call)
            result: Tensor = func(*args, **kwargs)
            return result
        view = _input_of_folded(self.site, output.module) if output.module in self.site.seen.batch_norms else None
        return torch.tensor(self.absent, dtype=torch.float64) if view is None else self.values(view)

    def _argument(self, leaf: Any) -> Any:
        return self.values(leaf) if isinstance(leaf, View) else leaf


def _numbers(count: int) -> Tensor:
    return 1 + torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")


def _along(values: Tensor, size: tuple[int, ...], axis: int) -> Tensor:
    shape = [1] * len(size)
    shape[axis] = -1
    return values.reshape(shape).expand(size)


def _channels(values: Tensor, axis: int, numbers: Tensor) -> Tensor | None:
    """Return the index of each channel's number, -1 for 0; None if a channel holds several numbers, or another."""
    rows = values.movedim(axis, 0).flatten(1) if values.dim() > 1 else values[:, None]
    if not rows.numel() or not bool((rows.amax(1) - rows.amin(1) <= _SAME).all()):
        return None
    ordered, order = numbers.sort()
    at = torch.searchsorted(ordered - _SAME, rows[:, 0].contiguous(), right=True) - 1
    close = (at >= 0) & ((ordered[at.clamp_min(0)] - rows[:, 0]).abs() <= _SAME)
    if not bool((close | (rows[:, 0] == 0)).all()):
        return None
    return torch.where(close, order[at.clamp_min(0)], -1)
