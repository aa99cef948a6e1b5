"""Findings on networks that are broken: NaN, weights or outputs that are all the same, hidden units that are dead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prepkit.auditing._outputs import Outputs
from prepkit.auditing._values import Measured
from prepkit.auditing.findings import Finding
from prepkit.errors import counted

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

SHOWN = 5


def findings_of_values(zoo: Zoo, measured: Measured) -> Iterator[Finding]:
    """Yield what the weights alone tell."""
    if measured.not_finite:
        values = counted(sum(measured.not_finite.values()), "value")
        yield _finding(zoo, "nan", measured.not_finite, "hold", f"NaN or infinity, in {values}")
    if measured.one_value:
        yield _finding(zoo, "constant", measured.one_value, "have", "one and the same value in all weights")
    alike = set(measured.one_value)
    zeros = {row: names for row, names in measured.zeros.items() if row not in alike}
    if zeros:
        tensors = sorted({name for names in zeros.values() for name in names})
        more = f" and {len(tensors) - SHOWN:,} more" if len(tensors) > SHOWN else ""
        yield _finding(
            zoo, "zeros", zeros, "have", f"only 0 in a whole weight tensor: {', '.join(tensors[:SHOWN])}{more}"
        )


def findings_of_outputs(zoo: Zoo, outputs: Outputs) -> Iterator[Finding]:
    """Yield what running the networks told."""
    if outputs.not_finite:
        yield _finding(zoo, "nan", outputs.not_finite, "have", "outputs that are NaN or infinite, of finite weights")
    if outputs.constant:
        yield _finding(zoo, "constant", outputs.constant, "have", "the same outputs for all inputs that were tried")
    if outputs.dead:
        worst = max(dead / units for dead, units in outputs.dead.values())
        units = sum(dead for dead, _ in outputs.dead.values())
        what = f"hidden units that are 0 for all images tried: {counted(units, 'unit')}, in a network at most "
        yield _finding(zoo, "dead", outputs.dead, "have", f"{what}{worst:.0%} of them")


def _finding(zoo: Zoo, kind: str, rows: Iterable[int], verb: str, what: str) -> Finding:
    """Return a finding on some networks. verb: `have` or `hold`."""
    ids = zoo.table["id"].to_pylist()
    groups = tuple((ids[row],) for row in sorted(rows))
    if len(groups) == 1:
        verb = "has" if verb == "have" else f"{verb}s"
    return Finding(kind, f"{counted(len(groups), 'network')} {verb} {what}.", len(groups), groups)
