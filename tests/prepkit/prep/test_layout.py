"""Layouts and shapes of PReps: which are legal, in which order slots stand, and their JSON."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_samples import small_network
from torch import nn

from prepkit.errors import InvalidShape, LayoutMismatch
from prepkit.prep.layout import Layout, PRepShape, Slot, natural_key

# PRepShape ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_values", "width", "height"),
    [(1, 8, 4), (32, 8, 4), (33, 8, 8), (62_006, 512, 124), (77_706, 512, 152), (465_674, 512, 912)]
    + [(77_706, 10_000, 8), (128_456, 10_000, 16), (853_642, 10_000, 88), (465_674, 10_000, 48), (516_424, 10_000, 52)],
)
def test_least_height(num_values: int, width: int, height: int) -> None:
    assert PRepShape.least(num_values, width) == PRepShape(height, width)


@given(st.integers(1, 10**7), st.integers(1, 2000))
def test_least_height_is_legal_and_least(num_values: int, eighth: int) -> None:
    shape = PRepShape.least(num_values, 8 * eighth)
    assert shape.height % 4 == 0
    assert shape.cells >= num_values
    assert shape.height == 4 or (shape.height - 4) * shape.width < num_values


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0, "width 0 is not positive; use a multiple of 8."),
        (-8, "width -8 is not positive; use a multiple of 8."),
        (10, "width 10 is not a multiple of 8; use 8 or 16."),
        (5, "width 5 is not a multiple of 8; use 8."),
        (True, "width must be a whole number, not True."),
        (8.0, "width must be a whole number, not 8.0."),
    ],
)
def test_illegal_width(width: int, message: str) -> None:
    with pytest.raises(InvalidShape) as error:
        PRepShape.least(100, width)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("height", "message"),
    [
        (3, "464 parameters do not fit a PRep of 3 x 128 (384 values); use height >= 4."),
        (0, "height 0 is not positive; use a multiple of 4."),
        (6, "height 6 is not a multiple of 4; use 4 or 8."),
        (-4, "height -4 is not positive; use a multiple of 4."),
    ],
)
def test_illegal_height(height: int, message: str) -> None:
    layout = Layout((Slot("a", (464,), "float32", "parameter", 0),))
    with pytest.raises(InvalidShape) as error:
        layout.shape(width=128, height=height)
    assert str(error.value) == message


# Layout -------------------------------------------------------------------------------------------------------


def test_layout_of_a_network_is_in_registration_order() -> None:
    layout = Layout.of(small_network())
    assert [(slot.name, slot.shape, slot.kind, slot.start) for slot in layout] == [
        ("0.weight", (3, 1, 3, 3), "parameter", 0),
        ("0.bias", (3,), "parameter", 27),
        ("1.weight", (3,), "parameter", 30),
        ("1.bias", (3,), "parameter", 33),
        ("1.running_mean", (3,), "buffer", 36),
        ("1.running_var", (3,), "buffer", 39),
        ("3.weight", (5, 12), "parameter", 42),
        ("3.bias", (5,), "parameter", 102),
    ]
    assert (layout.total, layout.num_parameters, layout.dtype) == (107, 101, "float32")


def test_layout_of_a_state_dict_is_in_natural_order_whatever_the_dict_order() -> None:
    names = ["layers.10.weight", "layers.2.weight", "layers.2.bias", "head", "layers.1.running_mean"]
    tensors = {name: torch.zeros(2) for name in names}
    expected = ["head", "layers.1.running_mean", "layers.2.bias", "layers.2.weight", "layers.10.weight"]
    assert [slot.name for slot in Layout.of_tensors(tensors)] == expected
    assert Layout.of_tensors(dict(reversed(tensors.items()))) == Layout.of_tensors(tensors)
    assert Layout.of_tensors(tensors).slots[1].kind == "buffer"


def test_natural_key_takes_odd_digits() -> None:
    assert sorted(["x²", "x2", "x10", "x"], key=natural_key) == ["x", "x2", "x10", "x²"]


def test_json_round_trip_is_canonical() -> None:
    layout = Layout.of(small_network())
    text = layout.to_json()
    assert Layout.from_json(text) == layout
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert len(layout.sha256) == 64
    assert Layout.from_json(text).sha256 == layout.sha256
    other = Layout.from_json(text.replace("0.bias", "0.bios"))
    assert other.sha256 != layout.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 3}, "place: a layout is an object with a list `slots`."),
        ({"slots": []}, "place: there is nothing to pack: no floating-point parameters were found."),
        ({"slots": [1]}, "place.slots[0]: expected an object."),
        ({"slots": [{"name": 1, "shape": [], "dtype": "float32", "kind": "parameter"}]}, "place.slots[0].name"),
        ({"slots": [{"name": "a", "shape": [-1], "dtype": "float32", "kind": "parameter"}]}, "place.slots[0].shape"),
        ({"slots": [{"name": "a", "shape": [1], "dtype": "int8", "kind": "parameter"}]}, "place.slots[0].dtype"),
        ({"slots": [{"name": "a", "shape": [1], "dtype": "float32", "kind": "x"}]}, "place.slots[0].kind"),
        ({"ties": [["a"]]}, "place.ties: expected pairs of names."),
        ({"ties": [["a", "nowhere"]]}, "place: 'a' is tied to 'nowhere', which has no slot."),
        ({"ties": [["0.bias", "0.weight"]]}, "place: a name stands twice in the layout."),
    ],
)
def test_json_that_is_no_layout(change: dict, message: str) -> None:
    data = {**Layout.of(small_network()).to_dict(), **change}
    with pytest.raises(LayoutMismatch, match=r"^place") as error:
        Layout.from_dict(data, "place")
    assert str(error.value).startswith(message)


def test_text_that_is_no_json() -> None:
    with pytest.raises(LayoutMismatch, match="zoo: not JSON"):
        Layout.from_json("{", "zoo")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, dtype=torch.complex64), "'weight' is complex (complex64)"),
        (torch.zeros(3).to_sparse(), "'weight' is sparse (float32)"),
        (torch.zeros(3).to(torch.float8_e4m3fn), "'weight' has dtype float8_e4m3fn"),
        (nn.parameter.UninitializedParameter(), "'weight' is not initialised yet"),
        ("text", "'weight' is a str, not a tensor"),
    ],
)
def test_tensors_that_no_prep_holds(tensor: object, message: str) -> None:
    with pytest.raises(LayoutMismatch) as error:
        Layout.of_tensors({"other": torch.zeros(1), "weight": tensor})  # type: ignore[dict-item]
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8])
def test_integers_get_no_slot_and_are_no_parameters_of_a_network(dtype: torch.dtype) -> None:
    integers = torch.zeros(3, dtype=dtype)
    assert Layout.of_tensors({"other": torch.zeros(1), "weight": integers}).names == {"other"}
    network = nn.Linear(3, 1)
    network.weight = nn.Parameter(integers, requires_grad=False)
    with pytest.raises(LayoutMismatch, match=rf"^'weight' is an integer parameter \({str(dtype)[6:]}\)"):
        Layout.of(network)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_refused() -> None:
    quantised = torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)
    with pytest.raises(LayoutMismatch, match=r"'weight' is quantised \(qint8\)"):
        Layout.of_tensors({"weight": quantised})


def test_nothing_to_pack() -> None:
    for build in (lambda: Layout.of(nn.ReLU()), lambda: Layout.of_tensors({})):
        with pytest.raises(LayoutMismatch, match="there is nothing to pack"):
            build()


def test_layouts_need_no_torch() -> None:
    code = (
        "import sys; from prepkit.prep.layout import Layout, PRepShape; "
        'Layout.from_json(\'{"slots":[{"name":"a","shape":[3],"dtype":"float32","kind":"parameter"}]}\')'
        ".shape(8); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_total_is_the_sum_of_sizes() -> None:
    layout = Layout.of(small_network())
    assert layout.total == sum(math.prod(slot.shape) for slot in layout)
    assert len(layout) == 8


def test_in_asks_for_names_and_slots():
    layout = Layout.of(nn.Linear(3, 2))
    assert "weight" in layout
    assert "gain" not in layout
    assert layout.slots[1] in layout


def test_a_pair_of_numbers_is_a_shape_and_a_state_dict_is_no_network():
    network = nn.Linear(20, 10)
    layout, tensors = Layout.of(network), network.state_dict()
    assert torch.equal(layout.pack(tensors, (16, 16)), layout.pack(tensors, PRepShape(16, 16)))
    with pytest.raises(InvalidShape, match="width 15"):
        layout.pack(tensors, (16, 15))
    with pytest.raises(
        LayoutMismatch, match=r"takes a network, not a OrderedDict; Layout\.of_tensors takes a state dict"
    ):
        Layout.of(tensors)
