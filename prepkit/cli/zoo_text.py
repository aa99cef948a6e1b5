"""What `prepkit zoo` prints: facts for --json, and the same for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prepkit.errors import counted
from prepkit.text import readable_bytes, table
from prepkit.zoo.format.counts import counts_of, num_bytes_of

if TYPE_CHECKING:
    from prepkit.zoo.change.splitting import ZooSplit
    from prepkit.zoo.change.verify import Verification
    from prepkit.zoo.format.manifest import Manifest


def facts(manifest: Manifest) -> dict[str, Any]:
    """What `info` tells, JSON-able."""
    counts = counts_of(manifest)
    return {
        "name": manifest.name,
        "instances": manifest.table.rows,
        "width": manifest.width,
        "height": manifest.height,
        "dtype": manifest.dtype,
        "shard_format": manifest.shard_format,
        "shards": len(manifest.shards),
        "bytes": num_bytes_of(manifest),
        "architectures": [
            {
                "class_id": stored.class_id,
                "name": stored.name,
                "instances": counts[stored.name],
                "num_parameters": stored.layout.num_parameters,
                "height": stored.height,
                "input_shape": None if stored.input_shape is None else list(stored.input_shape),
            }
            for stored in manifest.architectures
        ],
        "splits": dict(manifest.splits),
        "task": manifest.task,
        "teacher": None if manifest.teacher is None else manifest.teacher.architecture,
        "license": manifest.license,
        "created_by": manifest.created_by,
    }


def description(manifest: Manifest) -> str:
    """What `info` tells, as text."""
    counts = counts_of(manifest)
    shards = counted(len(manifest.shards), f"{manifest.shard_format} shard")
    size = f"{readable_bytes(num_bytes_of(manifest))} in {shards}"
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items()) or "none"
    rows = [
        ("teacher" if stored.class_id is None else str(stored.class_id), stored.name, counts[stored.name])
        + (stored.layout.num_parameters, stored.height)
        for stored in manifest.architectures
    ]
    lines = [
        f"{manifest.name}: {counted(manifest.table.rows, 'instance')}, PReps {manifest.shape} {manifest.dtype}, {size}",
        f"  splits   {splits}",
        f"  task     {_task(manifest.task)}",
        f"  licence  {manifest.license or 'none given'}",
        "",
        table(rows, ("ClassId", "architecture", "instances", "parameters", "height")),
    ]
    return "\n".join(lines)


def verification(found: Verification) -> dict[str, Any]:
    """What `verify` found, JSON-able."""
    return {
        "zoo": found.path,
        "ok": found.ok,
        "instances": found.instances,
        "files": found.files,
        "bytes": found.bytes,
        "faults": [dict(vars(fault)) for fault in found.faults],
        "notes": list(found.notes),
        "reruns": [without_nan(vars(run)) for run in found.reruns],
    }


def verification_text(found: Verification) -> str:
    """What `verify` found, as text."""
    state = counted(len(found.faults), "fault") if found.faults else "whole"
    read = f"{counted(found.instances, 'instance')}, {counted(found.files, 'file')}, {readable_bytes(found.bytes)} read"
    lines = [f"{found.path}: {state}; {read}"]
    lines += [f"  fault  {fault}" for fault in found.faults]
    lines += [f"  note   {note}" for note in found.notes]
    if found.reruns:
        agreeing = sum(run.agrees for run in found.reruns)
        lines.append(
            f"  rerun  {agreeing} of {counted(len(found.reruns), 'instance')} have the accuracy that is stored"
        )
    lines += [
        f"  fault  {run.id}: accuracy {run.found:.4f}, stored {run.stored}" for run in found.reruns if not run.agrees
    ]
    return "\n".join(lines)


def split_text(found: ZooSplit) -> str:
    """How a zoo was split, as text."""
    rows = [(split, name, count) for split, counts in found.counts.items() for name, count in sorted(counts.items())]
    kept = f"{counted(found.groups, 'value')} of '{found.group}' kept together" if found.group else "no groups"
    return f"{table(rows, ('split', 'architecture', 'instances'))}\n\n{kept}; table {found.table}"


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose NaN and infinities are text: JSON has none."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def _task(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return "not recorded"
    text = json.dumps(task, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
