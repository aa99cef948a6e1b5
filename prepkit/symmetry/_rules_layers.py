"""Rules of operations that sum over units: matrix products, convolutions, attention, normalisation, look-ups."""

from __future__ import annotations

from prepkit.symmetry._labels import SCALE, SIGN, Axis, Label
from prepkit.symmetry._rules_shapes import MISFIT, piece
from prepkit.symmetry._trace import Call, Rule, axis_index, with_axis

POSITION = "it is a position in a picture"


def _contract(call: Call, a: Axis, b: Axis) -> None:
    """Sum over two axes."""
    call.notes.unify(a.dims, b.dims)
    call.notes.equate([(1, a), (1, b)])


def _product(call: Call, a: Label, b: Label) -> Label:
    """Multiply matrices, or batches of them."""
    call.bind(a, b)
    batch = []
    for own, other in zip(a.axes[:-2], b.axes[:-2], strict=True):
        call.notes.unify(own.dims, other.dims)
        batch.append(call.notes.like(own))
        call.notes.equate([(1, batch[-1]), (-1, own), (-1, other)])
    _contract(call, a.axes[-1], b.axes[-2])
    return Label((*batch, a.axes[-2], b.axes[-1]))


def _plus(call: Call, bias: Label, label: Label) -> Label:
    """Add a bias, whose axes are the last ones."""
    scaled = call.values.get("beta", 1) == call.values.get("alpha", 1) == 1
    for own, other in zip(reversed(label.axes), reversed(bias.axes), strict=False):
        if other.dims:
            call.notes.unify(own.dims, other.dims)
        call.notes.equate([(1, own), (-1, other if other.dims else None)])
    for own in label.axes[: len(label.axes) - len(bias.axes)]:
        call.notes.zero([own])
    if not scaled:
        call.bind(bias)
    return Label(label.axes, bias.shifts if scaled else ())


def matrix_product(call: Call) -> Label:
    """`mm` and `bmm`."""
    return _product(call, call.label("self"), call.label("mat2"))


def add_matrix_product(call: Call) -> Label:
    """`addmm` and `baddbmm`: a bias and a product."""
    names = ("mat1", "mat2") if call.name == "addmm" else ("batch1", "batch2")
    label = _product(call, call.label(names[0]), call.label(names[1]))
    return _plus(call, call.label("self"), label)


def matrix_vector(call: Call) -> Label:
    """`mv`, `dot` and `vdot`."""
    names = ("self", "vec") if call.name == "mv" else ("self", "other" if call.name == "vdot" else "tensor")
    a, b = call.label(names[0]), call.label(names[1])
    call.bind(a, b)
    _contract(call, a.axes[-1], b.axes[0])
    return Label(a.axes[:-1])


def convolution(call: Call) -> Label:
    """Convolutions of all kinds; channels are taken apart into groups, and those within them."""
    x, w, bias = call.label("input"), call.label("weight"), call.optional("bias")
    call.bind(x, w)
    notes, groups = call.notes, call["groups"]
    notes.fix(x.axes[2:], POSITION)
    notes.fix(w.axes[2:], "it is a position in a kernel")
    notes.mix(x, range(2, len(x.axes)))
    notes.mix(w, range(2, len(w.axes)))
    given, first, second = x.axes[1], w.axes[0], w.axes[1]
    if groups == 1:
        read, written = (first, second) if call["transposed"] else (second, first)
        _contract(call, given, read)
        out = notes.derived(written.dims, [written])
    else:
        outer, inner = notes.take_apart(given.dims, [groups, given.size // groups], MISFIT)
        own_outer, own = notes.take_apart(first.dims, [groups, first.size // groups], MISFIT)
        notes.unify(outer, own_outer)
        if call["transposed"]:  # the first axis of the weight is that of the input
            notes.unify(inner, own)
            notes.equate([(1, given), (1, first)], along=inner)
            written_dims, written = list(second.dims), second
        else:
            notes.unify(inner, second.dims)
            notes.equate([(1, given), (1, second)], along=inner)
            written_dims, written = own, first
        out = notes.axis([*outer, *written_dims])
        notes.equate([(1, out), (-1, given), (-1, first)], along=outer)
        notes.equate([(1, out), (-1, written)], along=written_dims)
    axes = (x.axes[0], out, *(notes.fresh(size, POSITION) for size in call.shape[2:]))
    label = Label(axes)
    if bias is None:
        return label
    notes.unify(out.dims, bias.axes[0].dims)
    notes.equal(out, bias.axes[0])
    return Label(axes, bias.shifts)


def attention(call: Call) -> list[Label]:
    """Attention: queries meet keys along the last axis, and values along the places."""
    q, k, v = call.label("query"), call.label("key"), call.label("value")
    mask = call.optional("attn_mask") or call.optional("attn_bias")
    call.bind(q, k, v, mask)
    notes = call.notes
    batch = []
    for own, other, third in zip(q.axes[:-2], k.axes[:-2], v.axes[:-2], strict=True):
        repeats = own.size // max(other.size, 1)  # heads that share their keys and values
        outer, inner = notes.take_apart(own.dims, [other.size, repeats], MISFIT)
        notes.unify(outer, other.dims)
        notes.unify(outer, third.dims)
        notes.equate([(1, own), (1, other)], along=outer)
        notes.equate([(1, own)], along=inner)
        batch.append(third if repeats == 1 else notes.axis([*outer, *inner]))
        if repeats > 1:
            notes.equate([(1, batch[-1]), (-1, third)], along=outer)
            notes.equate([(1, batch[-1])], along=inner)
    _contract(call, q.axes[-1], k.axes[-1])
    notes.unify(k.axes[-2].dims, v.axes[-2].dims)
    notes.zero([q.axes[-2], k.axes[-2], v.axes[-2]])
    scores = Label((*q.axes[:-2], q.axes[-2], k.axes[-2]))
    notes.dims.prune(scores.dims)
    notes.mix(scores, [len(scores.axes) - 1])
    notes.mix(v, [len(v.axes) - 2])
    if mask is not None:
        for own, other in zip(reversed(scores.axes), reversed(mask.axes), strict=False):
            if other.dims:
                notes.unify(own.dims, other.dims)
            notes.zero([other])
    if call.values.get("is_causal"):
        call.fix([q.axes[-2], k.axes[-2]], "each place looks at those before it")
    out = Label((*batch, q.axes[-2], v.axes[-1]))
    others = [notes.fresh_label(tensor.shape, f"it stands beside what {call.place} makes") for tensor in call.made[1:]]
    return [out, *others]


def batch_norm(call: Call) -> list[Label]:
    """Each channel has a mean, a variance, a scale and a shift; a scale is not undone by them, but a sign is."""
    x = call.label("input")
    call.bind(x)
    notes, channels = call.notes, x.axes[1]
    weight, bias, mean, variance = (call.optional(name) for name in ("weight", "bias", "running_mean", "running_var"))
    for other in (weight, bias, mean, variance):
        if other is not None:
            notes.unify(channels.dims, other.axes[0].dims)
    if mean is None:
        notes.mix(x, [index for index in range(len(x.axes)) if index != 1])
    notes.zero([axis for index, axis in enumerate(x.axes) if index != 1])
    out = notes.like(channels)
    own = weight.axes[0] if weight else None
    notes.zero([channels, *(label.axes[0] for label in (mean, variance) if label)], SCALE)
    notes.equate([(1, out), (-1, own)], SCALE)
    notes.equate([(1, out), (-1, channels), (-1, own)], SIGN)
    notes.zero([variance.axes[0] if variance else None], SIGN)
    if mean:
        notes.equal(mean.axes[0], channels, SIGN)
    if bias:
        notes.equal(bias.axes[0], out)
    else:
        notes.zero([out] if mean and not weight else [], SCALE)
    call.bind(weight, mean, variance)
    label = Label(with_axis(x, 1, out).axes, bias.shifts if bias else ())
    return [
        label,
        *(notes.fresh_label(tensor.shape, f"it stands beside what {call.place} makes") for tensor in call.made[1:]),
    ]


def layer_norm(call: Call) -> list[Label]:
    """The last axes are normalised together, then each unit has a scale and a shift."""
    x = call.label("input")
    first = len(x.axes) - len(call["normalized_shape"])
    call.bind(x)
    notes = call.notes
    notes.mix(x, range(first, len(x.axes)))
    notes.zero(x.axes)
    weight, bias = call.optional("weight"), call.optional("bias")
    out = []
    for index, axis in enumerate(x.axes):
        if index < first:
            out.append(axis)
            continue
        out.append(_scaled(call, axis, *(label.axes[index - first] if label else None for label in (weight, bias))))
    call.bind(weight)
    label = Label(tuple(out), bias.shifts if bias else ())
    return [label, *(notes.fresh_label(tensor.shape) for tensor in call.made[1:])]


def _scaled(call: Call, axis: Axis, weight: Axis | None, bias: Axis | None) -> Axis:
    """Return an axis of normalised values that have been scaled and shifted."""
    out = call.notes.like(axis)
    for other in (weight, bias):
        if other is not None:
            call.notes.unify(axis.dims, other.dims)
    call.notes.equate([(1, out), (-1, weight)])
    if bias is not None:
        call.notes.equal(bias, out)
    return out


def group_norm(call: Call) -> list[Label]:
    """The channels of a group are normalised together with all positions, then each has a scale and a shift."""
    x, notes = call.label("input"), call.notes
    call.bind(x)
    weight, bias = call.optional("weight"), call.optional("bias")
    outer, inner = notes.take_apart(x.axes[1].dims, [call["group"], x.axes[1].size // call["group"]], MISFIT)
    apart = Label((x.axes[0], notes.derived(outer, [x.axes[1]]), notes.derived(inner, [x.axes[1]]), *x.axes[2:]))
    notes.mix(apart, range(2, len(apart.axes)))
    notes.zero(x.axes)
    call.bind(weight)
    out = _scaled(call, x.axes[1], *(label.axes[0] if label else None for label in (weight, bias)))
    label = Label(with_axis(x, 1, out).axes, bias.shifts if bias else ())
    return [
        label,
        *(notes.fresh_label(tensor.shape, f"it stands beside what {call.place} makes") for tensor in call.made[1:]),
    ]


def embedding(call: Call) -> Label:
    """Rows of a table are looked up; the table's rows stay where they are."""
    weight, indices = call.label("weight"), call.label("indices")
    call.bind(weight)
    call.notes.fix(weight.axes[:1], "its rows are looked up by number")
    return Label((*indices.axes, weight.axes[1]))


def embedding_bag(call: Call) -> list[Label]:
    """Rows of a table are looked up and added."""
    weight = call.label("weight")
    call.bind(weight)
    call.notes.fix(weight.axes[:1], "its rows are looked up by number")
    call.notes.zero(weight.axes[1:], SIGN if call["mode"] == 2 else ())
    reason = f"it stands beside what {call.place} makes"
    bags = Label((call.notes.fresh(call.shape[0], reason), weight.axes[1]))
    return [bags, *(call.notes.fresh_label(tensor.shape, reason) for tensor in call.made[1:])]


def trilinear(call: Call) -> Label:
    """`_trilinear`: the product of three tensors that lack some axes each, summed over some axes."""
    notes, labels = call.notes, [call.label(name) for name in ("i1", "i2", "i3")]
    call.bind(*labels)
    rows = []
    for label, lacking in zip(labels, (call["expand1"], call["expand2"], call["expand3"]), strict=True):
        axes = iter(label.axes)
        count = len(label.axes) + len(lacking)
        rows.append([None if index in lacking else next(axes) for index in range(count)])
    out = []
    for index, column in enumerate(zip(*rows, strict=True)):
        there = [axis for axis in column if axis is not None and axis.dims]
        for axis in there[1:]:
            notes.unify(there[0].dims, axis.dims)
        if index in call["sumdim"]:
            notes.equate([(1, axis) for axis in there])
            continue
        out.append(notes.like(there[0]) if there else notes.fresh(1))
        notes.equate([(1, out[-1]), *((-1, axis) for axis in there)])
    return Label(tuple(out))


def indexed(call: Call) -> Label | None:
    """Places along some axes are looked up by number; these axes stay as they are."""
    label = call.label("self")
    call.bind(label)
    if call.name == "index":
        asked = [index for index, value in enumerate(call["indices"]) if value is not None]
    else:
        asked = [axis_index(label, call["dim"])]
    call.fix([label.axes[index] for index in asked], "its places are looked up by number")
    call.notes.mix(label, asked)
    kept = [axis for index, axis in enumerate(label.axes) if index not in asked]
    count = len(call.shape) - len(kept)
    shape = call.shape
    together = asked == [*range(asked[0], asked[-1] + 1)]
    start = asked[0] if together else 0
    new = [call.notes.fresh(size, f"it stands beside what {call.place} makes") for size in shape[start : start + count]]
    return Label((*kept[:start], *new, *kept[start:]))


def weight_norm(call: Call) -> list[Label]:
    """`_weight_norm_interface`: the direction of `v` and the length `g`."""
    v, g, notes = call.label("v"), call.label("g"), call.notes
    call.bind(v, g)
    out = []
    for own, length in zip(v.axes, g.axes, strict=True):
        made = notes.like(own)
        if length.dims:
            notes.unify(own.dims, length.dims)
            notes.equal(made, length, SCALE)
        else:
            notes.zero([made, own], SCALE)
        notes.equate([(1, made), (-1, own), (-1, length if length.dims else None)], SIGN)
        out.append(made)
    mixed = [index for index, axis in enumerate(g.axes) if not axis.dims]
    notes.mix(v, mixed)
    return [Label(tuple(out)), Label(g.axes)]


def glu(call: Call) -> Label:
    """One half of an axis gates the other."""
    label = call.label("self")
    call.bind(label)
    index = axis_index(label, call["dim"])
    axis = label.axes[index]
    half = axis.size // 2
    first, second = (piece(call.notes, label, index, start, start + half) for start in (0, half))
    for a, b in zip(first.axes, second.axes, strict=True):
        call.notes.unify(a.dims, b.dims)
    call.notes.zero([*label.axes, *first.axes])
    return Label(first.axes)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm"), matrix_product),
    **dict.fromkeys(("addmm", "baddbmm"), add_matrix_product),
    **dict.fromkeys(("mv", "dot", "vdot"), matrix_vector),
    "convolution": convolution,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ),
        attention,
    ),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_norm
    ),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "embedding": embedding,
    "_embedding_bag": embedding_bag,
    "_embedding_bag_forward_only": embedding_bag,
    "_trilinear": trilinear,
    **dict.fromkeys(("index", "index_select", "gather", "take_along_dim"), indexed),
    "_weight_norm_interface": weight_norm,
    "glu": glu,
}
