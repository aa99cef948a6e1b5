"""Tests of merging by hard links: the shards are the same files, and nothing else differs from a merge that copies."""

import pytest
import torch
from zoo_samples import NAMES, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.zoo.change.merge import merge


def link(target, sources, **options):
    return merge(target, sources, link=True, card=False, **options)


@pytest.mark.parametrize("kind", ["safetensors", "hdf5"])
def test_linked_shards_are_the_same_files(tmp_path, kind):
    first = write_zoo(tmp_path / "a", count=5, prefix="a", format=kind, teacher="resnet8@digits")
    second = write_zoo(tmp_path / "b", count=4, prefix="b", format=kind, names=NAMES[1:], seed=50)
    link(tmp_path / "linked", [first, second])
    merge(tmp_path / "copied", [first, second], card=False)
    linked, copied = open_zoo(tmp_path / "linked"), open_zoo(tmp_path / "copied")
    assert linked.table.equals(copied.table)
    assert torch.equal(linked.preps(), copied.preps())
    assert linked.manifest.architectures == copied.manifest.architectures
    assert verify(tmp_path / "linked").ok
    inodes = {file.stat().st_ino for root in (first, second) for file in (root / "shards").iterdir()}
    assert {file.stat().st_ino for file in (tmp_path / "linked" / "shards").iterdir()} == inodes


def test_equal_shards_of_two_zoos_have_a_name_each(tmp_path):
    zoos = [write_zoo(tmp_path / prefix, count=3, prefix=prefix) for prefix in "ab"]
    link(tmp_path / "linked", zoos)
    assert len(open_zoo(tmp_path / "linked").preps()) == 6
    assert verify(tmp_path / "linked").ok


def test_without_hard_links_shards_are_copied(tmp_path, monkeypatch):
    zoos = [write_zoo(tmp_path / prefix, count=3, prefix=prefix) for prefix in "ab"]

    def no_links(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_links)
    link(tmp_path / "linked", zoos)
    assert verify(tmp_path / "linked").ok
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "linked" / "shards").iterdir())


def test_what_cannot_be_linked_is_refused(tmp_path):
    zoos = [write_zoo(tmp_path / "a", count=3, prefix="a")]
    for number, settings in enumerate(({"width": 64}, {"format": "hdf5"})):
        other = write_zoo(tmp_path / f"b{number}", count=3, prefix="b", **settings)
        with pytest.raises(ZooError, match="without link=True they are written anew"):
            link(tmp_path / "linked", [*zoos, other])
    with pytest.raises(ZooError, match="without link=True they are written anew"):
        link(tmp_path / "linked", [*zoos, write_zoo(tmp_path / "c", count=3, prefix="c")], format="hdf5")
    (shard, *_) = (zoos[0] / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ZooError, match="the manifest says"):
        link(tmp_path / "linked", [*zoos, write_zoo(tmp_path / "d", count=3, prefix="d")])
    assert not (tmp_path / "linked").exists()
