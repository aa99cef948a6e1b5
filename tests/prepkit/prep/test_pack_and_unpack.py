"""Packing and unpacking: exact, row-major, zero-padded, differentiable, without copies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_samples import small_network
from torch import nn

from prepkit.errors import InvalidShape, LayoutMismatch
from prepkit.prep.layout import Layout, PRepShape

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def row_by_row(tensors: dict[str, torch.Tensor], order: list[str], height: int, width: int) -> np.ndarray:
    """The definition, one value at a time: row-major, layer after layer, zeros at the end."""
    matrix = np.zeros((height, width))
    index = 0
    for name in order:
        for value in tensors[name].detach().double().flatten().tolist():
            matrix[index // width, index % width] = value
            index += 1
    return matrix


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
