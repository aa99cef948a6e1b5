"""audit: copies, leaks between splits, broken networks, and what the table and the manifest do not tell.

found = audit("my-zoo")
found.counts["duplicates"], found.has(["leaks", "nan"])
page_of(found)                       # see prepkit.auditing.report
"""

from __future__ import annotations

import math
import os

from prepkit.api import open_zoo
from prepkit.auditing._broken import findings_of_outputs, findings_of_values
from prepkit.auditing._columns import findings_of_columns
from prepkit.auditing._copies import copies_against, copies_within
from prepkit.auditing._lineage import findings_of_lineage, known_of
from prepkit.auditing._outputs import run
from prepkit.auditing._splits import (
    copies_in_other_zoo,
    copies_in_several_splits,
    equal_and_near,
    runs_in_several_splits,
    seeds_in_several_splits,
    split_note,
)
from prepkit.auditing._values import measure
from prepkit.auditing.findings import KINDS, Audit
from prepkit.errors import ZooError
from prepkit.support.progress import Progress
from prepkit.zoo.read.zoo import Zoo

TOLERANCE = 1e-3  # distance of nearly equal weights, as a share of their norm


def audit(
    zoo: Zoo | str | os.PathLike[str],
    against: Zoo | str | os.PathLike[str] | None = None,
    *,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Audit:
    """Look for what is wrong with a zoo as a data set.

    Networks are read in small batches; the memory grows by about 1 KB a network, whatever its size.

    zoo, against: an open zoo or a view of one, a local folder, or another address that open_zoo takes, such as
                  hf://user/zoo, whose shards are compared with their sha256. Networks of `zoo` that also stand in
                  `against` are leaks.
    tolerance:    largest distance of nearly equal weights, as a share of the larger norm of all weights, below 1
    progress:     hears of the networks that were read
    returns findings, and sentences on what was checked and what could not be. Nothing is counted that was not compared
            value by value. Networks of other signs and scales of hidden units are recognised among those that were run.
    raises ZooError, HubError if a zoo cannot be read or is damaged

    >>> audit("my-zoo").counts["duplicates"]
    0
    """
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise ZooError(f"tolerance is {tolerance:g}; it is a share of the norm, from 0 to below 1.")
    own, other = _opened(zoo), None if against is None else _opened(against)
    hear = progress or Progress()
    hear.begin(2 * len(own) + (0 if other is None else 2 * len(other)))
    measured = measure(own, hear.advance)
    outputs = run(own, measured, hear.advance)
    copies = copies_within(own, measured, outputs, tolerance)
    findings = [
        *copies_in_several_splits(own, copies),
        *runs_in_several_splits(own),
        *seeds_in_several_splits(own),
        *equal_and_near(own, copies),
        *findings_of_values(own, measured),
        *findings_of_outputs(own, outputs),
        *findings_of_columns(own, copies.equal),
        *findings_of_lineage(own),
    ]
    left = [*copies.left, *outputs.left, *filter(None, [split_note(own)])]
    if other is not None:
        theirs = measure(other, hear.advance)
        answers = outputs, run(other, theirs, hear.advance, like=own)
        found = copies_against(own, other, (measured, theirs), answers, tolerance)
        findings += copies_in_other_zoo(own, other, found.near)
        left += found.left
    findings.sort(key=lambda found: list(KINDS).index(found.kind))
    return Audit(
        zoo=own.name,
        sha256=own.manifest.to_dict()["sha256"],
        instances=len(own),
        against=None if other is None else other.name,
        tolerance=tolerance,
        findings=tuple(findings),
        checked=(*copies.checked, *outputs.checked, *known_of(own)),
        unchecked=tuple(left),
    )


def _opened(zoo: Zoo | str | os.PathLike[str]) -> Zoo:
    return zoo if isinstance(zoo, Zoo) else open_zoo(zoo, verify=True)
