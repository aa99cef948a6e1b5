"""Tests of appending: what a kill at the very start leaves, ids that nobody named, and values of another dtype."""

import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from zoo_samples import NAMES, network, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.zoo.change.choosing import drop
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.format.manifest import read_manifest, write_manifest
from prepkit.zoo.format.numbered_ids import first_number, highest_number
from prepkit.zoo.write.writer import ZooWriter

PACK = "by `prepkit pack MODEL --dtype {} -o FILE`"


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    """Three instances m0, m1 and m2."""
    return write_zoo(tmp_path_factory.mktemp("only") / "zoo", count=3, names=NAMES[:1])


@pytest.fixture
def root(only, tmp_path):
    return shutil.copytree(only, tmp_path / "zoo")


def appended(root, *ids):
    with ZooWriter(root, append=True) as writer:
        return [writer.add(network(NAMES[0], 50 + number), id=id) for number, id in enumerate(ids)]


# A kill at the very start -------------------------------------------------------------------------------------


def begun(root):
    """Begin to append, and return the journal's first append: the settings and their sum."""
    writer = ZooWriter(root, append=True)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    journal = root / ".appending/.writing/journal.jsonl"
    return journal, journal.read_bytes()


@pytest.mark.parametrize("left", ["no file", "no journal", 0, 1, 0.5, "settings", "torn sum"])
def test_what_holds_nothing_is_neither_told_nor_in_the_way(root, left):
    journal, content = begun(root)
    end = content.index(b"\n") + 1
    length = {"settings": end, "torn sum": len(content) - 1, 0.5: end // 2}.get(left, left)
    if left == "no file":
        shutil.rmtree(root / ".appending")
        (root / ".appending").mkdir()
    elif left == "no journal":
        journal.unlink()
    else:
        journal.write_bytes(content[:length])
    copy = shutil.copytree(root, root.parent / "copy")
    clean(copy)
    assert not (copy / ".appending").exists()
    assert "interrupted" not in CliRunner().invoke(main, ["zoo", "info", str(root)]).stderr
    assert appended(root, "n0") == ["n0"]
    assert len(open_zoo(root)) == 4
    assert not (root / ".appending").exists()


def test_what_was_begun_is_kept(root):
    journal, content = begun(root)
    clean(root)
    assert journal.read_bytes() == content
    with pytest.raises(ZooError, match="was interrupted, and what was finished is kept"):
        ZooWriter(root, append=True)
    journal.write_bytes(content.replace(b'"name"', b'"Name"', 1))
    with pytest.raises(ZooError, match=r"damaged\. Delete the folder in which `\.writing` lies"):
        ZooWriter(root, append=True, resume=True)


def test_clean_leaves_alone_what_is_just_begun(root):
    with ZooWriter(root, append=True) as writer:
        clean(root)
        writer.add(network(NAMES[0], 1), id="n0")
    assert len(open_zoo(root)) == 4


# Ids that nobody named ----------------------------------------------------------------------------------------


def test_a_number_never_comes_again(root):
    assert appended(root, None, None) == ["000003", "000004"]
    drop(root, ids=["000004", "m0"], card=False)
    assert appended(root, None) == ["000005"]
    drop(root, ids=["000005"], card=False)
    drop(root, ids=["m1"], card=False)
    assert appended(root, "x", None, None) == ["x", "000007", "000008"]
    ids = open_zoo(root).table["id"].to_pylist()
    assert ids == ["m2", "000003", "x", "000007", "000008"]
    assert verify(root).ok


def test_a_users_numbers_count_too(root):
    appended(root, "000009", "7", "123456", "1" * 5000, "\u0669" * 7)
    assert appended(root, None) == ["123457"]
    drop(root, ids=["123456", "123457"], card=False)
    assert appended(root, None) == ["123458"]


def test_a_new_zoo_takes_the_next_free_number(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        ids = [writer.add(network(NAMES[0], 1), id=id) for id in ("000001", None, None)]
    assert ids == ["000001", "000002", "000003"]


def test_removals_that_an_older_version_noted(root):
    appended(root, None, None)
    drop(root, ids=["000004"], card=False)
    manifest = read_manifest(root)
    (record,) = manifest.provenance["drops"]
    assert record.pop("highest_number") == 4
    write_manifest(replace(manifest, provenance={**manifest.provenance, "drops": [record]}), root, overwrite=True)
    assert appended(root, None) == ["000005"]


def test_highest_number():
    assert highest_number(["a", "00001", "-000001", "0000012", "1e1000", "000005"]) == 12
    assert highest_number([]) == -1
    assert first_number(["a"], 1, {"drops": "of another tool"}) == 1
    assert first_number(["a"], 1, {"drops": [3, {"highest_number": None}, {"highest_number": 8}]}) == 9


# Values of another dtype --------------------------------------------------------------------------------------


def cast(dtype, sizes=(3, 2)):
    return {"weight": torch.zeros(*sizes, dtype=dtype), "bias": torch.zeros(sizes[0], dtype=dtype)}


def test_values_that_the_zoo_would_round(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(cast(torch.float16), id="a")
    advice = PACK.format("float16")
    with ZooWriter(tmp_path / "zoo", append=True) as writer:
        for sizes in ((3, 2), (5, 4)):
            with pytest.raises(ZooError, match="'b': its values are float32, which the float16 of ") as caught:
                writer.add(cast(torch.float32, sizes), id="b")
            assert advice in str(caught.value)
        writer.add(cast(torch.float16), id="c")
    assert len(open_zoo(tmp_path / "zoo")) == 2


def test_values_of_a_narrower_dtype_than_the_same_architectures(root):
    halves = {name: tensor.half() for name, tensor in network(NAMES[0], 1).state_dict().items()}
    with (
        ZooWriter(root, append=True) as writer,
        pytest.raises(ZooError, match=rf"tensors are float16, those of {NAMES[0]} in .* float32, .*--dtype float32"),
    ):
        writer.add(halves, id="x", architecture=NAMES[0])
