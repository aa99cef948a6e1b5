"""PReps as pictures, as in the paper's Suppl. VII. matplotlib is the extra `[plots]` and imported when drawing."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from prepkit.errors import PrepkitError
from prepkit.files import replacing
from prepkit.layout import Layout, PRepShape

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from prepkit.prep_file import PRep

ROBUST_PERCENTILE = 99.0  # colours span this share of the absolute values: a few outliers would flatten the rest
MAX_PIXELS = 2048  # along either axis; more cells than that are averaged in blocks
PADDING_COLOUR = "0.8"
SAMPLE_VALUES = 1_000_000


class PlotsMissing(PrepkitError, ImportError):
    """matplotlib is not installed."""

    exit_code = 1


def draw_prep(prep: PRep, path: str | os.PathLike[str], *, title: str = "", overwrite: bool = False) -> None:
    """Draw a PRep to a PNG: robust colour range, layer boundaries, visible padding, colour bar.

    raises PlotsMissing without matplotlib, OutputError if the picture exists or cannot be written
    """
    figure = prep_figure(prep.values, prep.layout, title)
    with replacing(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def prep_figure(values: Tensor, layout: Layout, title: str = "") -> Any:
    """A matplotlib Figure of one PRep `[H, W]`."""
    figure_class, colour_map = _matplotlib()
    shape = PRepShape(values.shape[0], values.shape[1])
    cells = values.detach().float().cpu().numpy()
    limit = colour_limit(cells, layout.total)
    figure = figure_class(figsize=_figure_size(shape), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(PADDING_COLOUR)
    extent = (0, shape.width, shape.height, 0)
    image = axes.imshow(
        pooled(masked(cells, layout.total)),
        cmap=colour_map,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
    _mark_layers(axes, layout, shape)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="column", ylabel="row", title=title)
    figure.colorbar(image, ax=axes, extend="both", label=f"value ({ROBUST_PERCENTILE:g} % lie within the range)")
    return figure


def colour_limit(cells: np.ndarray, total: int) -> float:
    """Half width of the colour range around 0: the 99th percentile of the finite absolute values, never 0."""
    import numpy as np

    filled = cells.reshape(-1)[:total]
    sample = np.abs(filled[:: max(1, total // SAMPLE_VALUES)])
    sample = sample[np.isfinite(sample)]
    limit = float(np.percentile(sample, ROBUST_PERCENTILE)) if sample.size else 0.0
    return limit or float(sample.max(initial=0.0)) or 1.0


def masked(cells: np.ndarray, total: int) -> np.ndarray:
    """The cells with the padding as NaN, so that it shows the colour of the background and not that of zero."""
    result = cells.copy()
    result.reshape(-1)[total:] = float("nan")
    return result


def pooled(cells: np.ndarray) -> np.ndarray:
    """The cells averaged in blocks so that neither axis has more than MAX_PIXELS."""
    import numpy as np

    rows, columns = (math.ceil(size / MAX_PIXELS) for size in cells.shape)
    if rows == columns == 1:
        return cells
    for axis, block in ((0, rows), (1, columns)):
        starts = np.arange(0, cells.shape[axis], block)
        counts = np.diff(np.append(starts, cells.shape[axis]))
        sums = np.add.reduceat(cells, starts, axis=axis)
        cells = sums / np.expand_dims(counts, 1 - axis)
    return cells


def _figure_size(shape: PRepShape) -> tuple[float, float]:
    # A PRep of 8 x 10,000 drawn to scale would be a line, so the aspect is bounded.
    aspect = min(max(shape.height / shape.width, 0.25), 1.6)
    return 9.0, 1.2 + 6.5 * aspect


def _mark_layers(axes: Any, layout: Layout, shape: PRepShape) -> None:
    """A stepped line where each layer (weight and bias together) ends, and its name at the right edge."""
    ends: dict[str, int] = {}
    for slot in layout:
        ends[slot.name.rpartition(".")[0] or slot.name] = slot.stop
    labels = _spread(list(ends.items()), shape)
    for name, stop in ends.items():
        row, column = divmod(stop, shape.width)
        axes.plot(
            [0, column, column, shape.width], [row + 1, row + 1, row, row], color="black", linewidth=0.6, alpha=0.7
        )
        if name in labels:
            axes.annotate(
                name,
                (shape.width, row),
                xytext=(-3, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=6,
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8},
            )


def _spread(ends: list[tuple[str, int]], shape: PRepShape) -> set[str]:
    """The names that can be written without one covering another."""
    least_gap = shape.height / 25
    kept: set[str] = set()
    last = -math.inf
    for name, stop in ends:
        row = stop / shape.width
        if row - last >= least_gap:
            kept.add(name)
            last = row
    return kept


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissing("drawing needs matplotlib; pip install 'prepkit[plots]'.") from None
    return Figure, mpl.colormaps["RdBu_r"]
