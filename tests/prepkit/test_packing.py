"""From a checkpoint to a PRep and to a plain state dict: against folds written out here, bit for bit."""

import hashlib
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prepkit
from prepkit.casting import check_finite
from prepkit.checkpoint.export import save_state_dict
from prepkit.cli.show import facts_of_checkpoint
from prepkit.errors import (
    CheckpointError,
    FusionError,
    InvalidShape,
    LayoutMismatch,
    OutputError,
    PrepkitError,
    VerificationError,
)
from prepkit.families.registry import architecture_from_callable
from prepkit.packing import (
    check_round_trip,
    fold_checkpoint,
    pack_checkpoint,
)
from prepkit.prep.file import PRep, load_prep, save_prep
from prepkit.prep.layout import Layout

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DIGITS = "resnet8@digits"


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and bits."""
    words = WORDS[a.element_size()]
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(words), b.reshape(-1).view(words))
    )


def trained(name: str = DIGITS, seed: int = 0) -> nn.Module:
    """A network whose BatchNorms have random statistics: fresh ones hide every mistake."""
    torch.manual_seed(seed)
    network = prepkit.architecture(name).build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.num_batches_tracked.fill_(17)
    return network.eval()


def folded_by_hand(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """w gamma / sqrt(var + eps) and beta - mean gamma / sqrt(var + eps), in float64, in the order of the forward."""
    values = {name: tensor.double().numpy() for name, tensor in state.items()}

    def layer(conv: str, bn: str) -> dict[str, np.ndarray]:
        gain = values[f"{bn}.weight"] / np.sqrt(values[f"{bn}.running_var"] + 1e-5)
        return {
            f"{conv}.weight": values[f"{conv}.weight"] * gain[:, None, None, None],
            f"{conv}.bias": values[f"{bn}.bias"] - values[f"{bn}.running_mean"] * gain,
        }

    folded = layer("conv", "bn")
    for block in ("stages.0.0", "stages.1.0", "stages.2.0"):
        folded |= layer(f"{block}.conv1", f"{block}.bn1") | layer(f"{block}.conv2", f"{block}.bn2")
        if block != "stages.0.0":
            folded |= layer(f"{block}.shortcut.0", f"{block}.shortcut.1")
    return folded | {name: values[name] for name in ("linear.weight", "linear.bias")}


def saved(tensors: dict[str, Any], folder: Path, suffix: str = ".pt") -> Path:
    path = folder / f"model{suffix}"
    if suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of networks that prepkit does not know."""
    (tmp_path / "packing_nets.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Tied(nn.Module):
            def __init__(self, norm):
                super().__init__()
                self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
                self.first.weight = self.last.weight
                self.conv, self.norm = nn.Conv1d(4, 4, 1), norm(4)
                self.register_buffer("table", torch.arange(6).reshape(2, 3))
                self.register_buffer("scale", torch.ones(3))

            def forward(self, x):
                return self.last(self.first(self.norm(self.conv(x)).mean(2))) + self.scale.sum()

        def tied():
            return Tied(nn.BatchNorm1d)

        def unfoldable():
            return nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU())

        def plain():
            return Tied(lambda channels: nn.Identity())
    """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "packing_nets"
    sys.modules.pop("packing_nets", None)


# What is packed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_trained_network_is_folded_and_packed_in_forward_order(suffix: str, tmp_path: Path) -> None:
    state = trained().state_dict()
    path = saved(state, tmp_path, suffix)
    packed = pack_checkpoint(path, width=64)
    expected = np.concatenate([value.ravel() for value in folded_by_hand(state).values()])
    values = packed.prep.values.double().numpy().ravel()
    assert packed.prep.values.shape == (80, 64)  # 5,058 values
    assert expected.size == 5_058
    np.testing.assert_allclose(values[:5_058], expected, rtol=3e-7, atol=1e-9)
    assert not values[5_058:].any()
    assert [slot.name for slot in packed.prep.layout] == list(folded_by_hand(state))
    assert packed.prep.layout == prepkit.architecture(DIGITS).layout
    assert packed.prep.buffers == {}
    assert (packed.num_trained, packed.cast) == (5_142, None)
    origin = packed.prep.origin
    assert (origin.architecture, origin.class_id) == (DIGITS, 2)
    assert origin.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(origin.folded) == 9
    with_bias = {name.removesuffix(".bias") for name in folded_by_hand(state) if name.endswith(".bias")}
    assert set(origin.folded) == with_bias - {"linear"}
    assert packed.fusion is not None
    assert packed.fusion.error_before_cast < 1e-12
    assert packed.fusion.error_after_cast < 1e-6


def test_float64_checkpoints_stay_float64(tmp_path: Path) -> None:
    state = {name: t.double() if t.is_floating_point() else t for name, t in trained().state_dict().items()}
    packed = pack_checkpoint(saved(state, tmp_path))
    assert packed.prep.values.dtype == torch.float64
    expected = np.concatenate([value.ravel() for value in folded_by_hand(state).values()])
    np.testing.assert_allclose(packed.prep.values.numpy().ravel()[:5_058], expected, rtol=1e-13, atol=1e-15)
    for name, tensor in packed.prep.tensors().items():
        assert tensor.dtype == torch.float64, name


def test_keeping_batch_norm_keeps_every_bit(tmp_path: Path) -> None:
    state = trained().state_dict()
    packed = pack_checkpoint(saved(state, tmp_path), keep_batch_norm=True)
    assert packed.fusion is None
    assert packed.prep.origin.architecture == DIGITS
    assert packed.prep.origin.folded == ()
    assert packed.prep.layout.num_parameters == packed.num_trained == 5_142
    assert [slot.name for slot in packed.prep.layout] == [name for name in state if "num_batches" not in name]
    assert {slot.kind for slot in packed.prep.layout if "running" in slot.name} == {"buffer"}
    unpacked = packed.prep.tensors()
    assert unpacked.keys() == state.keys()
    assert all(same(unpacked[name], tensor) for name, tensor in state.items())
    assert {int(tensor) for tensor in packed.prep.buffers.values()} == {17}


def test_a_folded_checkpoint_is_packed_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = prepkit.architecture(DIGITS).build_folded().state_dict()
    packed = pack_checkpoint(saved(dict(reversed(state.items())), tmp_path))
    assert packed.fusion is None
    assert packed.prep.origin.architecture == DIGITS
    assert packed.prep.layout == prepkit.architecture(DIGITS).layout
    assert all(same(tensor, state[name]) for name, tensor in packed.prep.tensors().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_unknown_network_is_packed_in_natural_order_whatever_the_file(suffix: str, tmp_path: Path) -> None:
    state = {f"layers.{index}.weight": torch.randn(3, index + 1) for index in (10, 2, 1)}
    packed = pack_checkpoint(saved(state, tmp_path, suffix))
    assert [slot.name for slot in packed.prep.layout] == ["layers.1.weight", "layers.2.weight", "layers.10.weight"]
    expected = torch.cat([state[f"layers.{index}.weight"].flatten() for index in (1, 2, 10)])
    assert same(packed.prep.values.flatten()[: expected.numel()], expected)
    assert packed.prep.origin.architecture is None
    assert packed.prep.origin.class_id is None
    assert packed.num_trained == expected.numel()


def test_the_key_chooses_among_state_dicts(tmp_path: Path) -> None:
    first, second = {"w": torch.randn(3)}, {"w": torch.randn(5)}
    path = saved({"model": first, "ema": second, "epoch": 3}, tmp_path)
    assert same(pack_checkpoint(path, key="ema").prep.tensors()["w"], second["w"])
    with pytest.raises(CheckpointError, match="choose one with key="):
        pack_checkpoint(path)


def test_packing_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    before = torch.get_rng_state()
    pack_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


# Dtypes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_cast_is_torchs_cast_of_the_folded_network(dtype: str, tmp_path: Path) -> None:
    path = saved(trained().state_dict(), tmp_path)
    plain, cast = pack_checkpoint(path).prep, pack_checkpoint(path, dtype=dtype)
    assert same(cast.prep.values, plain.values.to(getattr(torch, dtype)))
    assert {slot.dtype for slot in cast.prep.layout} == {dtype}
    assert cast.cast == dtype
    assert cast.prep.origin == replace(plain.origin, options={"dtype": dtype})


def test_a_cast_leaves_integers_alone(tmp_path: Path) -> None:
    packed = pack_checkpoint(saved(trained().state_dict(), tmp_path), keep_batch_norm=True, dtype="float16")
    assert {tensor.dtype for tensor in packed.prep.buffers.values()} == {torch.int64}


def test_values_that_a_dtype_cannot_hold(tmp_path: Path) -> None:
    state = {"small": torch.ones(4), "large": torch.tensor([1.0, 70_000.0, -70_000.0])}
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        pack_checkpoint(path, dtype="float16")
    assert str(caught.value) == (
        f"'{path}': 'large' holds 0 NaN and 2 infinite of 3 values after the cast to float16; "
        "pass allow_nonfinite=True if they are meant."
    )
    packed = pack_checkpoint(path, dtype="float16", allow_nonfinite=True)
    assert packed.prep.tensors()["large"].tolist() == [1.0, float("inf"), float("-inf")]
    assert pack_checkpoint(path, dtype="bfloat16").prep.tensors()["large"].isfinite().all()


def test_values_that_a_cast_would_turn_into_zero(tmp_path: Path) -> None:
    state = {"a": torch.tensor([0.5, 0.0]), "tiny": torch.tensor([1.0, 1e-9, -2e-12, 0.0, 3e-7])}
    path = saved(state, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        pack_checkpoint(path, dtype="float16")
    assert str(caught.value) == (
        f"'{path}': 'tiny' holds 2 of 5 values, such as 2.0e-12, that the cast to float16 turns into 0; use a dtype "
        "with a wider range, or pass allow_underflow=True if zeros will do."
    )
    packed = pack_checkpoint(path, dtype="float16", allow_underflow=True)
    assert packed.prep.tensors()["tiny"].tolist()[:4] == [1, 0, 0, 0]
    assert packed.rounding is not None
    assert (packed.rounding.num_values, packed.rounding.num_changed, packed.rounding.num_zeroed) == (7, 3, 2)
    assert packed.rounding.largest == 1.0
    assert pack_checkpoint(path).rounding is None


def test_a_cast_says_how_many_values_it_changed_and_by_how_much(tmp_path: Path) -> None:
    shared = torch.tensor([1.0, 1 + 2**-12, -3.0, float("inf"), float("nan")])
    state = {
        "a": shared,
        "b": shared,
        "half": torch.tensor([1.5]).half(),
        "i": torch.tensor(3),
        "big": torch.tensor(1e6),
    }
    path = saved(state, tmp_path)
    rounding = pack_checkpoint(path, dtype="float16", allow_nonfinite=True).rounding
    assert rounding is not None
    assert (rounding.num_values, rounding.num_changed, rounding.num_zeroed) == (7, 2, 0)  # tied values count once
    assert rounding.largest == pytest.approx(2**-12, rel=1e-3)  # 1e6 becomes infinite, which has no size
    rounding = pack_checkpoint(path, dtype="float64", allow_nonfinite=True).rounding
    assert rounding is not None
    assert (rounding.num_values, rounding.num_changed, rounding.largest) == (7, 0, 0.0)


def test_mixed_dtypes_come_back_in_their_own(tmp_path: Path) -> None:
    state = {"a": torch.randn(3).half(), "b": torch.randn(4), "c": torch.randn(5).bfloat16()}
    packed = pack_checkpoint(saved(state, tmp_path))
    assert packed.prep.values.dtype == torch.float32
    assert all(same(tensor, state[name]) for name, tensor in packed.prep.tensors().items())


# Ties and buffers of networks that are not ours ---------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("options", [{}, {"keep_batch_norm": True}, {"dtype": "float16"}], ids=str)
@pytest.mark.parametrize("network", ["tied", "plain"])
def test_ties_stay_ties_however_the_network_comes(
    network: str, options: dict[str, Any], suffix: str, module: str, tmp_path: Path
) -> None:
    architecture = architecture_from_callable(f"{module}:{network}", (4, 5))
    state = architecture.build().state_dict()
    packed = pack_checkpoint(saved(state, tmp_path, suffix), architecture=architecture, **options)
    layout = packed.prep.layout
    assert layout.ties == (("first.weight", "last.weight"),)
    num_values = 16 + 4 + 4 + 16 + 4 + 3  # one weight for both, two biases, the convolution, scale
    assert layout.total == num_values + (16 if network == "tied" and options.get("keep_batch_norm") else 0)
    unpacked = packed.prep.tensors()
    assert unpacked["first.weight"].data_ptr() == unpacked["last.weight"].data_ptr()
    assert same(unpacked["first.weight"], state["first.weight"].to(unpacked["first.weight"].dtype))
    assert unpacked["table"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_tied_names_with_different_values_are_no_such_network(module: str, tmp_path: Path) -> None:
    architecture = architecture_from_callable(f"{module}:plain", (4, 5))
    state = dict(architecture.build().state_dict())
    state["first.weight"] = state["first.weight"] + 1
    with pytest.raises(LayoutMismatch) as caught:
        pack_checkpoint(saved(state, tmp_path), architecture=architecture)
    assert str(caught.value).endswith(
        "'first.weight' and 'last.weight' are tied in the network, but their values differ."
    )


def test_ties_of_an_unknown_network(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    packed = pack_checkpoint(saved({"b": weight, "a": weight, "c": weight.clone()}, tmp_path))
    assert packed.prep.layout.ties == (("b", "a"),)
    assert packed.prep.layout.total == 18
    unpacked = packed.prep.tensors()
    assert unpacked["a"].data_ptr() == unpacked["b"].data_ptr() != unpacked["c"].data_ptr()


class Versioned(nn.Module):
    """A module that asks for its version when it loads, as torchvision's MNASNet does."""

    _version = 3

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        assert metadata["version"] == 3
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel])
def test_prefixes_and_versions_of_modules_come_back(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    network = wrap(nn.Sequential(Versioned(), nn.BatchNorm1d(2)))
    path = tmp_path / "model.prep.safetensors"
    packed = pack_checkpoint(saved(network.state_dict(), tmp_path), keep_batch_norm=True)
    assert packed.prep.origin.versions == {"0": 3, "1": 2}
    save_prep(packed.prep, path)
    for strict_names, target in ((True, network), (False, getattr(network, "module", network))):
        save_state_dict(load_prep(path).state_dict(prefix=strict_names), tmp_path / "back.pt", overwrite=True)
        target.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True))
        with pytest.raises(KeyError):  # the versions are needed
            target.load_state_dict(dict(torch.load(tmp_path / "back.pt", weights_only=True)))


def test_a_network_whose_only_child_is_called_module_loads_again(tmp_path: Path) -> None:
    packed = pack_checkpoint(saved({"module.weight": torch.ones(2, 3), "module.bias": torch.ones(2)}, tmp_path))
    assert packed.prep.origin.prefix == "module."
    save_prep(packed.prep, tmp_path / "m.prep.safetensors")
    loaded = load_prep(tmp_path / "m.prep.safetensors")
    assert loaded.state_dict().keys() == {"module.weight", "module.bias"}
    assert loaded.tensors().keys() == loaded.state_dict(prefix=False).keys() == {"weight", "bias"}


def test_integer_tensors_are_kept_beside_the_matrix(tmp_path: Path) -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    state = {"w": torch.ones(3), "perm": torch.arange(6), "bytes": torch.ones(3, dtype=torch.uint8)}
    state |= {"a.mask": mask, "b.mask": mask, "c.mask": mask[1:]}  # one memory under several names
    save_prep(pack_checkpoint(saved(state, tmp_path)).prep, tmp_path / "m.prep.safetensors")
    found = load_prep(tmp_path / "m.prep.safetensors").tensors()
    assert found.keys() == state.keys()
    assert all(same(found[name], tensor) for name, tensor in state.items() if name != "w")


def test_a_network_is_taken_from_under_its_prefix(tmp_path: Path) -> None:
    network = trained()
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    path = saved({"state_dict": {**state, "criterion.pos_weight": torch.ones(10)}}, tmp_path)
    architecture = prepkit.architecture(DIGITS)
    with pytest.raises(
        LayoutMismatch, match=r"after 'model\.', beside criterion\.pos_weight; pass prefix='model\.' to"
    ):
        pack_checkpoint(path, architecture=architecture)
    for prefix in ("model", "model."):
        packed = pack_checkpoint(path, prefix=prefix)
        assert packed.prep.origin.architecture == DIGITS
        assert packed.left_out == ("criterion.pos_weight",)
    assert fold_checkpoint(path, prefix="model")[0].keys() == packed.prep.tensors().keys()
    with pytest.raises(
        CheckpointError, match=r"no names that begin with 'modle\.'; they begin with criterion\., model\."
    ):
        pack_checkpoint(path, prefix="modle")
    whole = saved({"module.w": torch.ones(3)}, tmp_path)
    assert pack_checkpoint(whole, prefix="").prep.tensors().keys() == {"module.w"}


def test_eight_bit_floats_are_cast_where_a_dtype_is_given(tmp_path: Path) -> None:
    values = torch.tensor([0.5, -448.0, 0.0625]).to(torch.float8_e4m3fn)
    path = saved({"w": values}, tmp_path)
    with pytest.raises(LayoutMismatch, match=r"has dtype float8_e4m3fn; .* Pass dtype='float32' to cast it\."):
        pack_checkpoint(path)
    assert pack_checkpoint(path, dtype="bfloat16").prep.tensors()["w"].tolist() == [0.5, -448.0, 0.0625]


def test_other_shapes_are_named_where_the_network_cannot_be_folded(module: str, tmp_path: Path) -> None:
    architecture = architecture_from_callable(f"{module}:unfoldable", (4,))
    with pytest.raises(LayoutMismatch, match=r"1\.weight is \[5\], expected \[4\]"):
        pack_checkpoint(
            saved({**architecture.build().state_dict(), "1.weight": torch.ones(5)}, tmp_path),
            architecture=architecture,
            keep_batch_norm=True,
        )


# What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, about quantised and sparse tensors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.arange(6).reshape(2, 3), "there is nothing to pack: no floating-point parameters were found."),
        (lambda: torch.ones(3, dtype=torch.complex64), "'w' is complex (complex64); a PRep holds dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "'w' is quantised (qint8)"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "'w' has dtype float8_e4m3fn; a PRep holds"),
        (lambda: torch.ones(3, 3).to_sparse(), "'w' is sparse (float32)"),
        (lambda: torch.ones(3, 3).to_sparse_csr(), "'w' is sparse (float32)"),
        (lambda: torch.ones(3, device="meta"), "'w' is on the meta device, so it has no values"),
        (lambda: torch.ones(0, 3), "there is nothing to pack: its tensors hold no values."),
        (lambda: torch.tensor(3), "there is nothing to pack: no floating-point parameters were found."),
        (lambda: torch.tensor([1.0, float("nan")]), "'w' holds 1 NaN and 0 infinite of 2 values; pass allow_nonf"),
    ],
)
def test_tensors_that_a_prep_cannot_hold(make: Callable[[], Tensor], message: str, tmp_path: Path) -> None:
    path = saved({"w": make()}, tmp_path)
    with pytest.raises(PrepkitError) as caught:
        pack_checkpoint(path)
    assert str(caught.value).startswith(f"'{path}': {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("convert", "message", "named"),
    [
        (lambda t: t.long(), "is an integer parameter (int64)", True),  # else it may be a table of indices
        (lambda t: t.to(torch.complex64), "is complex", True),
        (lambda t: t.to(torch.complex64), "is complex", False),
    ],
)
def test_a_wrong_dtype_is_said_also_where_the_network_is_known(
    convert: Callable[[Tensor], Tensor], message: str, named: bool, tmp_path: Path
) -> None:
    state = dict(trained().state_dict())
    state["stages.1.0.conv1.weight"] = convert(state["stages.1.0.conv1.weight"])
    architecture = prepkit.architecture(DIGITS) if named else None
    with pytest.raises(LayoutMismatch) as caught:
        pack_checkpoint(saved(state, tmp_path), architecture=architecture)
    assert f"'stages.1.0.conv1.weight' {message}" in str(caught.value)


def test_names_and_shapes_that_do_not_match_are_listed(tmp_path: Path) -> None:
    state = dict(trained().state_dict())
    del state["linear.bias"]
    state["extra"], state["linear.weight"] = torch.ones(2), torch.ones(11, 16)
    with pytest.raises(LayoutMismatch) as caught:
        pack_checkpoint(saved(state, tmp_path), architecture=prepkit.architecture(DIGITS))
    for part in ("missing (linear.bias)", "unexpected (extra)", "linear.weight is [11, 16], expected [10, 16]", DIGITS):
        assert part in str(caught.value)


def test_batch_norm_of_an_unknown_network_names_both_ways_out(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()
    path = saved(dict(state), tmp_path)
    with pytest.raises(FusionError) as caught:
        pack_checkpoint(path)
    for part in (f"'{path}' has BatchNorm ('1')", "(architecture=...)", "(keep_batch_norm=True)"):
        assert part in str(caught.value)
    assert pack_checkpoint(path, keep_batch_norm=True).prep.layout.num_parameters == 18 + 2 + 2 + 2


def test_a_prep_is_not_packed_again(tmp_path: Path) -> None:
    path = tmp_path / "model.prep.safetensors"
    save_prep(pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path)).prep, path)
    for function in (pack_checkpoint, fold_checkpoint):
        with pytest.raises(CheckpointError, match="is a PRep already; `prepkit unpack` makes a checkpoint of it"):
            function(path)


@pytest.mark.parametrize("height", [4 * 10**13, 4 * 10**30])
def test_a_height_beyond_all_memory(height: int, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidShape, match=rf"no memory for a PRep of {height} x 512 float32 \(.* bytes\); use a smaller"
    ):
        pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path), height=height)


def test_a_width_beyond_all_memory_is_what_should_be_smaller(tmp_path: Path) -> None:
    with pytest.raises(InvalidShape, match=r"no memory for a PRep of 4 x 80+ float32 .*; use a smaller width\.$"):
        pack_checkpoint(saved({"w": torch.ones(3)}, tmp_path), width=8 * 10**13)


def test_a_wrong_width_is_said_before_the_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InvalidShape, match="width 12 is not a multiple of 8"):
        pack_checkpoint(tmp_path / "missing.pt", width=12)


# Finite -------------------------------------------------------------------------------------------------------


def test_every_value_that_is_not_finite_is_counted() -> None:
    nan, inf = float("nan"), float("inf")
    fine = {"a": torch.ones(3), "i": torch.tensor([1, 2]), "e": torch.ones(0), "max": torch.tensor(3.4e38)}
    check_finite(fine, "'x'")
    for values, found in (([nan, 1, nan], "2 NaN and 0 infinite"), ([inf, -inf, nan], "1 NaN and 2 infinite")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            with pytest.raises(CheckpointError, match=f"^'x': 'b' holds {found} of 3 values; pass"):
                check_finite({**fine, "b": torch.tensor(values, dtype=dtype)}, "'x'")


def test_values_that_are_not_finite_keep_their_bits(tmp_path: Path) -> None:
    patterns = torch.tensor([0x7FC00001, 0x7F800000, -0x00800000, 0x7FA12345, -0x80000000, 1], dtype=torch.int32)
    state = {"w": patterns.view(torch.float32)}
    unpacked = pack_checkpoint(saved(state, tmp_path), allow_nonfinite=True).prep.tensors()
    assert unpacked["w"].view(torch.int32).tolist() == patterns.tolist()


# The check of the round trip ----------------------------------------------------------------------------------


def test_the_round_trip_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(trained().state_dict(), tmp_path)
    pack = Layout.pack

    def corrupt(self: Layout, *arguments: Any, **options: Any) -> Tensor:
        prep = pack(self, *arguments, **options)
        start = next(slot.start for slot in self if slot.name == "stages.1.0.conv2.bias")
        prep.view(-1)[start] = torch.nextafter(prep.view(-1)[start], torch.tensor(9.0))
        return prep

    monkeypatch.setattr(Layout, "pack", corrupt)
    with pytest.raises(VerificationError, match=r"the round trip failed for stages\.1\.0\.conv2\.bias; nothing was"):
        pack_checkpoint(path)


def test_the_check_sees_what_equality_does_not() -> None:
    def prep(tensor: Tensor) -> PRep:
        layout = Layout.of_tensors({"w": tensor})
        return PRep(layout.pack({"w": tensor}, layout.shape(8)), layout)

    zero, nan = torch.tensor([0.0]), torch.tensor([float("nan")])
    check_round_trip(prep(nan), {"w": nan})  # NaN is not equal to itself, but its bits are
    for packed, original in ((zero, -zero), (zero, zero.double()), (zero, torch.zeros(1, 1))):
        with pytest.raises(VerificationError, match="failed for w"):
            check_round_trip(prep(packed), {"w": original})
    with pytest.raises(VerificationError, match="failed for other"):
        check_round_trip(prep(zero), {"w": zero, "other": zero})
    with pytest.raises(VerificationError):
        check_round_trip(prep(zero), {})


# Folding alone, and describing --------------------------------------------------------------------------------


def test_folding_alone(tmp_path: Path) -> None:
    state = trained().state_dict()
    tensors, fusion = fold_checkpoint(saved(state, tmp_path))
    expected = folded_by_hand(state)
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=3e-7, atol=1e-9)
    assert len(fusion.folded) == 9


def test_what_cannot_be_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = saved(prepkit.architecture("lenet_like@digits").build().state_dict(), tmp_path)
    with pytest.raises(FusionError, match="has no BatchNorm to fold; `prepkit pack` takes it as it is"):
        fold_checkpoint(path)
    path = saved(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(), tmp_path)
    with pytest.raises(FusionError, match="has BatchNorm") as caught:
        fold_checkpoint(path)
    assert "(architecture=...)" in str(caught.value)
    assert "keep_batch_norm" not in str(caught.value)  # which `prepkit fuse` does not have


def test_describing(tmp_path: Path) -> None:
    facts, layout = facts_of_checkpoint(saved({"model": dict(trained().state_dict())}, tmp_path))
    assert facts == {
        "format": "torch zip",
        "key": "model",
        "prefix": None,
        "architecture": DIGITS,
        "class_id": 2,
        "num_parameters": 5_142,
        "batch_norms": 9,
    }
    assert layout.num_parameters == 5_142


@pytest.mark.parametrize("keep", [True, False])
def test_a_description_has_the_order_in_which_it_is_packed(keep: bool, tmp_path: Path) -> None:
    path = saved(dict(trained().state_dict()), tmp_path, ".safetensors")
    if not keep:
        path = saved(dict(fold_checkpoint(path)[0]), tmp_path, ".safetensors")
    assert facts_of_checkpoint(path)[1] == pack_checkpoint(path, keep_batch_norm=keep).prep.layout


@pytest.mark.parametrize("function", [pack_checkpoint, fold_checkpoint])
def test_weights_that_fold_to_no_number_name_the_file_and_the_way_out(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    state = dict(trained().state_dict())
    next(iter(state.values())).view(-1)[0] = math.nan
    path = saved(state, tmp_path)
    options = {"allow_nonfinite": True} if function is pack_checkpoint else {}
    with pytest.raises(FusionError, match=rf"^'{path}': .* is not finite: .* pack_checkpoint\(keep_batch_norm=True\)"):
        function(path, **options)


# Plain state dicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".PT"])
def test_a_state_dict_is_read_without_prepkit(suffix: str, tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tensors = {"b": weight, "a": weight, "n": torch.tensor(7), "t": torch.randn(4, 3).t()}
    path = tmp_path / f"model{suffix}"
    save_state_dict(tensors, path)
    read = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert (read["a"].data_ptr() == read["b"].data_ptr()) == (suffix != ".safetensors")
    assert os.listdir(tmp_path) == [path.name]


def test_a_view_does_not_take_its_whole_storage_along(tmp_path: Path) -> None:
    large = torch.randn(100_000)
    save_state_dict({"w": large[:10]}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 5_000


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_tensors_give_the_same_bytes_under_any_name(suffix: str, tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2)}
    for name in ("one", "another"):
        save_state_dict(tensors, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"another{suffix}").read_bytes()


def test_state_dicts_that_are_not_written(tmp_path: Path) -> None:
    for name in ("model.onnx", "model"):
        with pytest.raises(OutputError, match=r"the suffix says the format of a model; use one of \.pt, \.pth, \.safe"):
            save_state_dict({"w": torch.ones(1)}, tmp_path / name)
    (tmp_path / "model.pt").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        save_state_dict({"w": torch.ones(1)}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_text() == "old"
    save_state_dict({"w": torch.ones(1)}, tmp_path / "model.pt", overwrite=True)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["w"] == 1


# Memory -------------------------------------------------------------------------------------------------------


def peak_beyond_torch(source: Path, target: Path) -> int:
    """Bytes of memory that `prepkit pack` takes at its peak beyond what `import torch` does, in a fresh process."""
    # VmHWM, not ru_maxrss: that one starts at the peak of the process that forked, which may be larger than ours.
    code = """
        import sys
        import torch
        def peak():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        before = peak()
        from prepkit.cli import main
        main(["pack", sys.argv[1], "-o", sys.argv[2]], standalone_mode=False)
        print((peak() - before) * 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.xdist_group("time and memory")
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_packing_takes_little_more_than_twice_the_file(tmp_path: Path) -> None:
    """One copy is the mapped file, one the PRep. A third would be 40 MB; the noise allowed for is a quarter of that."""
    peaks = {}
    for megabytes in (1, 40):
        state = {f"layers.{index}.weight": torch.randn(megabytes * 25_000) for index in range(10)}
        source = tmp_path / f"{megabytes}.safetensors"
        save_file(state, source)
        peaks[megabytes] = peak_beyond_torch(source, tmp_path / f"{megabytes}.prep.safetensors")
    # The small file's peak is the fixed cost: prepkit's modules and what the libraries import late, about 14 MB.
    assert peaks[1] < 60e6
    assert 40e6 < peaks[40] < 2.2 * 40e6 + peaks[1] + 10e6


def test_a_network_is_no_file():
    with pytest.raises(CheckpointError, match=r"takes the path of a file, not a Linear; .* Layout\.of\(network\)"):
        pack_checkpoint(torch.nn.Linear(3, 2))
