"""The symmetries of a network as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prepkit.errors import counted
from prepkit.support.text import table

if TYPE_CHECKING:
    from prepkit.symmetry.spec import Scaling, Symmetries


def symmetry_text(name: str, found: Symmetries) -> str:
    """Return what `prepkit arch symmetries` prints."""
    movable = len(found.movable)
    parts = [
        f"{name}: {counted(movable, 'group') if movable else 'no group'} of hidden units may change places.\n"
        f"Under random changes, the outputs differ by {found.proof:.1e} of the largest one at most."
    ]
    if found.groups:
        groups = [(one.name, one.size, ", ".join(one.over) or "-", one.reason or "") for one in found.groups]
        if not any(reason for *_, reason in groups):
            groups = [row[:3] for row in groups]  # type: ignore[misc]
        header = ("group", "units", "in another order at each of", "stays, as")
        parts.append(table(groups, header[: len(groups[0])]))
    parts.append(table(_axes(found), ("tensor", "shape", "along its axes")))
    if found.scalings:
        rows = [(one.kind, one.group, _effect(one)) for one in found.scalings]
        parts.append(table(rows, ("kind", "group", "what the values of each unit are multiplied by")))
    if found.fixtures:
        rows_of_fixed = [(f"{one.tensor}[{one.axis}]", one.size, one.reason) for one in found.fixtures]
        parts.append(table(rows_of_fixed, ("stays", "units", "because")))
    return "\n\n".join(parts)


def _axes(found: Symmetries) -> list[tuple[str, str, str]]:
    from prepkit.symmetry.spec import term_text

    shapes = {slot.name: slot.shape for slot in found.layout}
    aliases = dict(found.layout.ties)
    return [
        (name, "x".join(map(str, shapes[aliases.get(name, name)])) or "scalar", ", ".join(map(term_text, terms)))
        for name, terms in found.axes.items()
    ]


def _effect(scaling: Scaling) -> str:
    """Return `a.weight[0] * s, b.weight[1] / s`."""
    number = "(-1)^k" if scaling.kind == "phase" else "-1" if scaling.kind == "sign" else "s"
    parts = [f"{name} + {step:.4g} k" for name, step in scaling.shifts.items()]
    for (name, axis), power in scaling.powers.items():
        times = "" if scaling.kind != "scale" or abs(power) == 1 else f"^{abs(power)}"
        sign = "/" if power < 0 else "*"
        parts.append(f"{name}[{axis}] {sign} {number}{times}")
    return ", ".join(parts)
