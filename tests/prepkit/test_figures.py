"""Pictures of PReps: the colours that are chosen, the cells that are averaged, what is marked, and what comes out."""

import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from prepkit.errors import OutputError
from prepkit.figures import (
    MAX_PIXELS,
    PlotsMissing,
    axis_limits,
    colour_limit,
    draw_prep,
    folded,
    label_rows,
    masked,
    mesh_figure,
    pooled,
    prep_figure,
)
from prepkit.prep.file import PRep
from prepkit.prep.layout import Layout, PRepShape

PNG = b"\x89PNG\r\n\x1a\n"


def prep_of(sizes: dict[str, int], width: int, height: int | None = None) -> PRep:
    torch.manual_seed(0)
    tensors = {name: torch.randn(size) for name, size in sizes.items()}
    layout = Layout.of_tensors(tensors)
    return PRep(layout.pack(tensors, layout.shape(width, height)), layout)


def image_of(figure: Any) -> Any:
    """The one image in a figure's first axes."""
    (image,) = figure.axes[0].images
    return image


def labels_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


# Colours ------------------------------------------------------------------------------------------------------


def test_the_range_is_the_99th_percentile_of_absolute_values() -> None:
    values = np.random.default_rng(0).normal(size=(100, 80)).astype(np.float32)
    expected = np.sort(np.abs(values).ravel())[round(0.99 * (values.size - 1))]
    assert colour_limit(values, values.size) == pytest.approx(expected, rel=1e-3)


def test_outliers_and_values_that_are_not_finite_do_not_widen_the_range() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, size=(100, 80))
    plain = colour_limit(values, values.size)
    values[3, :5] = [1e30, np.nan, np.inf, -np.inf, -1e30]
    assert colour_limit(values, values.size) == pytest.approx(plain, rel=1e-2)


def test_padding_does_not_narrow_the_range() -> None:
    values = np.zeros((100, 80))
    values[0] = np.linspace(-1, 1, 80)
    assert colour_limit(values, 80) > 0.9
    assert colour_limit(values, values.size) < 0.5


@pytest.mark.parametrize("values", [np.zeros((4, 8)), np.full((4, 8), np.nan), np.full((4, 8), np.inf)])
def test_the_range_is_never_empty(values: np.ndarray) -> None:
    assert colour_limit(values, 32) == 1.0


def test_a_single_value_among_zeros_is_in_the_range() -> None:
    values = np.zeros((100, 80))
    values[0, 0] = -5.0
    assert colour_limit(values, values.size) == 5.0


def test_the_range_of_many_values_is_that_of_a_sample_of_all_of_them() -> None:
    values = np.zeros((2000, 1600))
    values[1000:] = 3.0
    assert colour_limit(values, values.size) == 3.0


def test_colours_are_symmetric_about_zero() -> None:
    image = image_of(prep_figure(torch.full((4, 8), 2.0), Layout.of_tensors({"w": torch.zeros(32)})))
    assert image.get_clim() == (-2.0, 2.0)
    assert image.cmap.name == "RdBu_r"


# Cells --------------------------------------------------------------------------------------------------------


def test_padding_is_masked_and_nothing_else() -> None:
    cells = np.arange(32, dtype=np.float32).reshape(4, 8)
    result = masked(cells, 19)
    assert np.isnan(result).sum() == 13
    assert np.isnan(result.ravel()[19:]).all()
    assert (result.ravel()[:19] == np.arange(19)).all()
    assert cells.ravel()[19:].tolist() == list(range(19, 32))  # the PRep itself is left alone


@pytest.mark.parametrize("shape", [(5000, 8), (8, 10_000), (4100, 2056), (2048, 2048), (2049, 2048), (1, 1)])
def test_large_preps_are_averaged_in_blocks(shape: tuple[int, int]) -> None:
    cells = np.random.default_rng(0).normal(size=shape)
    rows, columns = (-(-size // MAX_PIXELS) for size in shape)  # of a block
    filled = np.pad(cells, ((0, -shape[0] % rows), (0, -shape[1] % columns)), constant_values=np.nan)
    blocks = filled.reshape(filled.shape[0] // rows, rows, filled.shape[1] // columns, columns)
    result = pooled(cells)
    np.testing.assert_allclose(result, np.nanmean(blocks, axis=(1, 3)), rtol=1e-9, atol=1e-12)
    assert max(result.shape) <= MAX_PIXELS


def test_infinities_are_averaged_without_a_warning() -> None:
    cells = np.full((4, 10_000), 3e38, dtype=np.float32)
    cells[0, :2] = np.inf, -np.inf
    assert np.isnan(pooled(cells)[0, 0])


def test_float64_values_beyond_float32_are_drawn() -> None:
    values = torch.full((4, 8), 1e100, dtype=torch.float64)
    figure = prep_figure(values, Layout.of_tensors({"w": torch.zeros(32, dtype=torch.float64)}))
    assert image_of(figure).get_clim()[1] == 1e100


# Marks --------------------------------------------------------------------------------------------------------


def test_the_picture_shows_cells_layers_padding_and_a_colour_bar() -> None:
    prep = prep_of({"first.weight": 90, "first.bias": 10, "second.weight": 60}, width=16, height=12)
    figure = prep_figure(prep.values, prep.layout, "the title")
    axes, bar = figure.axes
    drawn = image_of(figure).get_array()
    assert drawn.shape == (12, 16)
    assert np.ma.getmaskarray(drawn).ravel().tolist() == [False] * 160 + [True] * 32
    np.testing.assert_array_equal(drawn.ravel()[:160], prep.values.flatten()[:160])
    assert image_of(figure).get_extent() == [0, 16, 12, 0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 16), (12, 0))  # row 0 is on top
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("column", "row", "the title")
    # Weight and bias are one layer: it ends after 100 values, in row 6 after column 4; the next after 160, at row 10.
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([0, 4, 4, 16], [7, 7, 6, 6]), ([0, 0, 0, 16], [11, 11, 10, 10])]
    assert {text.get_text(): text.get_position()[1] for text in axes.texts} == {"first": 3.5, "second": 8.0}
    assert "99 %" in bar.get_ylabel()


def test_names_stand_beside_their_rows_without_covering_each_other() -> None:
    shape = PRepShape(100, 10_000)
    layers = {f"l{index}": (index * 2500, (index + 1) * 2500) for index in range(400)} | {"big": (0, 900_000)}
    rows = label_rows(layers, shape)
    assert next(iter(rows)) == "big"  # the largest comes first
    assert rows["big"] == 45.0
    points_per_row = 6.5 * 0.25 * 72 / 100
    gaps = np.diff(sorted(rows.values())) * points_per_row
    assert gaps.min() >= 7  # letters of 6 points
    assert 10 < len(rows) < 25


def test_an_empty_layer_has_a_row_too() -> None:
    assert label_rows({"empty": (16, 16)}, PRepShape(4, 8)) == {"empty": 2.5}


def test_names_are_not_read_as_formulas(tmp_path: Path) -> None:
    prep = prep_of({"a$_$b.weight": 20}, width=8)
    draw_prep(prep, tmp_path / "x.png", title="$\\frac{$")
    assert labels_of(prep_figure(prep.values, prep.layout)) == ["a$_$b"]


# Files --------------------------------------------------------------------------------------------------------


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    result: np.ndarray = imread(path)
    return result


@pytest.mark.parametrize(
    ("sizes", "width", "height"),
    [
        ({"a.weight": 40_000, "a.bias": 7, "b.weight": 30_000}, 10_000, None),  # 8 x 10,000
        ({f"layers.{index}.weight": 500 for index in range(100)}, 8, None),  # 6,252 x 8
        ({"w": 1}, 8, None),
        ({"w": 32}, 8, None),  # no padding
        ({"w": 33}, 8, 400),  # almost nothing but padding
    ],
)
def test_preps_of_every_form_are_drawn(sizes: dict[str, int], width: int, height: int | None, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw_prep(prep_of(sizes, width, height), path, title="x")
    content = path.read_bytes()
    assert content.startswith(PNG)
    columns, rows = struct.unpack(">II", content[16:24])
    assert columns == 1350  # nine inches of 150 pixels
    assert 400 < rows < 1900
    colours = (pixels(path)[..., :3] * 255).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    assert len(np.unique(colours)) > 20


def test_padding_is_visible(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw_prep(prep_of({"w": 512}, width=32, height=32), path)  # the lower half is padding
    grey = np.isclose(pixels(path)[..., :3], 0.8, atol=0.01).all(axis=-1)
    assert 0.25 < grey.mean() < 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_and_gradients(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(4, 8).to(dtype).requires_grad_()
    draw_prep(PRep(values, Layout.of_tensors({"w": torch.zeros(32, dtype=dtype)})), tmp_path / "x.png")


def test_values_that_are_not_finite_are_drawn_without_a_warning(tmp_path: Path) -> None:
    values = torch.randn(4, 8)
    values[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    draw_prep(PRep(values, Layout.of_tensors({"w": torch.zeros(32)})), tmp_path / "x.png")


def test_an_existing_picture_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_text("old")
    prep = prep_of({"w": 20}, width=8)
    with pytest.raises(OutputError, match="exists already"):
        draw_prep(prep, path)
    assert path.read_text() == "old"
    draw_prep(prep, path, overwrite=True)
    assert path.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        PlotsMissing, match=re.escape("drawing needs matplotlib; pip install 'prepkit[plots]'.")
    ) as caught:
        draw_prep(prep_of({"w": 20}, width=8), tmp_path / "x.png")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folded_picture_holds_all_values_in_order() -> None:
    values = torch.arange(1.0, 101.0)
    cells = folded(values)
    assert 2 <= cells.shape[1] / cells.shape[0] <= 4
    assert cells.reshape(-1)[:100].tolist() == values.tolist()
    assert not cells.reshape(-1)[100:].any()


def test_an_axis_shows_ten_points_or_more() -> None:
    for lowest, highest, limits in ((96.0, 97.0, (91.0, 101.0)), (50.0, 54.0, (47.0, 57.0)), (40.0, 100.0, (29, 101))):
        assert axis_limits(lowest, highest, 10.0, top=101.0) == pytest.approx(limits)


def test_meshes_stand_in_rows_and_columns() -> None:
    ball = trimesh.creation.icosphere(subdivisions=1)
    rows = [("upper", [(ball, ""), (ball, "small")]), ("lower", [(None, "nothing"), (ball, "")])]
    figure = mesh_figure(rows, ["left", "right"], (1.0, 1.0, 1.0))
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [[], ["small"], ["nothing"], []]
    assert [len(axes.collections) for axes in figure.axes] == [1, 1, 0, 1]
    assert not figure.axes[2].axison
    corners = [(round(axes.get_position().x0, 3), round(axes.get_position().y0, 3)) for axes in figure.axes]
    assert corners[0][0] == corners[2][0] < corners[1][0]
    assert corners[0][1] == corners[1][1] > corners[2][1]
    assert [text.get_text() for text in figure.texts] == ["upper", "lower", "left", "right"]
