"""Checkpoints under names that the network itself renames when it loads them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prepkit.errors import LayoutMismatch
from prepkit.families.registry import architecture_from_callable
from prepkit.packing import fold_checkpoint, pack_checkpoint


def with_old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))


def with_new_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))


class Encoder(nn.Module):
    def __init__(self, wrapper: str = "") -> None:
        super().__init__()
        pair = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.enc = nn.ModuleDict({wrapper: pair}) if wrapper else pair
        self.wrapper, self.head = wrapper, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        encoded = self.enc[self.wrapper](x) if isinstance(self.enc, nn.ModuleDict) else self.enc(x)
        return self.head(encoded.mean((2, 3)))


def compiled_encoder() -> nn.Module:
    """The names that torch.compile gives."""
    return Encoder("_orig_mod")


class Renaming(nn.Module):
    """Its layer was once called `fc`, in checkpoints of version 1, which held the transpose of the weight."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}linear.weight"] = state_dict.pop(f"{prefix}fc.weight").T
            state_dict[f"{prefix}linear.bias"] = state_dict.pop(f"{prefix}fc.bias")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Dropping(nn.Linear):
    """Throws away what it does not know."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.register_load_state_dict_pre_hook(lambda module, state, *_: state.pop("extra.weight", None))


def saved(tmp_path: Path, state: Any) -> Path:
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def built(name: str, *shape: int) -> Any:
    return architecture_from_callable(f"{__name__}:{name}", shape)


def test_weight_norm_takes_the_names_of_the_old_one(tmp_path):
    network = with_old_weight_norm()
    path = saved(tmp_path, network.state_dict())
    packed = pack_checkpoint(path, architecture=built("with_new_weight_norm", 4))
    assert packed.renamed == ("0.weight_g", "0.weight_v")
    loaded = with_new_weight_norm()
    loaded.load_state_dict(packed.prep.state_dict())
    x = torch.randn(5, 4)
    torch.testing.assert_close(loaded(x), network(x))
    assert torch.equal(packed.prep.tensors()["0.parametrizations.weight.original1"], network.state_dict()["0.weight_v"])


@pytest.mark.parametrize(("source", "target"), [("compiled_encoder", "Encoder"), ("Encoder", "compiled_encoder")])
def test_the_name_of_a_wrapper_inside_others(source, target, tmp_path):
    architectures = {name: built(name, 3, 6, 6) for name in (source, target)}
    network: Any = architectures[source].build().eval()
    nn.init.normal_(network.head.weight)
    path = saved(tmp_path, network.state_dict())
    packed = pack_checkpoint(path, architecture=architectures[target])
    assert [name for name in packed.renamed if "head" in name] == []
    assert len(packed.renamed) == 6
    loaded = architectures[target].build_folded()
    loaded.load_state_dict(packed.prep.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(loaded(x), network(x))
    tensors, fusion = fold_checkpoint(path, architectures[target])
    assert len(fusion.folded) == 1
    assert tensors.keys() == packed.prep.tensors().keys()


@pytest.mark.parametrize("metadata", [True, False])
def test_a_module_that_asks_for_its_version_gets_it(metadata, tmp_path):
    weight, bias = torch.randn(4, 3), torch.randn(3)
    state: Any = nn.Module().state_dict()
    state |= {"fc.weight": weight, "fc.bias": bias}
    state._metadata = {"": {"version": 1}} if metadata else {}
    packed = pack_checkpoint(saved(tmp_path, state), architecture=built("Renaming", 4))
    assert packed.renamed == ("fc.weight", "fc.bias")
    assert torch.equal(packed.prep.tensors()["linear.weight"], weight.T)
    loaded = Renaming()
    loaded.load_state_dict(packed.prep.state_dict())  # with the version of today, so that it renames nothing
    x = torch.randn(5, 4)
    torch.testing.assert_close(loaded(x), x @ weight + bias)


def test_a_module_that_asks_for_its_version_takes_its_own_names_without_a_note(tmp_path):
    """A .safetensors file notes no versions; names that are those of today mean the version of today."""
    state = dict(Renaming().state_dict())
    packed = pack_checkpoint(saved(tmp_path, state), architecture=built("Renaming", 4))
    assert packed.renamed == ()
    assert torch.equal(packed.prep.tensors()["linear.weight"], state["linear.weight"])


def test_a_module_that_fails_to_load_is_named(tmp_path):
    state: Any = Renaming().state_dict()
    state._metadata = {"": {"version": 1}}  # it asks for the names of version 1
    with pytest.raises(LayoutMismatch, match=r"model.pt' does not load into .*Renaming: KeyError: 'fc.weight'"):
        pack_checkpoint(saved(tmp_path, state), architecture=built("Renaming", 4))


def test_a_hook_that_throws_tensors_away_does_not_make_a_checkpoint_fit(tmp_path):
    state = {**Dropping().state_dict(), "extra.weight": torch.ones(2)}
    Dropping().load_state_dict(state)
    with pytest.raises(LayoutMismatch, match=r"1 unexpected \(extra.weight\)"):
        pack_checkpoint(saved(tmp_path, state), architecture=built("Dropping", 4))


def test_other_names_and_shapes_are_still_refused(tmp_path):
    for other in (nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 3))):
        with pytest.raises(LayoutMismatch, match=r"is no .*with_new_weight_norm: the tensors do not fit"):
            pack_checkpoint(saved(tmp_path, other.state_dict()), architecture=built("with_new_weight_norm", 4))


def test_what_keeps_its_names_counts_as_not_renamed(tmp_path):
    state = Encoder().state_dict()
    assert pack_checkpoint(saved(tmp_path, state), architecture=built("Encoder", 3, 6, 6)).renamed == ()
