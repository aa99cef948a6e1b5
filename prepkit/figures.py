"""Pictures of PReps, as in the paper's Suppl. VII; matplotlib, the extra `[plots]`, is imported when one is drawn."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prepkit.errors import PrepkitError
from prepkit.prep.layout import Layout, PRepShape
from prepkit.support.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from trimesh import Trimesh

    from prepkit.prep.file import PRep

ROBUST_PERCENTILE = 99.0  # colours span this share of the absolute values: a few outliers would flatten the rest
MAX_PIXELS = 2048  # along each axis; where there are more cells, they are averaged in blocks
PADDING_COLOUR = "0.8"
LABEL_POINTS = 6
LONGEST_NAME = 32  # characters of an architecture beside a drawing
SAMPLE_VALUES = 1_000_000
LIGHT = (0.4, -0.45, 0.8)  # points from a mesh to its light, in matplotlib's axes
MESH_COLOUR = (0.45, 0.62, 0.85)
MESH_WIDTH, MESH_HEIGHT, MESH_MARGIN = 1.5, 1.7, 0.35  # inches of a mesh, and of the names of rows and columns


class PlotsMissing(PrepkitError, ImportError):
    """matplotlib is not installed."""

    exit_code = 1


def draw_prep(prep: PRep, path: str | os.PathLike[str], *, title: str = "", overwrite: bool = False) -> None:
    """Draw a PRep into a PNG, with the boundaries of its layers, visible padding and a colour bar.

    raises PlotsMissing without matplotlib, OutputError if the picture exists or cannot be written
    """
    figure = prep_figure(prep.values, prep.layout, title)
    save_figure(figure, path, overwrite=overwrite)


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib Figure of a size in inches; pyplot's global state does not know it.

    raises PlotsMissing without matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotsMissing("drawing needs matplotlib; pip install 'prepkit[plots]'.") from None
    return Figure(figsize=(width, height), layout="constrained")


def panels(
    count: int, width: float, height: float, *, least_width: float = 0, **sharing: bool
) -> tuple[Any, list[Any]]:
    """Return a new Figure and `count` axes side by side, each of this width and height in inches.

    least_width: width of the figure if it would be less
    sharing:     sharex, sharey
    raises PlotsMissing without matplotlib
    """
    figure = new_figure(max(least_width, width * count), height)
    return figure, list(figure.subplots(1, count, squeeze=False, **sharing)[0])


def save_figure(figure: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a matplotlib Figure as a PNG, whole or not at all.

    raises OutputError if the picture exists or cannot be written
    """
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(png_of(figure))


def png_of(figure: Any) -> bytes:
    """Return a matplotlib Figure as the bytes of a PNG, which do not name the version of matplotlib."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def short_name(architecture: str) -> str:
    """Return the name of an architecture without its data set, for titles: `resnet8` for `resnet8@digits`.

    A long name lacks its middle, since it would take the room of what it names.
    """
    name = architecture.partition("@")[0]
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 2]}...{name[1 - half :]}"


def prep_figure(values: Tensor, layout: Layout, title: str = "") -> Any:
    """Return a matplotlib Figure of one PRep `[H, W]`; padding and values that are not finite are grey."""
    shape = PRepShape(values.shape[0], values.shape[1])
    cells = (values if values.dtype.itemsize == 8 else values.float()).detach().cpu().numpy()
    figure = new_figure(9.0, 1.2 + _axes_inches(shape))
    axes = figure.add_subplot()
    extent = (0, shape.width, shape.height, 0)
    image = draw_cells(axes, cells, layout.total, extent=extent)
    _mark_layers(axes, layout, shape)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel="column", ylabel="row")
    axes.set_title(title, parse_math=False)  # a name may hold a `$`
    figure.colorbar(
        image,
        ax=axes,
        extend="both",
        fraction=0.03,
        pad=0.02,
        aspect=30,
        label=f"value ({ROBUST_PERCENTILE:g} % lie within the range)",
    )
    return figure


def draw_cells(axes: Any, cells: np.ndarray, total: int, limit: float | None = None, **options: Any) -> Any:
    """Draw a PRep's cells, blue below 0, red above, padding grey; returns the image, for a colour bar.

    total:   number of cells that hold values; the rest is padding
    limit:   half width of the colour range; `colour_limit` if missing
    options: passed to `Axes.imshow`
    """
    limit = colour_limit(cells, total) if limit is None else limit
    axes.set_facecolor(PADDING_COLOUR)
    defaults = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "aspect": "auto", "interpolation": "nearest"}
    return axes.imshow(pooled(masked(cells, total)), **{**defaults, **options})


def preps_side_by_side(rows: Sequence[tuple[str, Mapping[str, Tensor]]]) -> Any:
    """Draw the values of PReps, each row in one range of colours and folded to one width.

    rows: label of the row, and flat values `[V]` without padding by title, of one architecture each
    raises PlotsMissing without matplotlib
    """
    figure = new_figure(9.0, 0.5 + 1.9 * len(rows))
    panels_of_rows = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for line, (label, values) in zip(panels_of_rows, rows, strict=True):
        pictures = {title: folded(values_V) for title, values_V in values.items()}
        totals = [len(values_V) for values_V in values.values()]
        limit = max(colour_limit(cells, total) for cells, total in zip(pictures.values(), totals, strict=True))
        for axes, (title, cells), total in zip(line, pictures.items(), totals, strict=True):
            image = draw_cells(axes, cells, total, limit)
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, parse_math=False, fontsize="small")
        line[0].set_ylabel(label, parse_math=False, fontsize="small")
        figure.colorbar(image, ax=list(line), extend="both", fraction=0.03, pad=0.01, label="value of a weight")
    return figure


def draw_prep_grid(
    figure: Any, rows: Mapping[str, Iterable[tuple[str, PRep]]], columns: int, points: float = 6
) -> None:
    """Draw small PReps into a Figure, one row an architecture, each in a range of colours of its own.

    rows:   titles and PReps by architecture, `columns` of each or fewer
    points: size of the titles
    """
    grid = figure.subplots(len(rows), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for line, (architecture, preps) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(short_name(architecture), fontsize=points + 1, parse_math=False)
        for axes in line:
            axes.set_frame_on(False)
        for axes, (title, prep) in zip(line, preps, strict=False):
            draw_cells(axes, prep.values.double().numpy(), prep.layout.total)
            axes.set_frame_on(True)
            axes.set_title(title, fontsize=points, parse_math=False)


def mesh_figure(
    rows: Sequence[tuple[str, Sequence[tuple[Trimesh | None, str]]]],
    titles: Sequence[str],
    reach: tuple[float, float, float],
) -> Any:
    """Return a Figure of meshes in rows and columns.

    rows:   name of the row, and for each column a mesh, or None, and words that stand below it
    titles: titles of the columns
    reach:  see draw_mesh
    raises PlotsMissing without matplotlib
    """
    columns = len(titles)
    figure = new_figure(MESH_MARGIN + MESH_WIDTH * columns, MESH_MARGIN + MESH_HEIGHT * len(rows))
    figure.set_layout_engine("none")  # constraints make room for the axes of a cube, which are not drawn
    width, height = figure.get_size_inches()
    for row, (name, meshes) in enumerate(rows):
        bottom = MESH_HEIGHT * (len(rows) - 1 - row)
        middle = (bottom + MESH_HEIGHT / 2) / height
        figure.text(MESH_MARGIN / 2 / width, middle, name, rotation=90, ha="center", va="center")
        for column, (mesh, words) in enumerate(meshes):
            left = MESH_MARGIN + MESH_WIDTH * column
            place = (left / width, bottom / height, MESH_WIDTH / width, MESH_HEIGHT / height)
            axes = figure.add_axes(place, projection="3d")
            if words:
                axes.text2D(0.5, 0.05, words, transform=axes.transAxes, ha="center", fontsize=7)
            if mesh is None:
                axes.set_axis_off()
            else:
                draw_mesh(axes, mesh, reach)
    for column, title in enumerate(titles):
        middle = (MESH_MARGIN + MESH_WIDTH * (column + 0.5)) / width
        figure.text(middle, 1 - MESH_MARGIN / 2 / height, title, ha="center")
    return figure


def axis_limits(lowest: float, highest: float, least: float, *, top: float) -> tuple[float, float]:
    """Return an axis's range, `least` long or more, around values; it ends at `top`, a little above what can be."""
    length = max(least, 1.2 * (highest - lowest))
    end = min((lowest + highest + length) / 2, top)
    return end - length, end


def draw_mesh(axes: Any, mesh: Trimesh, reach: tuple[float, float, float]) -> None:
    """Draw a mesh into three-dimensional axes, seen from its front and right side; y is up, and z is the front.

    reach: how far along x, z and y the axes go from the centre
    """
    import numpy as np
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    axes.set(**{f"{axis}lim": (-length, length) for axis, length in zip("xyz", reach, strict=True)})
    axes.set_proj_type("ortho")
    axes.set_box_aspect(reach, zoom=1.25)
    axes.set_axis_off()
    axes.view_init(elev=18, azim=-60)
    # matplotlib's z is up, and its y leads away from the viewer.
    corners, normals = (
        np.stack([xyz[..., 0], -xyz[..., 2], xyz[..., 1]], axis=-1) for xyz in (mesh.triangles, mesh.face_normals)
    )
    shade = 0.35 + 0.6 * np.abs(normals @ (np.array(LIGHT) / np.linalg.norm(LIGHT)))
    axes.add_collection3d(Poly3DCollection(corners, facecolors=np.outer(shade, MESH_COLOUR).clip(0, 1)))


def folded(values_V: Tensor) -> np.ndarray:  # noqa: N803 - V values
    """Return flat values as a picture about three times as wide as high, zeros after the last.

    A PRep of 8 x 10,000 in its own shape would be a line.
    """
    import numpy as np

    width = max(1, math.ceil(math.sqrt(3 * len(values_V))))
    height = math.ceil(len(values_V) / width)
    return np.pad(values_V.numpy(), (0, height * width - len(values_V))).reshape(height, width)


def colour_limit(cells: np.ndarray, total: int) -> float:
    """Return half the width of the colour range around 0: a high percentile of the absolute values, never 0."""
    import numpy as np

    filled = cells.reshape(-1)[:total]
    sample = np.abs(filled[:: max(1, total // SAMPLE_VALUES)])
    sample = sample[np.isfinite(sample)]
    limit = float(np.percentile(sample, ROBUST_PERCENTILE)) if sample.size else 0.0
    return limit or float(sample.max(initial=0.0)) or 1.0


def masked(cells: np.ndarray, total: int) -> np.ndarray:
    """Return the cells with NaN as padding, so that it shows the colour of the background and not that of zero."""
    result = cells.copy()
    result.reshape(-1)[total:] = float("nan")
    return result


def pooled(cells: np.ndarray) -> np.ndarray:
    """Average the cells in blocks, so that neither axis has more than MAX_PIXELS."""
    import numpy as np

    rows, columns = (math.ceil(size / MAX_PIXELS) for size in cells.shape)
    if rows == columns == 1:
        return cells
    for axis, block in ((0, rows), (1, columns)):
        starts = np.arange(0, cells.shape[axis], block)
        counts = np.diff(np.append(starts, cells.shape[axis]))
        with np.errstate(over="ignore", invalid="ignore"):  # values of a block may be infinite, or add up to infinity
            sums = np.add.reduceat(cells, starts, axis=axis)
        cells = sums / np.expand_dims(counts, 1 - axis)
    return cells


def _axes_inches(shape: PRepShape) -> float:
    # A PRep of 8 x 10,000 drawn to scale would be a line, so the aspect is bounded.
    return 6.5 * min(max(shape.height / shape.width, 0.25), 1.6)


def _mark_layers(axes: Any, layout: Layout, shape: PRepShape) -> None:
    """Draw a stepped line where each layer (weight and bias together) ends, and write its name beside its rows."""
    layers: dict[str, tuple[int, int]] = {}
    for slot in layout:
        name = slot.name.rpartition(".")[0] or slot.name
        layers[name] = (layers.get(name, (slot.start, 0))[0], slot.stop)
    for _, stop in layers.values():
        row, column = divmod(stop, shape.width)
        edge = [0, column, column, shape.width], [row + 1, row + 1, row, row]
        axes.plot(*edge, color="black", linewidth=0.6, alpha=0.7)
    for name, middle in label_rows(layers, shape).items():
        beside = axes.get_yaxis_transform()
        axes.text(1.005, middle, name, transform=beside, va="center", fontsize=LABEL_POINTS, parse_math=False)


def label_rows(layers: Mapping[str, tuple[int, int]], shape: PRepShape) -> dict[str, float]:
    """Return the row beside which each layer's name stands; where there is no room for all, small layers have none.

    layers: index of the first value, and index after the last, by name
    """
    gap = 1.2 * LABEL_POINTS / 72 / _axes_inches(shape) * shape.height
    rows: dict[str, float] = {}
    for name, (start, stop) in sorted(layers.items(), key=lambda item: item[1][0] - item[1][1]):
        row = (start // shape.width + max(stop - 1, start) // shape.width + 1) / 2
        if all(abs(row - other) >= gap for other in rows.values()):
            rows[name] = row
    return rows
