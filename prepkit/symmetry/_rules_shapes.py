"""Rules of operations that move values and leave them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from prepkit.symmetry._dims import Dim, factors, parts
from prepkit.symmetry._labels import Axis, Label, Notes
from prepkit.symmetry._trace import Call, Rule, axis_index, with_axis

MISFIT = "it is reshaped into axes that its units do not fit"


def view(call: Call) -> Label:
    """Axes are taken apart and put together; the values stay in their order."""
    label = call.label("self")
    return reshaped(call.notes, label, call.shape)


def reshaped(notes: Notes, label: Label, shape: Sequence[int]) -> Label:
    """Return the label of a tensor in another shape."""
    shares = notes.take_apart(label.dims, shape, MISFIT)
    before, behind = _spans([axis.size for axis in label.axes]), _spans(shape)
    axes = []
    for share, (low, high) in zip(shares, behind, strict=True):
        pairs = zip(label.axes, before, strict=True)
        sources = [axis for axis, (start, stop) in pairs if max(start, low) < min(stop, high)]
        axes.append(notes.derived(share, sources))
    return Label(tuple(axes), label.shifts)


def _spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each axis the number of values within one place, and within all: axes with common values overlap."""
    inner, spans = 1, list[tuple[int, int]]()
    for size in reversed(shape):
        spans.append((inner, inner * size))
        inner *= size
    return spans[::-1]


def strided(call: Call) -> Label | None:
    """`as_strided`: known where only the strides of axes of size 1 change."""
    label, made = call.label("self"), call.made[0]
    wide = [
        (span[0], stride) for span, stride in zip(_spans(made.shape), made.stride(), strict=True) if span[0] < span[1]
    ]
    if [axis.size for axis in label.axes] == list(made.shape) and all(inner == stride for inner, stride in wide):
        return label
    call.fix(label.axes, "takes its values by their places in memory")
    return None


def permute(call: Call) -> Label:
    """Axes change places."""
    label = call.label("self")
    count = len(label.axes)
    order = list(range(count))
    if call.name == "permute":
        order = [axis % count for axis in call["dims"]]
    elif count > 1:
        first, second = (0, 1) if call.name in ("t", "numpy_T") else (call["dim0"] % count, call["dim1"] % count)
        order[first], order[second] = second, first
    return Label(tuple(label.axes[index] for index in order), label.shifts)


def resized(call: Call) -> Label:
    """Axes of size 1 come or go."""
    label = call.label("self")
    if call.name == "unsqueeze":
        place = call["dim"] % (len(label.axes) + 1)
        return Label((*label.axes[:place], call.notes.fresh(1), *label.axes[place:]), label.shifts)
    count = len(label.axes)
    asked = call.values.get("dim")
    asked = range(count) if asked is None else asked if isinstance(asked, list | tuple) else [asked]
    gone = {index % count for index in asked if count and label.axes[index].size == 1}
    return Label(tuple(axis for index, axis in enumerate(label.axes) if index not in gone), label.shifts)


def expand(call: Call) -> Label:
    """Values are repeated along axes of size 1, where nothing tells one place from another."""
    label, shape = call.label("self"), call.shape
    axes = [call.notes.fresh(1)] * (len(shape) - len(label.axes)) + list(label.axes)
    made = []
    for axis, size in zip(axes, shape, strict=True):
        made.append(axis if axis.size == size else _repeated(call.notes, size))
    return Label(tuple(made), label.shifts)


def _repeated(notes: Notes, size: int) -> Axis:
    axis = notes.fresh(size)
    notes.zero([axis])
    return axis


def repeat(call: Call) -> Label:
    """Whole tensors are repeated."""
    label, times = call.label("self"), call["repeats"]
    axes = [call.notes.fresh(1)] * (len(times) - len(label.axes)) + list(label.axes)
    made = [
        axis if number == 1 else call.notes.derived([*_repeated(call.notes, number).dims, *axis.dims], [axis])
        for axis, number in zip(axes, times, strict=True)
    ]
    return Label(tuple(made), label.shifts)


def select(call: Call) -> Label:
    """One place along an axis is taken."""
    label = call.label("self")
    index = axis_index(label, call["dim"])
    place = call["index"] % max(label.axes[index].size, 1)
    part = piece(call.notes, label, index, place, place + 1)
    return Label((*part.axes[:index], *part.axes[index + 1 :]), part.shifts)


def narrow(call: Call) -> Label:
    """A part of an axis is taken."""
    label = call.label("self")
    index = axis_index(label, call["dim"])
    size = label.axes[index].size
    start, stop, step = call["start"] or 0, size if call["end"] is None else call["end"], call["step"]
    start, stop = (max(0, min(size, place + size if place < 0 else place)) for place in (start, stop))
    if step != 1:
        call.fix([label.axes[index]], f"takes every place in {step}")
        call.notes.mix(label, [index])
        made = call.notes.fresh(call.shape[index], f"it stands beside what {call.place} makes")
        return Label(with_axis(label, index, made).axes)
    return piece(call.notes, label, index, start, stop)


def split(call: Call) -> list[Label]:
    """An axis is taken apart; `unbind` leaves each place of it alone."""
    label = call.label("self")
    index = axis_index(label, call["dim"])
    sizes = [tensor.shape[index] if call.name != "unbind" else 1 for tensor in call.result]
    ends = [0, *accumulate(sizes)]
    found = [piece(call.notes, label, index, start, stop) for start, stop in pairwise(ends)]
    if call.name == "unbind":
        return [Label((*one.axes[:index], *one.axes[index + 1 :]), one.shifts) for one in found]
    return found


def piece(notes: Notes, label: Label, index: int, start: int, stop: int) -> Label:
    """Return the label of a part of a tensor along one axis."""
    axis = label.axes[index]
    if (start, stop) == (0, axis.size) or not axis.dims or stop <= start:
        return label if stop > start else with_axis(label, index, notes.fresh(0))
    own = [factor for dim in axis.dims for factor in factors(dim)]
    first, rest = own[0], own[1:]
    inner = axis.size // first.size
    if rest and (start % inner or stop % inner) and start // inner == (stop - 1) // inner:
        row = piece(notes, label, index, start // inner * inner, (start // inner + 1) * inner)
        return piece(notes, row, index, start % inner, stop - start // inner * inner)
    if rest and (start % inner or stop % inner):
        joined = notes.dims.product(own)
        notes.dims.cut(joined, start)
        notes.dims.cut(joined, stop)
        return piece(notes, with_axis(label, index, notes.derived([joined], [axis])), index, start, stop)
    notes.dims.cut(first, start // inner)
    notes.dims.cut(first, stop // inner)
    whole, taken, place = parts(first), list[int](), 0
    for number, part in enumerate(whole):
        if start // inner <= place < stop // inner:
            taken.append(number)
        place += part.size
    kept = notes.dims.sum([whole[number] for number in taken])

    def given(dim: Dim) -> Dim:
        choices = [notes.dims.given(dim, first, number) for number in taken]
        return notes.dims.choice(kept, choices)

    axes = []
    for number, other in enumerate(label.axes):
        dims = [given(dim) for dim in (rest if number == index else other.dims)]
        axes.append(notes.derived([kept, *dims] if number == index else dims, [other]))
    return Label(tuple(axes), label.shifts)


def concatenate(call: Call) -> Label:
    """Tensors stand one after another along an axis."""
    tensors = [tensor for tensor in call["tensors"] if tensor.dim() > 1 or tensor.numel()]
    labels = [call.run.label_of(tensor) for tensor in tensors]
    call.bind(*labels)
    first = labels[0]
    index = axis_index(first, call["dim"])
    axes = []
    for number, axis in enumerate(first.axes):
        beside = [label.axes[number] for label in labels]
        if number == index:
            whole = call.notes.dims.sum([call.notes.dims.product(list(one.dims)) for one in beside])
            axes.append(call.notes.derived([whole], beside))
            continue
        for other in beside[1:]:
            call.notes.unify(axis.dims, other.dims)
            call.notes.equal(axis, other)
        axes.append(axis)
    return Label(tuple(axes))


def stack(call: Call) -> Label:
    """Tensors of one shape stand beside each other along a new axis."""
    labels = call.labels("tensors")
    call.bind(*labels)
    notes = call.notes
    new = notes.fresh(len(labels), "it runs along a stack")
    for place in range(1, len(labels)):
        notes.dims.cut(notes.dims.product(list(new.dims)), place)
    axes = []
    for number in range(len(labels[0].axes)):
        beside = [label.axes[number] for label in labels]
        whole = [notes.dims.product(list(axis.dims)) for axis in beside]
        axes.append(notes.derived([notes.dims.choice(new.dims[0], whole)] if new.dims else whole, beside))
    index = call["dim"] % (len(axes) + 1)
    return Label((*axes[:index], new, *axes[index:]))


def pad(call: Call) -> Label:
    """Equal values are added at the ends of axes."""
    label, pads = call.label("self"), call["pad"]
    call.bind(label)
    axes = list(label.axes)
    for number in range(len(pads) // 2):
        before, behind = pads[2 * number : 2 * number + 2]
        index = len(axes) - 1 - number
        if before == behind == 0:
            continue
        if before < 0 or behind < 0:
            call.notes.fix([axes[index]], "it is cut at its ends")
            call.notes.mix(label, [index])
            axes[index] = call.notes.fresh(call.shape[index], "it is cut at its ends")
            continue
        dims = [call.notes.fresh(before), call.notes.fresh(behind)]
        whole = [
            call.notes.dims.product(list(axis.dims))
            for axis in (dims[0], axes[index], dims[1])
            if axis.dims or axis.size
        ]
        whole = [dim for dim, size in zip(whole, (before, axes[index].size, behind), strict=True) if size]
        axes[index] = call.notes.derived([call.notes.dims.sum(whole)], [label.axes[index]])
    if call["value"] != 0:
        call.notes.zero(axes)
    return Label(tuple(axes))


def pixel_shuffle(call: Call) -> Label:
    """Channels become rows and columns, or the other way round."""
    label = call.label("self")
    call.bind(label)
    axes, reason = label.axes, "it is a position in a picture"
    call.notes.fix(axes[-2:], reason)
    batch = axes[:-3]
    if call.name == "pixel_shuffle":
        factor = call["upscale_factor"]
        channels, *rest = call.notes.take_apart(axes[-3].dims, [axes[-3].size // factor**2, factor, factor], MISFIT)
        call.notes.dims.fix([dim for one in rest for dim in one], reason)
        first = call.notes.derived(channels, [axes[-3]])
        new = first
    else:
        factor = call["downscale_factor"]
        squares = [call.notes.dims.leaf(factor, reason) for _ in range(2)]
        new = call.notes.derived([*axes[-3].dims, *squares], [axes[-3]])
    return Label((*batch, new, *(call.notes.fresh(size, reason) for size in call.shape[-2:])))


def windows(call: Call) -> Label:
    """`im2col` and `col2im`: the values in each window stand behind each other, channel by channel, or come back."""
    label, reason = call.label("self"), "it is a position in a picture"
    call.bind(label)
    window = call["kernel_size"][0] * call["kernel_size"][1]
    if call.name == "im2col":
        *batch, channels, height, width = label.axes
        call.notes.fix([height, width], reason)
        call.notes.mix(label, [len(batch) + 1, len(batch) + 2])
        inner = call.notes.dims.leaf(window, reason)
        columns = call.notes.derived([*channels.dims, inner], [channels])
        return Label((*batch, columns, call.notes.fresh(call.shape[-1], reason)))
    *batch, columns, places = label.axes
    own, inside = call.notes.take_apart(columns.dims, [columns.size // window, window], MISFIT)
    call.notes.dims.fix([*inside, *places.dims], reason)
    call.notes.mix(label, [len(batch) + 1])
    channels = call.notes.derived(own, [columns])
    return Label((*batch, channels, *(call.notes.fresh(size, reason) for size in call.shape[-2:])))


def unpool(call: Call) -> Label:
    """`max_unpool2d`: values go back to where they were the largest."""
    label, indices = call.label("self"), call.label("indices")
    call.bind(label, indices)
    reason = "it is a position in a picture"
    for own, other in zip(label.axes, indices.axes, strict=True):
        call.notes.unify(own.dims, other.dims)
    call.notes.fix(label.axes[-2:], reason)
    call.notes.mix(label, [len(label.axes) - 2, len(label.axes) - 1])
    return Label((*label.axes[:-2], *(call.notes.fresh(size, reason) for size in call.shape[-2:])))


def channel_shuffle(call: Call) -> Label:
    """Groups and the channels within them change places."""
    label, groups = call.label("self"), call["groups"]
    channels = label.axes[1]
    outer, inner = call.notes.take_apart(channels.dims, [groups, channels.size // groups], MISFIT)
    return Label(with_axis(label, 1, call.notes.derived([*inner, *outer], [channels])).axes, label.shifts)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), permute),
    **dict.fromkeys(("squeeze", "unsqueeze"), resized),
    "as_strided": strided,
    "expand": expand,
    "repeat": repeat,
    "select": select,
    "slice": narrow,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "chunk"), split),
    **dict.fromkeys(("cat", "concat"), concatenate),
    "stack": stack,
    "constant_pad_nd": pad,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), pixel_shuffle),
    **dict.fromkeys(("im2col", "col2im"), windows),
    "max_unpool2d": unpool,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
}
