"""From a checkpoint to a PRep: against folds written out here, bit for bit."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_samples import DIGITS, folded_by_hand, same, saved, trained
from safetensors.torch import save_file
from torch import Tensor

import prepkit
from prepkit.casting import check_finite
from prepkit.errors import (
    CheckpointError,
    VerificationError,
)
from prepkit.packing import (
    check_round_trip,
    pack_checkpoint,
)
from prepkit.prep.file import PRep
from prepkit.prep.layout import Layout

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
    command = [sys.executable, "-c", textwrap.dedent(code), str(source), str(target)]  # a fork maps torch once more
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
