"""Tests of reading checkpoints: formats, names, wrappers, keys and prefixes."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_samples import MEGABYTE, SAVERS, assert_same, refusal, saved, weights
from safetensors.torch import save_file
from torch import Tensor, nn

from prepkit.checkpoint.load import WRAPPERS, Checkpoint, load_checkpoint


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.json", "model.bin", "model"])
@pytest.mark.parametrize("stored", SAVERS)
def test_every_format_is_told_by_its_content_whatever_its_name(stored: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    SAVERS[stored](weights(), path)
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint, weights())
    assert (checkpoint.path, checkpoint.format) == (path, stored)
    assert (checkpoint.key, checkpoint.prefix, checkpoint.dropped) == (None, "", ())


def test_path_may_be_a_string_or_a_link(tmp_path: Path) -> None:
    path = saved(weights(), tmp_path)
    (tmp_path / "link.safetensors").symlink_to(path)
    assert_same(load_checkpoint(str(path)), weights())
    assert_same(load_checkpoint(tmp_path / "link.safetensors"), weights())


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_order_of_a_state_dict_is_kept(stored: str, tmp_path: Path) -> None:
    SAVERS[stored](weights(), tmp_path / "m")
    assert list(load_checkpoint(tmp_path / "m")) == list(weights())


def test_checkpoint_is_a_frozen_mapping_that_can_be_pickled(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(weights(), tmp_path))
    assert isinstance(checkpoint, Checkpoint)
    assert len(checkpoint) == 4
    assert "conv.bias" in checkpoint
    assert checkpoint.get("nothing") is None
    assert "tensor(" not in repr(checkpoint)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.key = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        checkpoint["x"] = torch.ones(1)  # type: ignore[index]
    assert_same(pickle.loads(pickle.dumps(checkpoint)), weights())


def test_writing_into_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    for stored, saver in SAVERS.items():
        path = tmp_path / stored.replace(" ", "-")
        saver(weights(), path)
        load_checkpoint(path)["conv.weight"].zero_()
        assert_same(load_checkpoint(path), weights())


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_parameters_become_tensors_and_ties_stay_ties(stored: str, tmp_path: Path) -> None:
    shared = nn.Parameter(torch.rand(3, 2))
    SAVERS[stored]({"a": shared, "b": shared, "c": nn.Parameter(torch.rand(2))}, tmp_path / "m")
    found = load_checkpoint(tmp_path / "m")
    assert {type(tensor) for tensor in found.values()} == {Tensor}
    assert not any(tensor.requires_grad for tensor in found.values())
    assert torch.equal(found["a"], shared)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert found["a"].data_ptr() != found["c"].data_ptr()


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_unusual_tensors_pass_through(stored: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales, zeros = torch.full((4,), 0.1), torch.zeros(4)
        quantised = torch.quantize_per_channel(torch.rand(4, 6), scales, zeros, 0, torch.quint4x2)  # two in a byte
    base = torch.rand(4, 6)
    meta = torch.empty(MEGABYTE, device="meta")
    value = {"q": quantised, "s": torch.eye(3).to_sparse(), "m": meta, "empty": torch.ones(0)}
    SAVERS[stored]({**value, "transposed": base.t(), "row": base[1], "complex": torch.ones(2) * 1j}, tmp_path / "m")
    found = load_checkpoint(tmp_path / "m")
    assert found["q"].is_quantized
    assert torch.equal(found["q"].dequantize(), quantised.dequantize())
    assert torch.equal(found["s"].to_dense(), torch.eye(3))
    assert (found["m"].is_meta, found["m"].shape, found["empty"].shape) == (True, (MEGABYTE,), (0,))
    assert torch.equal(found["transposed"], base.t())
    assert torch.equal(found["row"], base[1])
    assert torch.equal(found["complex"], torch.ones(2) * 1j)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(weights(), tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("model/data.pkl")
    assert_same(load_checkpoint(path), weights())


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_every_wrapper_is_unwrapped(wrapper: str, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = saved({"epoch": 3, "loss": torch.tensor(0.1), "optimizer": optimizer, wrapper: weights()}, tmp_path)
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint, weights())
    assert checkpoint.key == wrapper


def test_the_wrappers_of_the_field_are_known() -> None:
    named = (
        "state_dict model_state_dict model_state model net network module weights params ema state_dict_ema "
        "model_ema ema_state_dict generator"
    )
    assert set(named.split()) <= WRAPPERS


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (OrderedDict(weights()), None),
        ({"checkpoint": {"model": weights(), "step": 3}}, "checkpoint.model"),
        ({"ema": {"decay": 0.9, "module": weights()}, "epoch": 1}, "ema.module"),
        ((weights(), 0.93), "0"),
        ([3, "note", weights()], "2"),
        (({"state_dict": weights(), "epoch": 3}, 0.93), "0.state_dict"),
        ({"model": weights(), "criterion": {"weight": torch.ones(3)}, "history": [1.0, 2.0]}, "model"),
    ],
)
def test_one_state_dict_is_found_where_it_is(value: object, key: str | None, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(value, tmp_path))
    assert_same(checkpoint, weights())
    assert checkpoint.key == key


def test_several_state_dicts_are_listed_with_their_sizes_and_taken_by_key(tmp_path: Path) -> None:
    path = saved({"model": weights(), "model_ema": {"x": torch.ones(1)}, "epoch": 1}, tmp_path)
    message = refusal(path)
    assert "2 state dicts: 'model' (4 tensors), 'model_ema' (1 tensor); choose one with key='NAME'" in message
    assert_same(load_checkpoint(path, "model"), weights())
    assert_same(load_checkpoint(path, key="model_ema"), {"x": torch.ones(1)})


@pytest.mark.parametrize(
    ("value", "key", "taken"),
    [
        ({"my_net": weights(), "epoch": 3}, "my_net", "my_net"),
        ({"model": weights(), "ema": {"shadow": weights(2.0)}}, "model", "model"),
        ({"runs": {"best": {"model": weights()}, "last": weights(2.0)}}, "runs.best", "runs.best.model"),
        ({"a.b": {"c.d": weights()}, "a": {"c": 1}}, "a.b.c.d", "a.b.c.d"),
        ([weights(2.0), weights()], "1", "1"),
        ({"models": [weights(2.0), weights()]}, "models.1", "models.1"),
    ],
)
def test_a_key_leads_anywhere(value: object, key: str, taken: str, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(value, tmp_path), key)
    assert_same(checkpoint, weights())
    assert checkpoint.key == taken


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        ({"my_net": weights(), "lr": 1}, None, "no state dict under a usual key, but 'my_net' (4 tensors); choose"),
        ({"ema": {"shadow": weights()}}, None, "but 'ema.shadow' (4 tensors)"),
        ([weights(), weights()], None, "2 state dicts: '0' (4 tensors), '1' (4 tensors)"),
        ({"generator": weights(), "discriminator": weights()}, None, "2 state dicts"),
        ({"model": weights(), "ema": {"state_dict": weights()}}, None, "'ema.state_dict' (4 tensors)"),
        ({"model": weights(), "epoch": 1}, "modle", "no key 'modle' among 'model', 'epoch'. Did you mean 'model'?"),
        (weights(), "model", "no key 'model': it holds a dict of 'conv.weight', "),
        (weights(), "conv.bias", "key 'conv.bias', holds no named tensors but a single tensor of shape [2]"),
        ({"model": weights(), "epoch": 1}, "epoch", "an object of type int"),
        ({"epoch": 1, "lr": 0.1}, None, "no named tensors but a dict of 'epoch', 'lr'"),
        ({}, None, "an empty dict"),
        ({"model": {}}, None, "no named tensors"),
        (torch.ones(3), None, "a single tensor of shape [3]"),
        ([torch.ones(3), torch.ones(2)], None, "a list of Tensor"),
        (3, None, "an object of type int"),
        ({0: torch.ones(1), 1: torch.ones(2)}, None, "tensors need names, found 0, 1"),
        ({"model": {"a": torch.ones(1), 5: torch.ones(1)}}, None, "key 'model': tensors need names, found 5"),
        ({**weights(), "history": [3]}, None, "'history' (list), which are none; save the tensors alone"),
        ({**weights(), "a": np.ones(2)}, None, "'a' (an array of numpy), which are none; save the tensors alone"),
        ({"loss": torch.tensor(1.0), "epoch": 3}, None, "'epoch' (int), which are none; save the tensors alone"),
        ({"model": {**weights(), "fc._extra_state": {"a": 1}}, "lr": 1}, None, "'fc._extra_state' (dict)"),
        ({"model": {**weights(), "scale": 0.5}, "ema": weights()}, None, "2 state dicts"),
    ],
)
def test_what_is_not_one_state_dict_is_refused(value: object, key: str | None, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(saved(value, tmp_path), key)


def test_safetensors_has_no_keys(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "m.safetensors")
    assert "leave the key out" in refusal(tmp_path / "m.safetensors", "model")
    save_file({}, tmp_path / "empty.safetensors")
    assert "holds no named tensors" in refusal(tmp_path / "empty.safetensors")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod.", "_orig_mod.module.module.", ""],
)
@pytest.mark.parametrize("stored", SAVERS)
def test_prefixes_of_wrappers_are_stripped(stored: str, prefix: str, tmp_path: Path) -> None:
    SAVERS[stored]({prefix + name: tensor for name, tensor in weights().items()}, tmp_path / "m")
    checkpoint = load_checkpoint(tmp_path / "m")
    assert_same(checkpoint, weights())
    assert (checkpoint.prefix, checkpoint.dropped) == (prefix, ())


@pytest.mark.parametrize(
    "names",
    [
        ("module.a", "a"),
        ("module.a", "other"),
        ("module.", "module.a"),
        ("modules.a", "modules.b"),
        ("model.a", "model.b"),
        ("n_averaged", "a"),
        ("n_averaged", "_orig_mod.a"),
        ("n_averaged",),
    ],
)
def test_a_prefix_that_not_all_names_carry_stays(names: tuple[str, ...], tmp_path: Path) -> None:
    value = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    checkpoint = load_checkpoint(saved(value, tmp_path))
    assert_same(checkpoint, value)
    assert (checkpoint.prefix, checkpoint.dropped) == ("", ())


@pytest.mark.parametrize("outer", ["", "module.", "_orig_mod."])
def test_the_counter_of_an_averaged_model_is_left_out(outer: str, tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    averaged = torch.optim.swa_utils.AveragedModel(network).state_dict()
    checkpoint = load_checkpoint(saved({outer + name: tensor for name, tensor in averaged.items()}, tmp_path))
    assert_same(checkpoint, network.state_dict())
    assert (checkpoint.prefix, checkpoint.dropped) == (f"{outer}module.", (f"{outer}n_averaged",))


def test_real_wrappers_are_undone(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    wrapped = nn.DataParallel(torch.compile(network, backend="eager"))
    checkpoint = load_checkpoint(saved({"state_dict": wrapped.state_dict()}, tmp_path))
    assert_same(checkpoint, network.state_dict())
    assert (checkpoint.key, checkpoint.prefix) == ("state_dict", "module._orig_mod.")


@pytest.mark.parametrize(
    ("extra", "names", "prefix"),
    [
        ({"pytorch-lightning_version": "2.4.0"}, ("model.a", "model.b"), "model."),
        ({"pytorch-lightning_version": "2.4.0"}, ("net._orig_mod.a", "net._orig_mod.b"), "net._orig_mod."),
        ({"pytorch-lightning_version": "2.4.0"}, ("model.model.a", "model.model.b"), "model."),
        ({"pytorch-lightning_version": "2.4.0"}, ("model.a", "criterion.b"), ""),
        ({}, ("model.a", "model.b"), ""),
    ],
)
def test_lightning_networks_are_taken_out_of_their_module(
    extra: dict[str, str], names: tuple[str, ...], prefix: str, tmp_path: Path
) -> None:
    value = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    path = saved({**extra, "state_dict": value, "optimizer_states": [{"state": {}}], "callbacks": {}}, tmp_path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.prefix == prefix
    assert_same(checkpoint, {name[len(prefix) :]: tensor for name, tensor in value.items()})
