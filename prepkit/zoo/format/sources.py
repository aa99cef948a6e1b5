"""Columns that `zoo create` fills with what it knows of each model's file, beside the user's own.

The last two are there only if they say something of some model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prepkit.errors import ZooError
from prepkit.support.json_values import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = "source"  # address of a model on the Hub, with its commit
SOURCE_SHA256 = "source_sha256"  # sha256 of the checkpoint's file
PREFIX = "source_prefix"  # text before every name in the checkpoint, such as `module.`
VERSIONS = "source_versions"  # versions of modules that the checkpoint notes, but for those that are 1, as JSON


def names_columns(prefix: str, versions: Mapping[str, int]) -> dict[str, str]:
    """Return the columns that say how a checkpoint named its tensors and which versions its modules had."""
    columns = {PREFIX: prefix} if prefix else {}
    return {**columns, VERSIONS: canonical_json(dict(versions))} if versions else columns


def names_at(table: pa.Table, number: int, place: str) -> tuple[str, dict[str, int]]:
    """Return prefix and versions as a row of the table has them, or nothing of both.

    raises ZooError for values that `zoo create` does not write
    """
    prefix, text = (table[name][number].as_py() if name in table.column_names else None for name in (PREFIX, VERSIONS))
    try:
        versions = {} if text is None else json.loads(text)
        is_sound = all(type(version) is int for version in versions.values())
    except (ValueError, TypeError, AttributeError):
        is_sound = False
    if not is_sound or not isinstance(prefix, str | None):
        raise ZooError(
            f"{place}: the columns {PREFIX} and {VERSIONS} are those of `prepkit zoo create`, a text and versions of "
            "modules in JSON; found other values. Make the zoo again with other names for these columns."
        )
    return prefix or "", versions
