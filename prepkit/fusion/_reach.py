"""Which layers a BatchNorm can go into beyond the one right before it: layers behind it, or before moved values.

Between a layer and a BatchNorm there may be operations that only move values, or average values of one channel: views,
transpositions, concatenations, average pooling. To learn where a channel comes from, each channel gets a random number,
and the operations of the watched run are done again on tensors of these numbers. A BatchNorm goes into

    the layers before it      if each of its channels is one feature of one layer, and nothing else reads these layers
    the layers that read it   if nothing else reads it, and they mix no zeros of a padding with its channels
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
from torch.utils import _pytree as pytree

from prepkit.fusion._output import Output, View
from prepkit.fusion._site import Site, standard_layer, tampering
from prepkit.fusion.norm import num_channels, num_features
from prepkit.fusion.step import Part

_SAME = 1e-12  # numbers of two channels differ by more, and averages of equal ones by less


def parts_before(site: Site) -> tuple[Part, ...] | None:
    """Return the layers before a BatchNorm that can take it in together; None if they cannot."""
    view = site.seen.inputs[site.name][0]
    if site.seen.calls[site.name] != 1 or view is None:
        return None
    before = _before(site, view.output)
    if before is None or not _only_readers(site, before, {site.name, *(o.module for o in before if o.call is None)}):
        return None
    at = {id(output): output for output in before if output.call is None}
    run = [output for name in site.seen.layers for output in site.seen.outputs.get(name, [])]
    layers = [output for output in run if id(output) in at]
    if not layers or not all(_can_change(site, output.module) for output in layers):
        return None
    sizes = [output.view.size[_feature_axis(site.network.get_submodule(output.module), output)] for output in layers]
    if sizes != [num_features(site.network.get_submodule(output.module)) for output in layers]:
        return None
    numbers = _numbers(sum(sizes))
    roots = {
        id(output): _along(values, output.view.size, _feature_axis(site.network.get_submodule(output.module), output))
        for output, values in zip(layers, torch.split(numbers, sizes), strict=True)
    }
    channels = _channels(_Replay(site, roots, absent=torch.nan).values(view), 1, numbers)
    if channels is None or len(channels) != num_channels(site.batch_norm) or bool((channels < 0).any()):
        return None
    features = torch.full((sum(sizes),), -1)
    features[channels] = torch.arange(len(channels))
    if int((features >= 0).sum()) != len(channels):  # two channels come from one feature
        return None
    return tuple(Part(output.module, part) for output, part in zip(layers, torch.split(features, sizes), strict=True))


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
    if not layers or not _only_readers(site, behind, {*layers, *norms}, behind=True):
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
    if step is None or step.kind == "affine" or site.seen.calls[name] != 1 or any(True for _ in module.children()):
        return None
    return site.seen.inputs[name][0]


def _only_readers(site: Site, outputs: Iterable[Output], places: set[str], behind: bool = False) -> bool:
    """Return whether only these modules, and operations that move values among these outputs, read the outputs."""
    known = set(outputs)
    if any(output.held for output in known):
        return False
    if any(not reader.moves and reader.place not in places for output in known for reader in output.readers):
        return False
    return behind or all(move in known for move in site.seen.moved if not known.isdisjoint(move.parents))


def _can_change(site: Site, name: str) -> bool:
    """Return whether the parameters of a layer may be changed: it ran once, as torch's layer of its kind, and alone.

    That a subclass computes what torch's class does is left to the proof.
    """
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


def _feature_axis(layer: Any, output: Output) -> int:
    """Return the axis of the features in a layer's output; a convolution's input may lack the batch axis."""
    return output.axes - 1 if isinstance(layer, nn.Linear) else output.axes - layer.weight.dim() + 1


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
