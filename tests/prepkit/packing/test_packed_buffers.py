"""Ties, prefixes, versions and integer tensors come back with the network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_samples import DIGITS, same, saved, trained
from torch import nn

import prepkit
from prepkit.checkpoint.export import save_state_dict
from prepkit.errors import (
    CheckpointError,
    LayoutMismatch,
)
from prepkit.families.registry import architecture_from_callable
from prepkit.packing import (
    fold_checkpoint,
    pack_checkpoint,
)
from prepkit.prep.file import load_prep, save_prep


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
