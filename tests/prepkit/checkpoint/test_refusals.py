"""Tests of files that are something else, and of files that hold code."""

from __future__ import annotations

import argparse
import datetime
import enum
import gzip
import io
import os
import pickle
import subprocess
import warnings
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_samples import SAVERS, Settings, assert_same, refusal, saved, unsafe, weights
from torch import nn

from prepkit.checkpoint.load import load_checkpoint
from prepkit.errors import UnsafeCheckpoint


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
    SAVERS[stored]({"state_dict": {**weights(), "best": np.array([0.5])}}, tmp_path / "m")
    assert "'best' (an array of numpy)" in refusal(tmp_path / "m")
    SAVERS[stored]({"state_dict": {**weights(), "best": Settings()}}, tmp_path / "m")
    assert "'best' (" in refusal(tmp_path / "m")
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
