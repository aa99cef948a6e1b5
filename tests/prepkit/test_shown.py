"""Tests of how objects are shown: on one short line, whatever they hold."""

from pathlib import Path

import pytest
import torch

import prepkit
from prepkit.support.text import LINE, Brief, brief

DIGITS = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 100}}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One of each public object, by the text that shows it."""
    root = tmp_path_factory.mktemp("shown")
    network = prepkit.architecture("resnet8@digits").build()
    torch.save({"state_dict": network.state_dict()}, root / "model.pt")
    packed = prepkit.pack_checkpoint(root / "model.pt", dtype="float16")
    writer = prepkit.ZooWriter(root / "other", width=64)
    written = prepkit.create_zoo(root / "zoo", [root / "model.pt"], license="mit")
    zoo = prepkit.open_zoo(root / "zoo")
    objects = {
        "architecture": prepkit.architecture("resnet56@cifar10"),
        "registry": prepkit.built_in_registry("cifar10"),
        "detection": prepkit.detect(prepkit.load_checkpoint(root / "model.pt")),
        "checkpoint": prepkit.load_checkpoint(root / "model.pt"),
        "packed": packed,
        "fusion": packed.fusion,
        "rounding": packed.rounding,
        "prep": packed.prep,
        "origin": packed.prep.origin,
        "layout": packed.prep.layout,
        "slot": packed.prep.layout.slots[0],
        "writer": writer,
        "written": written,
        "manifest": written.manifest,
        "stored": written.manifest.architectures[0],
        "shard": written.manifest.shards[0],
        "zoo": zoo,
        "instance": zoo[0][0],
        "loader": zoo.loader(2),
        "dataset": zoo.dataset(),
        "resident": zoo.to("cpu"),
        "resident loader": zoo.to("cpu").loader(2),
        "verification": prepkit.verify(root / "zoo"),
        "split": prepkit.split(root / "zoo", {"train": 1.0}),
        "spec": prepkit.load_spec("cifar10_multi"),
        "training": next(iter(prepkit.load_spec("cifar10_multi").training.values())),
        "task": (task := prepkit.load_task(DIGITS)),
        "batch": next(iter(task.batches([0], [0], 0, 4))),
    }
    writer.discard()
    return {name: repr(value).replace(str(root), "") for name, value in objects.items()}


def test_each_public_object_is_shown_on_one_short_line(shown):
    assert {name: text for name, text in shown.items() if len(text) > LINE or "\n" in text or "0x" in text} == {}


def test_what_is_shown_says_what_it_is(shown):
    assert shown["registry"] == "<Registry: lenet_like@cifar10, vanilla_cnn@cifar10, resnet8@cifar10 and 1 more>"
    assert shown["detection"] == "Detection(architecture=<Architecture resnet8@digits>, folded=False)"
    assert shown["loader"] == "<Loader of <Zoo 'zoo': 1 instance, PReps 12 x 512 float32>: 1 batch an epoch>"
    assert shown["batch"] == "TaskBatch(inputs=Tensor[1, 4, 1, 8, 8], targets=Tensor[1, 4])"
    assert shown["task"] == "<ImageTask of digits: train 1,697, validation 0, test 100>"
    assert shown["packed"].startswith("Packed(prep=<PRep of resnet8@digits: 12 x 512 float16>, ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (1 / 3, "0.3333"),
        ("x" * 50, repr("x" * 50)),
        ("x" * 51, repr("x" * 47 + "...")),
        (Path("a/b"), "'a/b'"),
        ((1, 2), "(1, 2)"),
        (tuple(range(7)), "tuple of 7"),
        (["x" * 60], "list of 1"),
        ({"a": 1}, "dict of 1"),
        ([torch.ones(3)], "list of 1"),
        (torch.ones(2, 3), "Tensor[2, 3]"),
        (torch.nn.Sequential(torch.nn.ReLU()), "<Sequential>"),
        (object(), "<object>"),
    ],
)
def test_values(value, text):
    assert brief(value) == text


def test_a_line_ends_where_it_would_be_too_long():
    from dataclasses import dataclass

    @dataclass(repr=False)
    class Many(Brief):
        first: str
        second: str
        third: int

    assert repr(Many("a" * 50, "b" * 50, 3)) == f"Many(first='{'a' * 50}', ...)"
    assert repr(Many("a", "b", 3)) == "Many(first='a', second='b', third=3)"
