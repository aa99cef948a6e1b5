"""What novelty found as people read it: a table with sentences, a picture, and a folder with both and the JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.auditing._controls import HELD_OUT, TRAINING, is_simple
from prepkit.errors import counted, listed
from prepkit.figures import new_figure, save_figure
from prepkit.support.files import check_folder_writable, replacing_folder, write_json
from prepkit.support.markdown import markdown_table
from prepkit.support.text import table

if TYPE_CHECKING:
    from prepkit.auditing.novelty_result import Group, Novelty

JSON, TABLE, PICTURE = "novelty.json", "novelty.md", "novelty.png"
OVERLAPS = {"classes": "wrong images in common (IoU)", "shapes": "insides in common (IoU)"}
OUTPUTS = "difference of outputs"
WEIGHTS = "distance of weights"
GENERATED_COLOUR, CONTROL_COLOUR, TRAINED_COLOUR = "#1f77b4", "#ff7f0e", "#222222"
MARKERS = "osDP*h"  # of the groups of generated networks


def titles_of(found: Novelty) -> dict[str, str]:
    """Return the title of each measure that some network has."""
    titles = {
        "distance": WEIGHTS,
        "difference": OUTPUTS,
        "agreement": "same class",
        "overlap": OVERLAPS.get(found.kind, ""),
        "accuracy": "accuracy",
    }
    return {key: title for key, title in titles.items() if any(group.values(key) for group in found.groups.values())}


def rows_of(found: Novelty) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the header and the rows of the table: means of each group, and how many are copies."""
    titles = titles_of(found)
    rows: list[tuple[Any, ...]] = [
        (name, len(group.rows), *(_cell(group, key) for key in titles), len(group.copies))
        for name, group in found.groups.items()
    ]
    if found.best:
        best = (f"{found.best_accuracy:.1%}" if key == "accuracy" else "-" for key in titles)
        rows.append(("best training network", 1, *best, "-"))
    return ("networks", "number", *titles.values(), "copies"), rows


def _cell(group: Group, key: str) -> str:
    value = group.mean(key)
    if not math.isfinite(value):
        return "-"
    return f"{value:.1%}" if key in ("accuracy", "agreement") else f"{value:.3f}"


def sentences_of(found: Novelty) -> Iterator[str]:
    """Yield what the numbers of each group of generated networks mean."""
    for name, group in found.generated.items():
        copies = f" ({listed(group.copies, 3)})" if group.copies else ""
        parts = [
            f"{name}: {len(group.copies):,} of {len(group.rows):,} networks "
            f"{'is a copy' if len(group.copies) == 1 else 'are copies'} of a training network{copies}"
        ]
        if group.values("overlap"):
            held_out = found.groups[HELD_OUT].mean("overlap") if HELD_OUT in found.groups else math.nan
            beside = f" (networks of another split: {held_out:.2f})" if math.isfinite(held_out) else ""
            parts.append(f"{OVERLAPS[found.kind]} with the nearest are {group.mean('overlap'):.2f}{beside}")
        if found.best:
            parts += _beside_controls(found, name)
        yield "; ".join(parts) + "."


def _beside_controls(found: Novelty, name: str) -> Iterator[str]:
    beside = found.compared(name)
    best = f"{_points(beside.to_best)} that of the best training network of the same architecture"
    if math.isfinite(beside.gain):
        controls = listed(dict.fromkeys(beside.controls.values()), 3)
        new = f"{_points(beside.gain)} that of the best control whose wrong images are at least as new ({controls})"
        yield f"accuracy is {new}, and {best}"
    else:
        yield f"accuracy is {best}; no control has wrong images as new"


def _points(difference: float) -> str:
    if abs(difference) < 5e-4:
        return "equal to"
    return f"{100 * abs(difference):.1f} points {'above' if difference > 0 else 'below'}"


EXPLANATION = (
    "Each row gives means over networks, each compared with the training network that is nearest by that measure. "
    "Distance of weights is a share of the norm of the training network, after hidden units were brought into its "
    "order; difference of outputs is a share of their spread over the inputs. Training networks are compared with "
    "those of other runs. Noise moves each tensor by that share of its norm."
)


def text_of(found: Novelty) -> str:
    """Return the table, with what it is about before it and what it means after it."""
    header, rows = rows_of(found)
    return "\n".join([*_lead(found), "", table(rows, header), "", *sentences_of(found), *_notes(found)])


def _lead(found: Novelty) -> list[str]:
    return [
        f"compared with {counted(found.networks, 'training network')} of {found.training}, on {found.inputs}; seed "
        f"{found.seed}"
    ]


def _notes(found: Novelty) -> list[str]:
    return [f"Note: {note}" for note in found.notes]


# The picture ------------------------------------------------------------------------------------------------------


def figure_of(found: Novelty) -> Any:
    """Draw accuracy over how near the nearest training network is, in weights and in outputs; a dot is a network.

    raises PlotsMissing without matplotlib
    """
    titles = titles_of(found)
    height = "accuracy" if "accuracy" in titles else "difference"
    across = [key for key in ("distance", "overlap", "difference") if key in titles and key != height][:2]
    figure = new_figure(1.8 + 3.8 * max(1, len(across)), 4.6)
    for axes, key in zip(figure.subplots(1, max(1, len(across)), squeeze=False, sharey=True)[0], across, strict=False):
        markers = cycle(MARKERS)
        for name, group in found.groups.items():
            _draw(axes, name, group, key, height, markers)
        if height == "accuracy":
            axes.axhline(
                100 * found.best_accuracy, color="0.4", linestyle="--", linewidth=1, label="best training network"
            )
        axes.set_xlabel(f"{titles[key]}, nearest training network", parse_math=False)
        axes.grid(color="0.92")
    first = figure.axes[0]
    first.set_ylabel("accuracy, %" if height == "accuracy" else titles.get(height, height))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _draw(axes: Any, name: str, group: Group, key: str, height: str, markers: Iterator[str]) -> None:
    rows = [row for row in group.rows if key in row and height in row]
    scale = 100 if height == "accuracy" else 1
    places = [row[key] for row in rows], [scale * row[height] for row in rows]
    if group.is_generated:
        axes.scatter(*places, s=24, marker=next(markers), color=GENERATED_COLOUR, alpha=0.75, label=name, zorder=3)
    elif is_simple(name):
        noise = name.startswith("noise")
        label = _once(axes, "with noise") if noise else name
        axes.scatter(*places, s=20, marker="+" if noise else "x", color=CONTROL_COLOUR, alpha=0.6, label=label)
    else:
        axes.scatter(
            *places, s=16, marker="^" if name == TRAINING else "v", color=TRAINED_COLOUR, alpha=0.6, label=name
        )


def _once(axes: Any, label: str) -> str | None:
    """Return a label for the first of several drawings that share it."""
    return None if label in axes.get_legend_handles_labels()[1] else label


# The folder -------------------------------------------------------------------------------------------------------


def check_folder(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise OutputError before any work is done for a folder that could not be written."""
    check_folder_writable(Path(folder), mark=JSON, overwrite=overwrite)


def write_folder(found: Novelty, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write novelty.json, novelty.md and novelty.png into a folder, all of them or none.

    raises OutputError if another folder is there, or it cannot be written; PlotsMissing without matplotlib
    """
    figure = figure_of(found)
    header, rows = rows_of(found)
    lines = [*_lead(found), "", *markdown_table(header, rows), "", EXPLANATION, ""]
    lines += [f"- {sentence}" for sentence in (*sentences_of(found), *_notes(found))]
    with replacing_folder(Path(folder), mark=JSON, overwrite=overwrite) as temporary:
        write_json(temporary / JSON, found.to_dict())
        (temporary / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        save_figure(figure, temporary / PICTURE)
