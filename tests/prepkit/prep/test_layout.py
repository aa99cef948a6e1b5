"""Packing and unpacking: exact, row-major, zero-padded, differentiable, without copies."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prepkit.errors import InvalidShape, LayoutMismatch
from prepkit.prep.layout import Layout, PRepShape, Slot, natural_key

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5))


def row_by_row(tensors: dict[str, torch.Tensor], order: list[str], height: int, width: int) -> np.ndarray:
    """The definition, one value at a time: row-major, layer after layer, zeros at the end."""
    matrix = np.zeros((height, width))
    index = 0
    for name in order:
        for value in tensors[name].detach().double().flatten().tolist():
            matrix[index // width, index % width] = value
            index += 1
    return matrix


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


# pack and unpack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_out", [False, True])
def test_pack_is_row_major_with_a_zero_tail(dtype: torch.dtype, with_out: bool) -> None:
    network = small_network().to(dtype)
    layout = Layout.of(network)
    shape = layout.shape(width=16, height=12)
    out = torch.full((12, 16), 7.0, dtype=dtype) if with_out else None
    prep = layout.pack(network.state_dict(), shape, out=out)
    assert prep.dtype == dtype
    assert out is None or prep is out
    expected = row_by_row(network.state_dict(), [slot.name for slot in layout], 12, 16)
    assert np.array_equal(prep.double().numpy(), expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_tensors_come_back_exactly(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6))
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=len(shapes), max_size=len(shapes)))
    batch = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    width = 8 * data.draw(st.integers(1, 5))
    tensors = {
        f"t.{index}": torch.randn((*batch, *shape)).to(dtype)
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }
    singles = {name: tensor[(0,) * len(batch)] for name, tensor in tensors.items()}
    layout = Layout.of_tensors(singles)
    if layout.total == 0:
        return
    prep = layout.pack(tensors, layout.shape(width))
    assert prep.shape == (*batch, *(layout.shape(width).height, width))
    assert prep.reshape(*batch, -1)[..., layout.total :].count_nonzero() == 0
    for name, tensor in layout.unpack(prep).items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


def test_a_stack_packs_as_its_members_do() -> None:
    networks = [small_network() for _ in range(3)]
    for index, network in enumerate(networks):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=index + 1)
    layout = Layout.of(networks[0])
    shape = layout.shape(width=32)
    stack = {name: torch.stack([n.state_dict()[name] for n in networks]) for name in layout.unpack(torch.zeros(4, 32))}
    preps = layout.pack(stack, shape)
    out = torch.full((3, shape.height, shape.width), 5.0)
    layout.pack(stack, out=out)
    for index, network in enumerate(networks):
        assert torch.equal(preps[index], layout.pack(network.state_dict(), shape))
        assert torch.equal(out[index], preps[index])


def test_mixed_dtypes_take_the_least_dtype_that_holds_all() -> None:
    tensors = {"a": torch.randn(3).half(), "b": torch.randn(3).bfloat16()}
    layout = Layout.of_tensors(tensors)
    assert layout.dtype == "float32"
    assert layout.pack(tensors, layout.shape(8)).dtype == torch.float32
    wide = Layout.of_tensors({**tensors, "c": torch.randn(2).double()})
    assert wide.dtype == "float64"


def test_a_prep_cast_on_purpose_unpacks_as_views_of_its_own_dtype() -> None:
    layout = Layout.of(small_network())
    prep = layout.pack(small_network().state_dict(), layout.shape(16)).double()
    assert {tensor.dtype for tensor in layout.unpack(prep).values()} == {torch.float64}


def test_unpack_returns_views() -> None:
    network = small_network()
    layout = Layout.of(network)
    for prep in (torch.zeros(*(layout.shape(16).height, 16)), torch.zeros(5, layout.shape(16).height, 16)):
        tensors = layout.unpack(prep)
        assert {tensor.untyped_storage().data_ptr() for tensor in tensors.values()} == {
            prep.untyped_storage().data_ptr()
        }
        tensors["0.bias"].fill_(3.0)
        assert prep.sum() == 3.0 * tensors["0.bias"].numel()


def test_tied_parameters_are_packed_once_and_come_back_tied() -> None:
    network = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    network["head"].weight = network["embed"].weight
    for layout in (Layout.of(network), Layout.of_tensors(network.state_dict())):
        assert layout.total == 24
        assert layout.ties == (("head.weight", "embed.weight"),)
        tensors = layout.unpack(layout.pack(network.state_dict(), layout.shape(8)))
        assert tensors["head.weight"] is tensors["embed.weight"]
        assert torch.equal(tensors["head.weight"], network["embed"].weight)
        assert Layout.from_json(layout.to_json()) == layout
    untied = {"embed.weight": torch.zeros(6, 4), "head.weight": torch.ones(6, 4)}
    with pytest.raises(LayoutMismatch, match=r"'head.weight' is tied to 'embed.weight' in the layout, but their"):
        layout.pack(untied, layout.shape(8))


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("with_out", [False, True])
def test_pack_and_unpack_are_differentiable(batch: tuple[int, ...], with_out: bool) -> None:
    tensors = {"a": torch.randn(*batch, 3, 2, dtype=torch.float64), "b": torch.randn(batch, dtype=torch.float64)}
    layout = Layout.of_tensors({"a": torch.zeros(3, 2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)})
    weights = torch.randn(*batch, 4, 8, dtype=torch.float64)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out = torch.empty(*batch, 4, 8, dtype=torch.float64) if with_out else None
    prep = layout.pack(leaves, PRepShape(4, 8), out=out)
    (prep * weights).sum().backward()
    for name, expected in layout.unpack(weights).items():
        assert torch.equal(leaves[name].grad, expected)  # type: ignore[arg-type]
    leaf = torch.randn(*batch, 4, 8, dtype=torch.float64, requires_grad=True)
    sum((t * (i + 1)).sum() for i, t in enumerate(layout.unpack(leaf).values())).backward()  # type: ignore[union-attr]
    ones = {name: torch.full_like(tensors[name], i + 1.0) for i, name in enumerate(layout.unpack(leaf))}
    assert torch.equal(leaf.grad, layout.pack(ones, PRepShape(4, 8)))  # type: ignore[arg-type]


def test_pack_and_unpack_run_under_vmap() -> None:
    layout = Layout.of(small_network())
    prep = torch.randn(3, *(layout.shape(16).height, 16))
    flat = prep.reshape(3, -1)
    flat[:, layout.total :] = 0
    again = torch.vmap(lambda p: layout.pack(layout.unpack(p), layout.shape(16)))(prep)
    assert torch.equal(again, prep)


def test_values_survive_bit_for_bit() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, -float("inf")])
    layout = Layout.of_tensors({"a": odd})
    back = layout.unpack(layout.pack({"a": odd}, layout.shape(8)))["a"]
    assert torch.equal(back.view(torch.int32), odd.view(torch.int32))


def test_integer_buffers_may_stand_beside() -> None:
    network = small_network()
    layout = Layout.of(network)
    assert "1.num_batches_tracked" in network.state_dict()
    assert "1.num_batches_tracked" not in layout.unpack(layout.pack(network.state_dict(), layout.shape(16)))
    assert Layout.of_tensors(network.state_dict()).total == layout.total


def test_what_pack_refuses() -> None:
    network = small_network()
    layout = Layout.of(network)
    tensors = dict(network.state_dict())
    shape = layout.shape(16)
    cases = [
        ({k: v for k, v in tensors.items() if k != "3.bias"}, {"shape": shape}, "tensors are missing: 3.bias. Given:"),
        ({**tensors, "new": torch.zeros(1)}, {"shape": shape}, "tensors that the layout does not have: new."),
        ({**tensors, "3.bias": torch.zeros(4)}, {"shape": shape}, "'3.bias' has shape [4]; the layout says [5]."),
        ({**tensors, "3.bias": torch.zeros(2, 5)}, {"shape": shape}, "'3.bias' has shape [2, 5]; the layout says [5]."),
        (tensors, {}, "pack needs the shape of the PRep or a buffer `out`"),
        (tensors, {"shape": PRepShape(4, 16)}, "107 parameters do not fit a PRep of 4 x 16 (64 values)"),
        (tensors, {"out": torch.zeros(3, 8, 16)}, "out has shape [3, 8, 16]; the tensors need ['H', 'W']."),
        (tensors, {"out": torch.zeros(8, 16), "shape": PRepShape(12, 16)}, "out is 8 x 16, but shape says 12 x 16"),
        (tensors, {"out": torch.zeros(16, 8).T}, "the PRep of shape [8, 16] and strides [1, 8] is not row-major"),
        (tensors, {"out": torch.zeros(8, 16).half()}, "a PRep of float16 cannot hold values of float32 exactly"),
    ]
    for given_tensors, arguments, message in cases:
        with pytest.raises((LayoutMismatch, InvalidShape)) as error:
            layout.pack(given_tensors, **arguments)  # type: ignore[arg-type]
        assert str(error.value).startswith(message)


def test_what_unpack_refuses() -> None:
    layout = Layout.of(small_network())
    for prep, message in [
        (torch.zeros(4, 16), "a PRep of [4, 16] is too small for 107 values."),
        (torch.zeros(16), "a PRep has shape [*batch, H, W], not [16]."),
        (torch.zeros(16, 8).T, "the PRep of shape [8, 16] and strides [1, 8] is not row-major in memory"),
    ]:
        with pytest.raises(LayoutMismatch) as error:
            layout.unpack(prep)
        assert str(error.value).startswith(message)


def test_out_of_a_wider_dtype_is_filled_exactly() -> None:
    network = small_network()
    layout = Layout.of(network)
    out = torch.full((8, 16), 9.0, dtype=torch.float64)
    layout.pack(network.state_dict(), out=out)
    assert torch.equal(out.float(), layout.pack(network.state_dict(), PRepShape(8, 16)))


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
