"""Reading checkpoints: what comes back, what is refused, and that no file runs code, fills memory or shows a traceback.

Values are compared with tensors made here. Where torch accepts what prepkit refuses, the test shows that too: it would
not mean anything if the attack did not work.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from prepkit.checkpoint.load import WRAPPERS, Checkpoint, load_checkpoint, sha256_of
from prepkit.errors import CheckpointError, UnsafeCheckpoint

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
MEGABYTE = 1 << 20


def weights(scale: float = 1.0) -> dict[str, Tensor]:
    """A small state dict with values, shapes and dtypes that differ from each other."""
    return {
        "conv.weight": torch.arange(24.0).reshape(2, 3, 4) * scale,
        "conv.bias": torch.tensor([0.5, -1.5], dtype=torch.float16) * scale,
        "norm.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).reshape(3, 2) * scale,
    }


def save_zip(value: object, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_index(tensors: Mapping[str, Tensor], path: Path, shards: int = 2) -> None:
    """An index at `path` and its shards beside it, each with every second (third, ...) tensor."""
    places = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for shard in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, path.parent / shard)
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def save_torch_index(tensors: Mapping[str, Tensor], path: Path) -> None:
    """An index of parts that torch.save wrote, as transformers once saved large models."""
    first, *others = tensors
    torch.save({first: tensors[first]}, path.parent / "part-0.bin")
    torch.save({name: tensors[name] for name in others}, path.parent / "part-1.bin")
    places = {name: f"part-{int(name != first)}.bin" for name in tensors}
    path.write_text(json.dumps({"weight_map": places}))


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "torch zip": save_zip,
    "torch legacy": save_legacy,
    "safetensors": save_file,
    "safetensors index": save_index,
    "torch index": save_torch_index,
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].device.type == "cpu"
        assert torch.equal(found[name], tensor), name


def refusal(path: Path, key: str | None = None) -> str:
    """The message with which a file is refused; it always names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, key)
    assert str(path) in str(caught.value)
    return str(caught.value)


def unsafe(path: Path) -> str:
    message = refusal(path)
    with pytest.raises(UnsafeCheckpoint):
        load_checkpoint(path)
    return message


def saved(value: object, folder: Path, name: str = "model.pt") -> Path:
    torch.save(value, folder / name)
    return folder / name


# Formats and names


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


# Wrappers and keys


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
        ({**weights(), "epoch": 3}, None, "'epoch' (int), which are none; save the tensors alone"),
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


# Prefixes


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


# Files that are something else


def zip_bytes(*names: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"x" * 10)
    return buffer.getvalue()


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty (0 bytes)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "run `git lfs pull`"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (gzip.compress(b"weights", mtime=0), "decompress it with `gunzip`"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "numpy array"),
        (b"GGUF\x03\x00\x00\x00" + bytes(20), "GGUF"),
        (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        (b"\x08\x01\x12\x8c\x93\x02\x0a\x20" + bytes(20), "a SavedModel of TensorFlow"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "tar archive"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"epoch,loss\n1,0.5\n", "is text"),
        (b"weights: \xc3\xa9\n" + bytes(3), "no checkpoint: it begins with the bytes 77 65 69"),
        (bytes(range(200, 256)), "no checkpoint: it begins with the bytes c8 c9 ca"),
        (b"PK\x03\x04" + bytes(200), "truncated or damaged zip archive"),
        (zip_bytes("a.txt", "b/c.txt"), "no data.pkl"),
        (npz_bytes(), "npz archive"),
        (zip_bytes("config.json", "model.weights.h5"), "a Keras archive"),
        (b"{}", "JSON, but no index of shards"),
        (b'\xef\xbb\xbf {"hidden_size": 768}', "JSON, but no index of shards"),
        (b'{"weight_map": ', "no valid JSON"),
        (b'{"weight_map": [1, 2]}', "weight_map: not an object from tensor names to file names"),
        (b'{"weight_map": {}}', "weight_map: not an object"),
        (b'{"weight_map": {"a": 3}}', "weight_map: not an object"),
        (b'{"a": "weight_map", "weight_map": {"a": "x", "a": "y"}}', "'a' stands twice"),
        (b'{"weight_map": ' + b"[" * 100_000, "no valid JSON"),
        (b'{"weight_map": {"a": "' + b"x" * 10_000_000 + b'"}}', "over 10000000 bytes"),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_parts_of_distributed_checkpoints_and_states_of_optimizers_are_named(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "__0_0.distcp")
    assert "a part of a distributed checkpoint; for its folder, convert it" in refusal(tmp_path / "__0_0.distcp")
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    message = refusal(saved(optimizer.state_dict(), tmp_path))
    assert "holds the state of an optimizer, not a network" in message
    assert "state.0" not in message


def test_torchscript_and_export_are_refused_with_a_recipe_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save("script.pt")
        torch.export.save(torch.export.export(network, (torch.ones(1, 3),)), "graph.pt2")
        for name, recipe in (
            ("script.pt", "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"),
            ("graph.pt2", "torch.save(torch.export.load(path).state_dict, 'weights.pt')"),
        ):
            assert recipe in refusal(Path(name))
            exec(recipe, {"torch": torch, "path": name})
            assert_same(load_checkpoint("weights.pt"), network.state_dict())
    with pytest.raises(UnsafeCheckpoint):
        load_checkpoint("script.pt")


def test_missing_forbidden_and_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nothing.pt")
    assert "cannot be read" in refusal(saved(weights(), tmp_path) / "below")
    assert "embedded null byte" in refusal(tmp_path / "a\0b")
    assert "a device or a pipe" in refusal(Path(os.devnull))
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    assert "a device or a pipe" in refusal(tmp_path / "pipe")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # tests may run as root, whom no mode keeps out
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "there is no .pt, .pth or .safetensors in it"),
        (["notes.txt"], "there is no .pt"),
        (["model.safetensors", "optimizer.pt"], "pass a file in it: {folder}/model.safetensors."),
        (
            ["a.safetensors.index.json", "b.safetensors.index.json", "a.safetensors"],
            "pass a file in it: {folder}/a.safetensors.index.json, {folder}/b.safetensors.index.json.",
        ),
        (["a.pt", "b.pth"], "pass a file in it: {folder}/a.pt, {folder}/b.pth."),
        ([".metadata", "__0_0.distcp"], "torch.distributed.checkpoint.format_utils dcp_to_torch"),
    ],
)
def test_a_folder_is_refused_with_the_file_to_pass(names: list[str], expected: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    message = refusal(tmp_path)
    assert "is a folder" in message
    assert expected.format(folder=tmp_path) in message


# Code in files


class Attack:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def attacks(sentinel: Path) -> Iterator[tuple[str, Attack]]:
    yield "system", Attack(os.system, f"touch {sentinel}")
    yield "check_call", Attack(subprocess.check_call, ["touch", str(sentinel)])
    yield "eval", Attack(eval, f"open({str(sentinel)!r}, 'w').close()")
    yield "exec", Attack(exec, f"open({str(sentinel)!r}, 'w').close()")


@pytest.mark.skipif(os.name != "posix", reason="os.system is posix.system")
@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_a_hostile_pickle_runs_nothing(stored: str, tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    for name, attack in attacks(sentinel):
        path = tmp_path / "model.pt"
        SAVERS[stored]({"state_dict": weights(), "note": attack}, path)
        message = unsafe(path)
        assert name in message
        assert "torch.save(model.state_dict(), path)" in message
        assert not sentinel.exists()
        torch.load(path, weights_only=False)
        assert sentinel.exists(), "the attack itself must work, or this test shows nothing"
        sentinel.unlink()


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_a_pickled_network_is_refused_by_the_name_of_its_class(stored: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SAVERS[stored](nn.Sequential(nn.Linear(2, 2)), tmp_path / "m")
    message = unsafe(tmp_path / "m")
    assert "torch.nn.modules.container.Sequential" in message
    assert ("torch.nn.modules.linear.Linear" in message) == (stored == "torch zip")  # legacy: the first one only
    assert "torch.save(model.state_dict(), path)" in message


class Colour(enum.Enum):
    RED = 1


class AttributeDict(dict[str, object]):
    """As the settings of many libraries are."""


class Steps(list[int]):
    """A list of a kind of its own."""


@dataclasses.dataclass
class Settings:
    """A class of the user's, which runs code when it is made; reading a checkpoint must not make it."""

    rate: float = 0.1

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the file was run")


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.9),
        np.arange(5.0),
        argparse.Namespace(rate=0.1, folder=Path("runs"), sizes=[1, 2]),
        [datetime.datetime(2026, 1, 2), datetime.timedelta(3), datetime.UTC],
        defaultdict(list, {"loss": [0.5, 0.25]}),
        deque([1, 2]),
        Colour.RED,
        Settings(),
        AttributeDict(rate=0.1),
        Steps([1, 2]),
        {"a": {"b": [np.float32(1), Colour.RED, (Settings(), Path("x"))]}},
    ],
    ids=repr,
)
def test_what_stands_beside_the_weights_is_not_made(beside: object, stored: str, tmp_path: Path) -> None:
    SAVERS[stored]({"state_dict": weights(), "beside": beside}, tmp_path / "m")
    assert_same(load_checkpoint(tmp_path / "m"), weights())
    assert load_checkpoint(tmp_path / "m").key == "state_dict"


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_stand_ins_are_no_part_of_a_state_dict(stored: str, tmp_path: Path) -> None:
    SAVERS[stored]({"state_dict": {**weights(), "best": np.float64(0.5)}}, tmp_path / "m")
    assert "'best' (numpy" in refusal(tmp_path / "m")
    SAVERS[stored](Settings(), tmp_path / "m")
    assert "holds no named tensors" in refusal(tmp_path / "m")


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for protocol in (2, 3, 4, 5):
        path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
        assert "is a plain pickle" in unsafe(path)
    torch.save(weights(), path, pickle_protocol=4)
    assert "pickle_protocol other than 2" in refusal(path)
    torch.save(weights(), path, pickle_protocol=4, _use_new_zipfile_serialization=False)
    assert "pickle_protocol other than 2" in refusal(path)


# Memory


def test_an_expanded_tensor_is_refused(tmp_path: Path) -> None:
    for stored in ("torch zip", "torch legacy"):
        path = tmp_path / stored.replace(" ", "-")
        SAVERS[stored]({**weights(), "huge": torch.zeros(1).expand(1_000_000_000)}, path)
        assert path.stat().st_size < 10_000
        assert torch.load(path, weights_only=True)["huge"].numel() == 1_000_000_000
        assert "'huge' of shape [1000000000] takes 4,000,000,000 bytes but only 4 are stored" in unsafe(path)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with members changed and sums right again, as an attacker would write it."""
    target = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as copy:
        for name in source.namelist():
            copy.writestr(name, change(name.partition("/")[2], source.read(name)))
    return target


def test_storages_larger_than_the_file_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(10.0)}, tmp_path)
    assert_same(load_checkpoint(rewritten(path, lambda _, content: content)), {"a": torch.arange(10.0)})
    ten, more = b"cpuq\x06K\x0at", b"cpuq\x06K\x0bt"
    longer = rewritten(path, lambda _, content: content.replace(ten, more))
    assert torch.load(longer, weights_only=True, mmap=True)["a"].untyped_storage().nbytes() == 44
    assert "claims 44 bytes of tensors but stores 40" in unsafe(longer)
    made = b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\nJ\xff\xff\xff\x0f\x85Rs."
    assert "claims 1,073,741,820 bytes of tensors" in unsafe(
        rewritten(path, lambda name, content: made if name == "data.pkl" else content)
    )


def test_a_bytearray_is_refused(tmp_path: Path) -> None:
    for stored in ("torch zip", "torch legacy"):
        SAVERS[stored]({**weights(), "a": bytearray(5)}, tmp_path / "m")
        assert torch.load(tmp_path / "m", weights_only=True)["a"] == bytearray(5)
        assert "makes a bytearray" in unsafe(tmp_path / "m")


PROBE = """
import sys
from prepkit.checkpoint.load import load_checkpoint
from prepkit.errors import PrepkitError
def told(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) << 10
load_checkpoint(sys.argv[1])  # torch and safetensors are imported now
before, peak = told("RssAnon"), told("VmHWM")  # not ru_maxrss: it starts at the peak of the process that forked
try:
    found = load_checkpoint(sys.argv[2])
    total = sum(float(tensor.sum(dtype=float)) for tensor in found.values())
except PrepkitError as error:
    total = type(error).__name__
print(told("RssAnon") - before, told("VmHWM") - peak, total)
"""


def memory_of(path: Path) -> tuple[int, int, str]:
    """Bytes of anonymous memory, bytes of new peak and the sum of all values, for reading a file in a fresh process."""
    small = saved({"a": torch.ones(1)}, path.parent, "small.pt")
    command = [sys.executable, "-c", PROBE, str(small), str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    return int(output[0]), int(output[1]), output[2]


@pytest.mark.xdist_group("time and memory")
@ON_LINUX
@pytest.mark.parametrize("stored", SAVERS)
def test_reading_stays_mapped(stored: str, tmp_path: Path) -> None:
    tensors = {name: torch.full((5 * MEGABYTE,), value) for name, value in (("a", 1.0), ("b", 2.0))}  # 40 MB
    path = tmp_path / "model"
    SAVERS[stored](tensors, path)
    anonymous, _, total = memory_of(path)
    assert float(total) == 15 * MEGABYTE
    if stored == "torch legacy":
        assert anonymous > 39 * MEGABYTE, "a format that cannot be mapped shows that the meter works"
    else:
        assert anonymous < 6 * MEGABYTE


@pytest.mark.xdist_group("time and memory")
@ON_LINUX
def test_a_deflate_bomb_is_refused_without_inflating(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(50 * MEGABYTE)}, tmp_path)
    bomb = rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < MEGABYTE
    _, peak, outcome = memory_of(bomb)
    assert outcome == "UnsafeCheckpoint"
    assert peak < 20 * MEGABYTE
    assert "are compressed, so they could expand to any size" in unsafe(bomb)


# Damage


def archive_with(path: Path, change: Callable[[zipfile.ZipFile, Callable[[str], bytes]], None]) -> Path:
    """A copy of the archive that `change` writes to after all members."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of members there twice
        for name in source.namelist():
            copy.writestr(name, source.read(name))
        change(copy, source.read)
    return target


def test_members_that_torch_would_not_write_are_refused(tmp_path: Path) -> None:
    path = saved(weights(), tmp_path)
    twice = archive_with(path, lambda copy, read: copy.writestr("model/data.pkl", read("model/data.pkl")))
    assert "'model/data.pkl' are there twice" in unsafe(twice)
    climbing = archive_with(path, lambda copy, _: copy.writestr("model/../../evil", b""))
    assert "'model/../../evil' are outside the folder 'model'" in unsafe(climbing)
    second = archive_with(path, lambda copy, read: copy.writestr("other/data.pkl", read("model/data.pkl")))
    assert "'other/data.pkl' are outside the folder 'model'" in unsafe(second)
    capital = archive_with(path, lambda copy, read: copy.writestr("model/DATA.pkl", read("model/data.pkl")))
    assert "'model/data.pkl' are there twice" in unsafe(capital)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # the sizes of the first member
    path.write_bytes(content)
    assert "bytes of content in" in unsafe(path)


def test_a_flipped_bit_in_the_data_is_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(1000.0)}, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 402
    content[place] ^= 1
    path.write_bytes(content)
    flipped = torch.load(path, weights_only=True)["a"]
    assert int((flipped != torch.arange(1000.0)).sum()) == 1, "torch itself loads it"
    assert "is damaged: the bytes of 'model/data/0' differ from its CRC-32" in refusal(path)


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy", "safetensors"])
def test_every_truncation_is_refused(stored: str, tmp_path: Path) -> None:
    SAVERS[stored](weights(), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in (*range(40), *range(40, len(content), 53), len(content) - 1):
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content[: len(content) * 3 // 4])
    assert "truncated or damaged" in refusal(path)
    path.write_bytes(content)
    assert_same(load_checkpoint(path), weights())


def safetensors_bytes(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', None),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "truncated or damaged safetensors"),
        ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', "truncated or damaged safetensors"),
        ('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', "overflow"),
        ('{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', "truncated or damaged safetensors"),
        ('{"a":', "truncated or damaged safetensors"),
        (
            '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
            "'a' stands twice",
        ),
    ],
)
def test_crafted_safetensors(header: str, expected: str | None, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(header, struct.pack("<f", 2.5)))
    if expected is None:
        assert_same(load_checkpoint(path), {"a": torch.tensor([2.5])})
    else:
        assert expected in refusal(path)


# Sharded indexes


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save_index(weights(), tmp_path / "model.safetensors.index.json")
    return tmp_path / "model.safetensors.index.json"


def with_map(index: Path, changes: Mapping[str, object]) -> Path:
    content = json.loads(index.read_text())
    content["weight_map"].update(changes)
    index.write_text(json.dumps(content))
    return index


@pytest.mark.parametrize(
    "shard", ["/etc/passwd", "../part-0.safetensors", "a/../../b", "C:x", "C:\\x", "\\\\server\\share", "a\\b", "..\\x"]
)
def test_shards_outside_the_folder_are_refused(shard: str, index: Path) -> None:
    assert "names shards outside its folder" in unsafe(with_map(index, {"conv.weight": shard}))


@pytest.mark.parametrize("shard", ["nothing", "x" * 5000, "a\0b", "\ud800", "part-0.safetensors/below"])
def test_a_shard_that_cannot_exist_is_missing(shard: str, index: Path) -> None:
    message = refusal(with_map(index, {"conv.weight": shard}))
    assert "missing beside it" in message
    message.encode()


def test_a_missing_shard_is_named(index: Path) -> None:
    (index.parent / "part-1.safetensors").unlink()
    assert "needs 'part-1.safetensors', missing beside it" in refusal(index)
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors"):
        sha256_of(index)


def test_a_shard_and_the_index_must_agree_on_names(index: Path) -> None:
    with_map(index, {"ghost": "part-0.safetensors"})
    assert "the shard 'part-0.safetensors' lacks 'ghost'" in refusal(index)
    save_index(weights(), index)
    save_file({**weights(), "extra": torch.ones(1)}, index.parent / "part-1.safetensors")
    assert "'part-1.safetensors' has, unknown to the index, 'conv.weight', 'extra', 'norm." in refusal(index)


def test_a_shard_must_be_a_file_of_weights(index: Path) -> None:
    shutil.copy(index, index.parent / "part-0.safetensors")
    assert "in format 'safetensors index'" in refusal(index)
    (index.parent / "part-0.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_checkpoint(index)
    torch.save([torch.ones(1)], index.parent / "part-0.safetensors")
    assert "the shard 'part-0.safetensors' lacks 'conv.weight'" in refusal(index)


def test_parts_may_be_in_several_formats(index: Path) -> None:
    first = {name: weights()[name] for name in list(weights())[::2]}
    save_legacy(first, index.parent / "part-0.safetensors")
    checkpoint = load_checkpoint(index)
    assert_same(checkpoint, weights())
    assert checkpoint.format == "torch index"
    save_legacy({**first, "conv.weight": torch.zeros(1).expand(2, 3, 4)}, index.parent / "part-0.safetensors")
    assert "an expanded tensor" in unsafe(index)


class TwoNames(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(3, 3), nn.Linear(3, 3)
        self.enc.weight = self.dec.weight


def test_a_tied_name_that_safetensors_left_out_comes_back(tmp_path: Path) -> None:
    network = TwoNames()
    save_model(network, str(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert len(file.keys()) == 3, "safetensors keeps one of the two names"
    found = load_checkpoint(tmp_path / "m.safetensors")
    assert_same(found, network.state_dict())
    assert found["enc.weight"].data_ptr() == found["dec.weight"].data_ptr()
    fresh = TwoNames()
    assert fresh.load_state_dict(dict(found)).missing_keys == []


def test_a_tied_name_may_be_left_out_of_a_shard(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    save_index(weights(), index)
    first = {name: weights()[name] for name in list(weights())[::2]}
    save_file(first, tmp_path / "part-0.safetensors", {"format": "pt", "lm_head": "head.weight", "conv.weight": "x"})
    expected = {**weights(), "lm_head": weights()["head.weight"]}  # head.weight lies in the other shard
    assert_same(load_checkpoint(index), expected)


def test_metadata_that_names_no_tensor_ties_nothing(tmp_path: Path) -> None:
    texts = {"format": "pt", "author": "conv.weigh", "conv.weight": "conv.bias", "conv.bias": "pt"}
    save_file({**weights(), "pt": torch.ones(1)}, tmp_path / "m.safetensors", texts)
    assert_same(load_checkpoint(tmp_path / "m.safetensors"), {**weights(), "pt": torch.ones(1)})


@pytest.mark.parametrize("stored", ["safetensors index", "torch index"])
def test_a_part_is_no_network_and_its_folder_is_one(stored: str, tmp_path: Path) -> None:
    index = tmp_path / (
        "model.safetensors.index.json" if stored == "safetensors index" else "pytorch_model.bin.index.json"
    )
    SAVERS[stored](weights(), index)
    for part in tmp_path.glob("part-*"):
        message = refusal(part)
        assert message.endswith(
            f"is one of the 2 parts of a sharded model, not a network of its own; pass its index {index}."
        )
    assert_same(load_checkpoint(tmp_path), weights())
    assert load_checkpoint(tmp_path).path == index
    assert sha256_of(tmp_path) == sha256_of(index)


def test_a_part_without_its_index_is_known_by_its_name(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model-00001-of-00002.safetensors")
    save_file(weights(), tmp_path / "model-00001-of-00001.safetensors")
    assert "by its name part 1 of 2 of a sharded model" in refusal(tmp_path / "model-00001-of-00002.safetensors")
    assert_same(load_checkpoint(tmp_path / "model-00001-of-00001.safetensors"), weights())
    (tmp_path / "x.index.json").write_text('{"weight_map": 3}')  # it says nothing of the file beside it
    (tmp_path / "whole.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weights(), "model-00001-of-00001.safetensors")})
    )
    assert_same(load_checkpoint(tmp_path / "model-00001-of-00001.safetensors"), weights())


def test_an_index_may_begin_with_a_byte_order_mark_and_space(index: Path) -> None:
    index.write_bytes(b"\xef\xbb\xbf\n  " + index.read_bytes())
    assert_same(load_checkpoint(index), weights())


def test_shards_below_the_index_are_read(index: Path) -> None:
    (index.parent / "below").mkdir()
    (index.parent / "part-0.safetensors").rename(index.parent / "below" / "part-0.safetensors")
    moved = dict.fromkeys(list(weights())[::2], "below/part-0.safetensors")
    assert_same(load_checkpoint(with_map(index, moved)), weights())


# sha256


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b.json", b'{"a": 1}'), ("c", os.urandom(3 * MEGABYTE))):
        (tmp_path / name).write_bytes(content)
        assert sha256_of(tmp_path / name) == hashlib.sha256(content).hexdigest()
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match=str(path)):
            sha256_of(path)


def test_sha256_of_an_index_covers_its_shards(index: Path) -> None:
    def digest(content: bytes) -> bytes:
        return hashlib.sha256(content).digest()

    shards = [(index.parent / f"part-{number}.safetensors").read_bytes() for number in (0, 1)]
    expected = digest(index.read_bytes() + digest(shards[0]) + digest(shards[1])).hex()
    assert sha256_of(index) == expected
    changed = bytearray(shards[1])
    changed[-1] ^= 1
    (index.parent / "part-1.safetensors").write_bytes(changed)
    assert sha256_of(index) != expected


# Random damage


MUTATIONS = st.lists(st.tuples(st.sampled_from(["set", "cut", "insert", "delete"]), st.floats(0, 1), st.binary(
    min_size=1, max_size=1)), min_size=1, max_size=4)  # fmt: skip


def mutated(content: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, byte in mutations:
        place = int(where * len(content))
        before, after = content[:place], content[place:]
        content = {
            "set": before + byte + after[1:],
            "cut": before,
            "insert": before + byte + after,
            "delete": before + after[1:],
        }[kind]
    return content


def original(stored: str, folder: Path) -> bytes:
    path = folder / "original"
    SAVERS[stored](weights() if stored == "safetensors" else {"model": weights(), "lr": 0.1}, path)
    return path.read_bytes()


def loaded_or_refused(path: Path) -> Checkpoint | None:
    """The checkpoint if the file loads, None if it raises CheckpointError; any other exception fails the test."""
    try:
        found = load_checkpoint(path)
        message = str(path)
    except CheckpointError as error:
        found, message = None, str(error)
    assert str(path) in message
    assert all(isinstance(tensor, Tensor) for tensor in (found or {}).values())
    return found


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy", "safetensors"])
def test_random_damage_loads_or_raises_our_error(stored: str, tmp_path: Path) -> None:
    content = original(stored, tmp_path)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def check(mutations: list[tuple[str, float, bytes]]) -> None:
        path = tmp_path / "damaged"
        path.write_bytes(mutated(content, mutations))
        found = loaded_or_refused(path)
        if found is not None and stored == "torch zip":
            assert_same(found, weights())  # every byte that matters is under a checksum

    check()


def test_random_damage_under_right_checksums_loads_or_raises_our_error(tmp_path: Path) -> None:
    original("torch zip", tmp_path)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def check(mutations: list[tuple[str, float, bytes]]) -> None:
        def change(name: str, content: bytes) -> bytes:
            return mutated(content, mutations) if name == "data.pkl" else content

        loaded_or_refused(rewritten(tmp_path / "original", change))

    check()


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, prepkit.checkpoint.load; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
