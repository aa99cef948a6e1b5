"""Rules of operations that compute each value from the values at the same place, or along one axis."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prepkit.symmetry._labels import BOTH, SCALE, SIGN, Axis, Label
from prepkit.symmetry._trace import Call, Rule, axis_index

SAME = (
    "neg clone contiguous detach alias lift_fresh lift _to_copy to dropout native_dropout alpha_dropout real positive"
)
SUMS = "add sub rsub maximum minimum fmax fmin where copy masked_fill lerp _prelu_kernel"
RECTIFIERS = "relu leaky_relu rrelu_with_noise threshold clamp_min"  # positive numbers pass them, with a threshold of 0
ODD = "sin tanh erf asinh atan sinh asin tan sgn sign"
EVEN = "cos cosh abs"
UNMARKED = "hardswish log_sigmoid_forward rrelu_with_noise"  # values at the same place, though torch does not say so
UNMARKED_ONCE = "leaky_relu elu celu selu hardtanh hardsigmoid ldexp"  # torch 2.8 does not say so yet


def broadcast(call: Call, labels: list[Label]) -> list[list[Axis | None]]:
    """Make what runs along the same axes the same; return the axes of each, counted as those of the result."""
    count = len(call.shape)
    rows: list[list[Axis | None]] = []
    for label in labels:
        own: list[Axis | None] = [axis if axis.dims else None for axis in label.axes]
        rows.append([*[None] * (count - len(own)), *own[max(len(own) - count, 0) :]])
    for column in zip(*rows, strict=True):
        there = [axis for axis in column if axis is not None]
        for axis in there[1:]:
            call.notes.unify(there[0].dims, axis.dims)
    return rows


def pointwise(call: Call) -> Label:
    """Give the rule of an operation on values at the same place; see `_degrees` for how units scale."""
    labels = [call.run.label_of(tensor) for tensor in call.tensors]
    rows = broadcast(call, labels)
    first = [next((axis for axis in column if axis is not None), None) for column in zip(*rows, strict=True)]
    out = [call.notes.fresh(1) if axis is None else call.notes.like(axis) for axis in first]
    for index, axis in enumerate(out):
        _degrees(call, axis, [row[index] for row in rows])
    return Label(tuple(out), _shifts(call, labels))


def _degrees(call: Call, out: Axis, given: list[Axis | None]) -> None:
    """Note how the values that come out scale with those that go in, along one axis."""
    notes, name = call.notes, call.name
    first = given[0] if given else None
    scalars = [value for key, value in call.values.items() if isinstance(value, int | float) and key != "alpha"]
    if name in SAME.split() or (name in ("mul", "div") and len(given) == 1 and isinstance(call["self"], Tensor)):
        notes.equal(out, first)
    elif name in ("mul", "div"):
        notes.equate([(1, out), (-1, given[0]), (-1 if name == "mul" else 1, given[1])])
    elif name == "where" and len(given) == 3:
        notes.zero(given[:1])
        for axis in given[1:]:
            notes.equal(out, axis)
    elif name in SUMS.split() and name not in ("where", "lerp") and len(given) == 2:
        systems = SCALE if name in ("maximum", "minimum", "fmax", "fmin") else BOTH
        if name in ("masked_fill", "_prelu_kernel"):  # the second is a mask, or slopes
            notes.zero(given[1:])
            notes.equal(out, first, SCALE if name == "_prelu_kernel" else BOTH)
            if (name == "masked_fill" and call["value"] != 0) or name == "_prelu_kernel":
                notes.zero([out, first], SIGN if name == "_prelu_kernel" else BOTH)
            return
        for axis in given:
            notes.equal(out, axis, systems)
        if systems == SCALE:
            notes.zero([out, *given], SIGN)
    elif (name in RECTIFIERS.split() and _is_at_zero(call)) or (name == "clamp" and _is_at_zero(call)):
        notes.equal(out, first, SCALE)
        notes.zero([out, first], SIGN)
    elif name in ODD.split():
        notes.zero([out], SCALE)
        notes.zero([] if name in ("sgn", "sign") else [first], SCALE)
        _periodic(call, out, first) if name == "sin" else notes.equal(out, first, SIGN)
    elif name in EVEN.split():
        notes.zero([out], () if name == "abs" else SCALE)
        notes.equal(out, first, SCALE if name == "abs" else ())
        notes.zero([] if name == "abs" else [first], SCALE)
        _periodic(call, out, None) if name == "cos" else notes.zero([out], SIGN)
    elif (
        name in ("pow", "square", "sqrt", "rsqrt", "reciprocal")
        and len(given) == 1
        and isinstance(call["self"], Tensor)
    ):
        _power(call, out, first, scalars)
    else:
        notes.zero([out, *given])


def _is_at_zero(call: Call) -> bool:
    """Return whether a rectifier bends at zero alone."""
    if call.name == "clamp":
        return bool(call["min"] == 0 and call["max"] is None)
    if call.name == "clamp_min":
        return bool(call["min"] == 0)
    return call.name != "threshold" or bool(call["threshold"] == 0 and call["value"] == 0)


def _power(call: Call, out: Axis, first: Axis | None, scalars: list[Any]) -> None:
    power = {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}.get(call.name) or call.values.get("exponent")
    if not isinstance(power, int | float):
        call.notes.zero([out, first])
        return
    call.notes.equate([(1, out), (-power, first)], SCALE)
    whole = float(power).is_integer()
    call.notes.zero([out], () if whole and power % 2 else SIGN)
    call.notes.equal(out, first, SIGN if whole and power % 2 else ())
    call.notes.zero([] if whole else [first], SIGN)


def _periodic(call: Call, out: Axis, first: Axis | None) -> None:
    """Note that half a period more changes the sign of a sine or cosine, and where half a period can be added."""
    notes = call.notes
    terms: list[tuple[float, Axis | None]] = [(1, out), (-1, first)]
    for name, number in call.label("self").shifts:
        if abs(notes.shift_numbers.setdefault(name, number) - number) > 1e-9 * abs(number):
            notes.bound_shifts.add(name)
        terms.append((-1, Axis((), notes.shift_sites[name])))
    notes.equate(terms, SIGN, along=out.dims)


def _shifts(call: Call, labels: list[Label]) -> tuple[tuple[str, float], ...]:
    """Return the parameters that were added to each value, where they still are; note those that are no longer."""
    name = call.name
    if name in ("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "dropout"):
        return labels[0].shifts
    if name in ("add", "sub") and len(labels) == 2:
        times = call.values.get("alpha", 1) * (-1 if name == "sub" else 1)
        return (*labels[0].shifts, *((key, number * times) for key, number in labels[1].shifts))
    number = _factor(call)
    if number is not None and labels:
        own = labels[0] if isinstance(call.values.get("self"), Tensor) and labels[0].shifts else labels[-1]
        return tuple((key, value * number) for key, value in own.shifts)
    if name not in ("sin", "cos"):
        call.bind(*labels)
    return ()


def _factor(call: Call) -> float | None:
    """Return the one number by which an operation multiplies all values; None if it does something else."""
    if call.name == "neg":
        return -1.0
    if call.name == "add" and not isinstance(call.values.get("other"), Tensor):
        return 1.0
    if call.name not in ("mul", "div"):
        return None
    pair = [call.values["self"], call.values["other"]]
    numbers = [value for value in pair if not isinstance(value, Tensor)]
    if len(numbers) != 1 or (call.name == "div" and numbers[0] is not pair[1]):
        return None
    number = float(numbers[0])
    return number if call.name == "mul" else 1 / number if number else None


def softmax(call: Call) -> Label:
    """Values along one axis meet; no unit scales."""
    label = call.label("self")
    call.bind(label)
    call.notes.mix(label, [axis_index(label, call["dim"])])
    call.notes.zero(label.axes)
    return Label(label.axes)


def reduction(call: Call) -> Label:
    """Values along some axes become one, whatever their order."""
    label = call.label("self")
    call.bind(label)
    asked = call.values.get("dim")
    count = len(label.axes)
    gone = (
        {*range(count)}
        if asked in (None, [])
        else {axis_index(label, d) for d in (asked if isinstance(asked, list | tuple) else [asked])}
    )
    call.notes.mix(label, gone)
    kept = [axis for index, axis in enumerate(label.axes) if index not in gone]
    call.notes.zero(label.axes[index] for index in gone)
    if call.name not in ("sum", "mean"):
        systems = SIGN if call.name in ("amax", "amin", "max", "min") else BOTH
        call.notes.zero(kept, systems)
    if call.values.get("keepdim"):
        return Label(tuple(call.notes.fresh(1) if index in gone else axis for index, axis in enumerate(label.axes)))
    return Label(tuple(kept))


def extreme(call: Call) -> Label | list[Label]:
    """`max` and `min`: of a whole tensor, along an axis (with the numbers of the places), or of two tensors."""
    if "other" in call.values:
        return pointwise(call)
    if "dim" in call.values:
        label = call.label("self")
        axis = label.axes[axis_index(label, call["dim"])] if label.axes else None
        call.order = ([axis] if axis else [], f"the numbers of its units that {call.place} tells are read")
    return reduction(call)


def along_axis(call: Call) -> Label | list[Label]:
    """An operation depends on the order along some axes, and treats all others alike."""
    label = call.label("self")
    call.bind(label)
    asked = call.values.get("dims", call.values.get("dim", -1))
    gone = {axis_index(label, d) for d in (asked if isinstance(asked, list | tuple) else [asked])}
    call.fix([label.axes[index] for index in gone])
    call.notes.mix(label, gone)
    keeps = call.name in ("flip", "roll")
    call.notes.zero(() if keeps else label.axes)
    axes = [
        call.notes.fresh(size, f"it stands beside what {call.place} makes") if index in gone else axis
        for index, (axis, size) in enumerate(zip(label.axes, call.shape, strict=False))
    ]
    if len(axes) != len(call.shape):
        axes = [axis for index, axis in enumerate(label.axes) if index not in gone]
    made = Label(tuple(axes))
    return made


def spatial(call: Call) -> Label:
    """The last axes are rows and columns of a picture, which stay where they are."""
    label = call.label("input" if "input" in call.values else "self")
    call.bind(label)
    count = next(number for number in (1, 2, 3) if f"{number}d" in call.name)
    first = len(label.axes) - count
    call.notes.fix(label.axes[first:], "it is a position in a picture")
    call.notes.mix(label, range(first, len(label.axes)))
    if "max" in call.name:
        call.notes.zero(label.axes, SIGN)
    return Label(
        (*label.axes[:first], *(call.notes.fresh(size, "it is a position in a picture") for size in call.shape[first:]))
    )


def created(call: Call) -> Label:
    """All values of a new tensor are the same, so that nothing stands in the way of any order."""
    label = call.notes.loose_label(call.shape)
    if call.name.removeprefix("new_").removesuffix("_like") not in ("zeros", "empty", "empty_strided"):
        call.notes.zero(label.axes)
    return label


RULES: dict[str, Rule] = {
    "pointwise": pointwise,
    **dict.fromkeys((*SAME.split(), *SUMS.split()), pointwise),
    **dict.fromkeys((*UNMARKED.split(), *UNMARKED_ONCE.split()), pointwise),
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), softmax),
    **dict.fromkeys(
        ("sum", "mean", "var", "std", "amax", "amin", "prod", "logsumexp", "linalg_vector_norm", "norm"), reduction
    ),
    **dict.fromkeys(("flip", "roll", "cumsum", "cumprod", "sort", "topk", "argmax", "argmin"), along_axis),
    **dict.fromkeys(
        (
            *(f"{kind}_pool{n}d{end}" for kind in ("max", "avg") for n in "123" for end in ("", "_with_indices")),
            *(f"{kind}adaptive_{how}_pool{n}d" for kind in ("", "_") for how in ("max", "avg") for n in "123"),
            *(
                f"upsample_{how}"
                for how in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
            ),
            *(f"_upsample_{how}" for how in ("nearest_exact1d", "nearest_exact2d", "bilinear2d_aa", "bicubic2d_aa")),
            *(f"{how}_pad{n}d" for how in ("reflection", "replication") for n in "123"),
        ),
        spatial,
    ),
    **dict.fromkeys(
        (
            f"{start}{how}{end}"
            for how in ("zeros", "ones", "full", "empty")
            for start, end in (("", ""), ("new_", ""), ("", "_like"))
        ),
        created,
    ),
}
