"""Results of `prepkit zoo`, as documents for --json and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prepkit.cli import colour
from prepkit.cli.output import with_flags
from prepkit.errors import counted
from prepkit.support.json_values import json_value
from prepkit.support.text import readable_bytes, table
from prepkit.zoo.format.appends import appends_in
from prepkit.zoo.format.counts import ARCHITECTURES_SHOWN, counts_of, num_bytes_of
from prepkit.zoo.format.split_rule import split_rule

if TYPE_CHECKING:
    from pathlib import Path

    from prepkit.cli.output import Output
    from prepkit.zoo.change.annotating import Annotation
    from prepkit.zoo.change.choosing import Removal
    from prepkit.zoo.change.cleaning import Cleaning
    from prepkit.zoo.change.rerun import Rerun
    from prepkit.zoo.change.splitting import ZooSplit
    from prepkit.zoo.change.verify import Verification
    from prepkit.zoo.format.manifest import Manifest
    from prepkit.zoo.write.written import WrittenZoo

APPENDS_SHOWN = 5


def facts(
    manifest: Manifest, sums: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the document of `prepkit zoo info`.

    sums:    sha256 of each split's ids, if they are known
    columns: type of each column of the table, if they are known
    """
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
        "split_rule": split_rule(manifest),
        **({} if sums is None else {"splits_sha256": dict(sums)}),
        **({} if columns is None else {"columns": dict(columns)}),
        "task": manifest.task,
        "teacher": None if manifest.teacher is None else manifest.teacher.architecture,
        "license": manifest.license,
        "function": None if manifest.function is None else manifest.function.to_dict(),
        "preprocessing": None if manifest.preprocessing is None else dict(vars(manifest.preprocessing)),
        "created_by": manifest.created_by,
        "appends": [dict(record) for record in appends_in(manifest.provenance)],
    }


def description(
    manifest: Manifest, sums: Mapping[str, str] | None = None, columns: Mapping[str, str] | None = None
) -> str:
    """Return the text of `prepkit zoo info`; `sums` and `columns` as for `facts`."""
    counts = counts_of(manifest)
    shards = counted(len(manifest.shards), f"{manifest.shard_format} shard")
    size = f"{readable_bytes(num_bytes_of(manifest))} in {shards}"
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest.splits.items()) or "none"
    rule = split_rule(manifest)
    rows = [
        ("teacher" if stored.class_id is None else str(stored.class_id), stored.name, counts[stored.name])
        + (stored.layout.num_parameters, stored.height)
        for stored in manifest.architectures[:ARCHITECTURES_SHOWN]
    ]
    more = len(manifest.architectures) - len(rows)
    lines = [
        f"{manifest.name}: {counted(manifest.table.rows, 'instance')}, PReps {manifest.shape} {manifest.dtype}, {size}",
        f"  splits   {splits}" + (f"; {rule}" if rule else ""),
        f"  task     {_task(manifest.task)}",
        f"  licence  {manifest.license or 'none given'}",
        *([] if manifest.function is None else [f"  function {manifest.function}"]),
        *([] if manifest.preprocessing is None else [f"  normalised {manifest.preprocessing}"]),
        *_appends(manifest),
        *(f"  sha256   {sum_} of the ids of {name}" for name, sum_ in (sums or {}).items()),
        "",
        table(rows, ("ClassId", "architecture", "instances", "parameters", "height")),
        *([f"and {counted(more, 'more architecture')}, which --json lists"] if more else []),
        *([] if columns is None else ["", table([*columns.items()], ("column", "type"))]),
    ]
    return "\n".join(lines)


def _appends(manifest: Manifest) -> list[str]:
    """Return a line for each of the last times that instances were appended."""
    records = appends_in(manifest.provenance)
    lines = [_append(record) for record in records[-APPENDS_SHOWN:]]
    before = sum(record.get("instances", 0) for record in records[:-APPENDS_SHOWN])
    return ([f"  appended {counted(before, 'instance')} before, which --json lists"] if before else []) + lines


def _append(record: Mapping[str, Any]) -> str:
    """Return how many instances were appended when, to which splits, and by which command."""
    splits = ", ".join(f"{name} {count:,}" for name, count in (record.get("splits") or {}).items()) or "no split"
    command = (record.get("provenance") or {}).get("command")
    by = "" if command is None else f", by {command}"
    return f"  appended {counted(record['instances'], 'instance')} on {record['time'][:10]} to {splits}{by}"


def verification(result: Verification) -> dict[str, Any]:
    """Return the document of `prepkit zoo verify`."""
    return {
        "zoo": result.path,
        "ok": result.ok,
        "instances": result.instances,
        "files": result.files,
        "bytes": result.bytes,
        "faults": [dict(vars(fault)) for fault in result.faults],
        "notes": list(result.notes),
        "reruns": [json_value(vars(run), not_finite=str) for run in result.reruns],
        "function": None if result.function is None else result.function.to_dict(),
    }


def verification_text(result: Verification) -> str:
    """Return the text of `prepkit zoo verify`."""
    state = colour.bad(counted(len(result.faults), "fault")) if result.faults else colour.good("whole")
    size = f"{counted(result.instances, 'instance')}, {counted(result.files, 'file')}"
    lines = [f"{result.path}: {state}; {size}, {readable_bytes(result.bytes)} read"]
    bad, remarkable = colour.bad("fault"), colour.remarkable("note")
    lines += [f"  {bad}  {fault}" for fault in result.faults]
    lines += [f"  {remarkable}   {note}" for note in result.notes]
    if result.reruns:
        agreeing = sum(run.agrees for run in result.reruns)
        number = counted(len(result.reruns), "instance")
        verb = "has" if len(result.reruns) == 1 else "have"
        lines.append(f"  rerun  {agreeing} of {number} {verb} the {result.reruns[0].measure} that is stored")
    wrong = [run for run in result.reruns if not run.agrees]
    lines += [f"  {bad}  {run.id}: {run.measure} {run.found:.4f}, stored {run.stored}{_too_low(run)}" for run in wrong]
    if result.function is not None:
        lines.append(f"  function {result.function}")
    return "\n".join(lines)


def _too_low(run: Rerun) -> str:
    is_low = run.least is not None and run.found < run.least
    return f"; prepkit measured it itself, so a run must reach {run.least:g}" if is_low else ""


def split_text(result: ZooSplit) -> str:
    """Return the text of `prepkit zoo split`."""
    rows = [(split, name, count) for split, counts in result.counts.items() for name, count in sorted(counts.items())]
    kept = f"{counted(result.groups, 'value')} of '{result.group}' kept together" if result.group else "no groups"
    before = f"; the split before it is column {result.kept}" if result.kept else ""
    return f"{table(rows, ('split', 'architecture', 'instances'))}\n\n{kept}; table {result.table}{before}"


def cleaning_document(folder: Path, result: Cleaning, dry_run: bool) -> dict[str, Any]:
    """Return the document of `prepkit zoo clean`."""
    return {
        "zoo": str(folder),
        "dry_run": dry_run,
        "removed": [dict(vars(file)) for file in result.removed],
        "others": list(result.others),
    }


def cleaning_text(folder: Path, result: Cleaning, dry_run: bool) -> str:
    """Return the text of `prepkit zoo clean`."""
    size = readable_bytes(sum(file.bytes for file in result.removed))
    verb = "would remove" if dry_run else "removed"
    lines = [f"{folder}: {verb} {counted(len(result.removed), 'file')}, {size}"]
    lines += [f"  {file.path}" for file in result.removed]
    lines += [f"  left alone: {path}; prepkit did not write it" for path in result.others]
    return "\n".join(lines)


def _task(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return "not recorded"
    text = json.dumps(task, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def print_written(written: WrittenZoo, out: Output) -> None:
    """Print the zoo that a command wrote, with what is to be said about it."""
    document = {
        "output": str(written.path),
        **facts(written.manifest),
        "notes": [with_flags(note) for note in written.notes],
        "types": {name: with_flags(text) for name, text in written.types.items()},
    }
    out.notes([f"column {name}: {text}" for name, text in written.types.items()])
    out.notes(written.notes)
    out.result(document, description(written.manifest))


def annotation_text(folder: Path, annotation: Annotation) -> str:
    """Return the text of `prepkit zoo annotate`."""
    lines = []
    if annotation.added:
        lines.append(f"added      {', '.join(annotation.added)}")
    if annotation.replaced:
        lines.append(f"replaced   values of {', '.join(annotation.replaced)}")
    if annotation.renamed:
        lines.append(f"renamed    {', '.join(f'{old} to {new}' for old, new in annotation.renamed.items())}")
    if annotation.dropped:
        lines.append(f"dropped    {', '.join(annotation.dropped)}")
    if annotation.matched:
        lines.append(f"rows found for {counted(annotation.matched, 'instance')}")
    if annotation.matched and not annotation.added and not annotation.replaced:
        lines.append("All values are as they were.")
    return "\n".join([str(folder), *(f"  {line}" for line in lines)])


def removal_text(folder: Path, removal: Removal, dry_run: bool) -> str:
    """Return the text of `prepkit zoo drop`."""
    gone = counted(removal.instances, "instance")
    shards = counted(removal.rewritten, "shard")
    if dry_run:
        return f"{folder}: {gone} would go, {removal.left:,} would stay; {shards} would be written anew"
    return f"{folder}: {gone} removed, {removal.left:,} left; {shards} written anew"
