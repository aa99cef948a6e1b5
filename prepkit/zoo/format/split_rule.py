"""split_rule: a word for how a zoo's splits were made, out of its provenance, also after it was cut, merged or copied.

The splits of an import are called as they were asked for, `paper` or `strict`. Which instances a split holds, its
sha256 tells (`prepkit.zoo.format.ids`); two zoos of the same rule may hold different parts of one split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prepkit.errors import counted
from prepkit.zoo.format.appends import before_appends
from prepkit.zoo.format.drawn_split import drawn_in
from prepkit.zoo.format.manifest import Manifest

FILES = ("split_file", "order")  # options of importers: the file that a published split was read from
MAX_DEPTH = 20  # of zoos that were cut from or merged of others


def split_rule(manifest: Manifest) -> str | None:
    """Return how a zoo's splits were made; None if it has none or nothing tells it.

    >>> split_rule(zoo.manifest)
    'paper (mnist_splits.json, sha256 1f0c5a3e9b77)'
    """
    return _rule(manifest.provenance, MAX_DEPTH) if manifest.splits else None


def _rule(provenance: Any, depth: int) -> str | None:
    if not isinstance(provenance, Mapping) or not depth:
        return None
    before, joined = before_appends(provenance)
    rule = _first_rule(before, depth)
    if rule is None or not joined:
        return rule
    return f"{rule}, and {counted(joined, 'instance')} appended with a split"


def _first_rule(provenance: Mapping[str, Any], depth: int) -> str | None:
    drawn = drawn_in(provenance)
    if drawn is not None:
        return f"drawn with seed {drawn['seed']}"
    options = provenance.get("options")
    options = options if isinstance(options, Mapping) else {}
    name = options.get("splits")
    if isinstance(name, str):
        return name + "".join(_file(options.get(key)) for key in FILES)
    cut, merged = provenance.get("cut"), provenance.get("merged")
    if isinstance(cut, Mapping):
        rule = _rule(cut.get("provenance"), depth - 1)
        return None if rule is None else f"part of {rule}"
    rules = [_rule(zoo.get("provenance"), depth - 1) for zoo in merged or () if isinstance(zoo, Mapping)]
    different = list(dict.fromkeys(rule or "unknown" for rule in rules))
    return None if not any(rules) else different[0] if len(different) == 1 else f"merged of {' and '.join(different)}"


def _file(record: Any) -> str:
    if not isinstance(record, Mapping):
        return ""
    return f" ({record.get('name')}, sha256 {str(record.get('sha256'))[:12]})"
