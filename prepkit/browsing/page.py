"""The page of a zoo: one HTML document that needs no other file and loads nothing.

page = page_of(open_zoo("my-zoo"))
save_page(page, "my-zoo.html")
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.auditing.audit import audit
from prepkit.auditing.findings import KINDS, Audit
from prepkit.browsing._gathering import (
    FULL,
    NOT_FINITE,
    STATISTICS,
    THUMBNAIL_SHAPE,
    Gathered,
    OfArchitecture,
    gather_weights,
)
from prepkit.errors import ZooError, counted
from prepkit.support.files import replacing
from prepkit.support.json_values import json_value
from prepkit.support.progress import Progress
from prepkit.support.text import Brief, readable_bytes
from prepkit.version import __version__
from prepkit.zoo.format.counts import num_bytes_of

if TYPE_CHECKING:
    import pyarrow as pa
    from jinja2 import Template

    from prepkit.zoo.read.zoo import Zoo

LIMIT = 20_000  # instances on a page, which a browser holds in memory
GROUPS = 200  # of networks that belong together, for each finding of the audit
LONGEST_TEXT = 2_000  # characters of a value of the table
HIDDEN = ("shard", "row")  # columns that tell where a zoo keeps an instance
BUILT = Path(__file__).parent / "built"  # what `make page` puts together: our script, Tabulator and ECharts


@dataclass(frozen=True, repr=False)
class Page(Brief):
    """A page that is ready to be written or served.

    html:      the document
    zoo:       the zoo's name
    instances: number of instances on it
    of:        number of instances of the zoo or view
    audit:     what the audit found; None where none was made
    """

    html: str
    zoo: str
    instances: int
    of: int
    audit: Audit | None


def check_built() -> None:
    """Raise ZooError where this copy of prepkit lacks the page's script, as a clone does before `make page`."""
    missing = [name for name in ("page.js", "page.css") if not (BUILT / name).is_file()]
    if missing:
        raise ZooError(
            "this copy of prepkit was installed from source, and the libraries of its page are not built: "
            f"{missing[0]} is missing. Run `make page` in the clone, which needs npm, or install a wheel of prepkit."
        )


def page_of(zoo: Zoo, *, limit: int = LIMIT, with_audit: bool = True, progress: Progress | None = None) -> Page:
    """Make the page of a zoo or view.

    limit:      most instances on the page; of more, it shows this many, evenly spaced in the zoo's order
    with_audit: whether the zoo is audited, which reads it twice more; only where all its instances are shown
    progress:   hears of the networks that were read
    raises ZooError without instances, or where the page's script is not built; ZooError, HubError if the zoo cannot be
           read
    """
    check_built()
    if not len(zoo):
        raise ZooError(f"'{zoo.name}' has no instances to show; choose others with where='...'.")
    shown = zoo if len(zoo) <= limit else zoo.select(np.linspace(0, len(zoo) - 1, limit).round().astype(np.int64))
    hear = progress or Progress()
    audited = with_audit and len(shown) == len(zoo)
    hear.begin(len(shown) * (3 if audited else 1))
    gathered = gather_weights(shown, hear.advance)
    found = audit(zoo, progress=_Part(hear)) if audited else None
    data = {
        "name": zoo.name,
        "shown": len(shown),
        "of": len(zoo),
        "facts": _facts(zoo),
        "columns": _columns(shown.table),
        "architectures": [_architecture(own) for own in gathered.architectures],
        "thumbnail": {"shape": THUMBNAIL_SHAPE, "full": FULL, "not_finite": NOT_FINITE},
        "statistics": list(STATISTICS),
        "map": _map(gathered),
        "audit": None if found is None else _audit(found),
    }
    packed = base64.b64encode(gzip.compress(json.dumps(data, allow_nan=False).encode(), 6, mtime=0)).decode()
    html = _template().render(
        name=zoo.name, data=packed, script=_built("page.js"), style=_built("page.css"), version=__version__
    )
    return Page(html, zoo.name, len(shown), len(zoo), found)


def save_page(page: Page, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the page, whole or not at all.

    raises OutputError if the file exists and `overwrite` is false, or cannot be written
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_text(page.html, encoding="utf-8")


class _Part(Progress):
    """Passes on how far a part is, but not how much it has to do, which the whole has told already."""

    def __init__(self, whole: Progress) -> None:
        self._whole = whole

    def advance(self, amount: float, text: str | None = None) -> None:
        self._whole.advance(amount, text)


def _facts(zoo: Zoo) -> list[tuple[str, str]]:
    manifest = zoo.manifest
    named = [
        ("instances", f"{manifest.table.rows:,}"),
        ("architectures", f"{len(manifest.architectures):,}"),
        ("PReps", f"{manifest.shape} {manifest.dtype}"),
        ("size", readable_bytes(num_bytes_of(manifest))),
        ("splits", ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items()) or "none"),
        ("task", "" if manifest.task is None else str(manifest.task.get("name", ""))),
        ("licence", manifest.license or "none given"),
        ("sha256", manifest.to_dict()["sha256"]),
    ]
    return [(name, text) for name, text in named if text]


def _columns(table: pa.Table) -> list[dict[str, Any]]:
    """Return the columns with their values: numbers, texts or booleans; others become JSON, cut where it is long."""
    import pyarrow.types as kinds

    columns = []
    for name in (name for name in table.column_names if name not in HIDDEN):
        column = table[name]
        kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
        values = column.to_pylist()
        if kinds.is_boolean(kind):
            shape = "boolean"
        elif kinds.is_integer(kind) or kinds.is_floating(kind):
            shape = "number"
            values = [value if value is None else _number(value) for value in values]
        else:
            shape = "text"
            values = [value if value is None else _text(value) for value in values]
        columns.append({"name": name, "kind": shape, "values": values})
    return columns


def _number(value: float) -> float | str:
    """Return a number, or the name of one that JSON does not have."""
    found = json_value(value, not_finite=str)
    return found if isinstance(found, str) or abs(found) < 2**53 else str(value) if isinstance(value, int) else found


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(json_value(value, not_finite=str), ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def _architecture(own: OfArchitecture) -> dict[str, Any]:
    statistics = own.statistics_nTS
    return {
        "name": own.name,
        "parameters": own.layout.num_parameters,
        "tensors": [[slot.name, list(slot.shape)] for slot in own.layout if slot.size],
        "rows": own.rows_n.tolist(),
        "limit": own.limit,
        "thumbnails": base64.b64encode(own.thumbnails_nC.tobytes()).decode(),
        "statistics": None if statistics is None else base64.b64encode(statistics.astype("<f4").tobytes()).decode(),
    }


def _map(gathered: Gathered) -> dict[str, Any] | None:
    found = gathered.map
    if found is None:
        return None
    places = np.vectorize(lambda value: float(f"{value:.5g}"))(found.places_N2)
    return {"places": json_value(places.T.tolist()), "explained": found.explained, "exact": found.exact}


def _audit(found: Audit) -> dict[str, Any]:
    findings = [
        {"kind": one.kind, "sentence": one.sentence, "count": one.count, "more": max(0, len(one.groups) - GROUPS)}
        | {"groups": [list(ids) for ids in one.groups[:GROUPS]]}
        for one in found.findings
    ]
    checks = {"checked": list(found.checked), "unchecked": list(found.unchecked)}
    return {"kinds": dict(KINDS), "counts": found.counts, "findings": findings, **checks}


def summary(page: Page) -> Mapping[str, Any]:
    """Return what there is to say about a page, as JSON-able data."""
    counts = None if page.audit is None else page.audit.counts
    return {"zoo": page.zoo, "instances": page.instances, "of": page.of, "bytes": len(page.html), "audit": counts}


def summary_text(page: Page) -> str:
    """Return the same for people."""
    part = counted(page.instances, "instance")
    shown = part if page.instances == page.of else f"{part} of {page.of:,}, evenly spaced"
    lines = [f"{page.zoo}: {shown}; {readable_bytes(len(page.html))}"]
    if page.audit is None:
        lines.append("  audit  none was made")
    else:
        found = ", ".join(f"{kind} {count:,}" for kind, count in page.audit.counts.items() if count)
        lines.append(f"  audit  {found or 'nothing was found'}")
    return "\n".join(lines)


@cache
def _built(name: str) -> str:
    """Return a script or style, in which the bundler has escaped what would end its element in HTML."""
    return (BUILT / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja")
