"""The results of a bench as people read them: a table, a picture, and a folder with both and the JSON document."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.benching.ceiling import Ceiling
from prepkit.errors import counted
from prepkit.figures import new_figure, save_figure
from prepkit.support.files import check_folder_writable, replacing_folder, write_json
from prepkit.support.markdown import markdown_table
from prepkit.support.text import readable_bytes, table

if TYPE_CHECKING:
    from prepkit.benching.run import Bench, Row

JSON, TABLE, PICTURE = "bench.json", "bench.md", "bench.png"
TITLES = {
    "r2": "R2",
    "tau": "tau",
    "tau_over_ceiling": "tau / ceiling",
    "mean_error": "mean error",
    "accuracy": "accuracy",
}
WITH_INTERVAL = ("r2", "tau", "accuracy")
DRAWN = {"number": ("r2", "tau"), "class": ("accuracy",)}
SHOWN = {"number": ("r2", "tau", "tau_over_ceiling", "mean_error"), "class": ("accuracy",)}


def rows_of(result: Bench) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table; published numbers stand last."""
    keys = SHOWN[result.question.kind]
    rows = [(name, *(_measure(row, key) for key in keys), *_cost(row)) for name, row in result.rows.items()]
    published = [
        (f"{one.method} [published]", *(f"{one.value:.3f}" if key == one.metric else "-" for key in keys), "-", "-")
        for one in result.published
    ]
    return ("learner", *(TITLES[key] for key in keys), "seconds", "memory"), [*rows, *published]


def text_of(result: Bench) -> str:
    """Return the table, with what it is about before it, and what kept learners from running after it."""
    header, rows = rows_of(result)
    return "\n".join([*_lead(result), "", table(rows, header), *_tail(result)])


def _lead(result: Bench) -> list[str]:
    zoo, split = result.about["zoo"], result.about["split"]
    sizes = ", ".join(f"{split[name]['instances']:,} {name}" for name in ("train", "validation", "test"))
    rule = f", split {split['rule']}" if split["rule"] else ""
    classes = f", {counted(len(result.question.classes), 'class', 'classes')}" if result.question.classes else ""
    lines = [f"{zoo['name']}: {result.question.name}{classes} from weights; {sizes}{rule}; seed {result.about['seed']}"]
    if result.ceiling is not None:
        lines.append(f"tau's ceiling is {result.ceiling.tau:.3f}, {_bound(result.ceiling)}")
    return lines


def _bound(ceiling: Ceiling) -> str:
    if ceiling.bound == "ties":
        return "as no values are equal" if ceiling.tau == 1 else "as equal values cannot be ranked"
    halves = "-" if ceiling.halves is None else f"{ceiling.halves:.3f}"
    return f"from the luck of {counted(ceiling.samples or 0, 'sample')}, two halves of which agree with tau {halves}"


def _tail(result: Bench) -> list[str]:
    lines = ["", "Intervals hold 95 % of 1,000 bootstrap draws of the test instances, whole runs together."]
    lines += [f"{name} was left out: {row.left_out}" for name, row in result.rows.items() if row.left_out]
    lines += [f"{name} failed: {row.error}" for name, row in result.rows.items() if row.error]
    lines += [f"Published: {source}." for source in dict.fromkeys(one.source for one in result.published)]
    return lines


def _measure(row: Row, key: str) -> str:
    if key not in row.measures:
        return "left out" if row.left_out else "failed" if row.error else "-"
    text = _number(row.measures[key])
    low, high = row.measures["interval"][key]
    return f"{text} [{_number(low)}, {_number(high)}]" if key in WITH_INTERVAL and np.isfinite(low) else text


def _cost(row: Row) -> tuple[str, str]:
    if not row.measures:
        return "-", "-"
    return f"{row.seconds:.1f}", "-" if row.peak_bytes is None else readable_bytes(row.peak_bytes)


def _number(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


# The picture ------------------------------------------------------------------------------------------------------


def figure_of(result: Bench) -> Any:
    """Draw the measures with their intervals, one panel a measure; published numbers are hollow.

    raises PlotsMissing without matplotlib
    """
    kind = result.question.kind
    measured = {name: row.measures for name, row in result.rows.items() if row.measures}
    labels = [*measured, *(one.method for one in result.published)]
    figure = new_figure(3.2 + 3.2 * len(DRAWN[kind]), 1.2 + 0.32 * len(labels))
    panels: Sequence[Any] = figure.subplots(1, len(DRAWN[kind]), squeeze=False, sharey=True)[0]
    for axes, key in zip(panels, DRAWN[kind], strict=True):
        for place, measures in enumerate(measured.values()):
            _draw(axes, place, measures, key)
        for place, one in enumerate(result.published, start=len(measured)):
            if one.metric == key:
                axes.plot(one.value, place, "o", mfc="none", color="0.3")
        if key == "tau" and result.ceiling is not None:
            axes.axvline(result.ceiling.tau, color="0.5", linestyle="--", linewidth=1)
        axes.set_xlabel(f"{TITLES[key]} of {result.question.name}", parse_math=False)
        # A guess that is far out would make all others look the same.
        low = min((m["interval"][key][0] for m in measured.values() if np.isfinite(m["interval"][key][0])), default=0)
        axes.set_xlim(max(-1.0, min(low - 0.05, 0.0)), 1.05)
        axes.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"{result.about['zoo']['name']}, {len(result.question.truth):,} test instances", parse_math=False)
    return figure


def _draw(axes: Any, place: int, measures: Mapping[str, Any], key: str) -> None:
    value, (low, high) = measures[key], measures["interval"][key]
    if np.isfinite(low):
        axes.plot([low, high], [place, place], color="#1f77b4", linewidth=2, alpha=0.5)
    if np.isfinite(value):
        axes.plot(value, place, "o", color="#1f77b4")


# The folder -------------------------------------------------------------------------------------------------------


def check_folder(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise OutputError before any work is done for a folder that could not be written."""
    check_folder_writable(Path(folder), mark=JSON, overwrite=overwrite)


def write_folder(result: Bench, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write bench.json, bench.md and bench.png into a folder, all of them or none.

    raises OutputError if another folder is there, or it cannot be written; PlotsMissing without matplotlib
    """
    figure = figure_of(result)
    header, rows = rows_of(result)
    lines = [
        *_lead(result),
        "",
        *markdown_table(header, rows),
        *_tail(result),
        *(f"Note: {note}" for note in result.notes),
    ]
    with replacing_folder(Path(folder), mark=JSON, overwrite=overwrite) as temporary:
        write_json(temporary / JSON, result.to_dict())
        (temporary / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        save_figure(figure, temporary / PICTURE)
