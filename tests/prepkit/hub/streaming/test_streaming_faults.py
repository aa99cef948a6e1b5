"""What goes wrong while a zoo is streamed is mended or told, and nothing wrong is kept."""

import pickle
import shutil

import pytest
import torch
from huggingface_hub import constants
from pushed_zoos import path_of, shards_of
from streaming_samples import in_cache

from prepkit.api import open_zoo
from prepkit.errors import HubError, OutputError, ZooError
from prepkit.hub import store
from prepkit.support.cache import cache_folder
from prepkit.zoo.format.manifest import MANIFEST, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fault", ["flip", "truncate", "busy body", "drop"])
def test_once_is_no_harm(filled, local, fault):
    zoo = open_zoo("hf://me/zoo")
    filled.fault(fault, path_of(local, 0))
    assert torch.equal(zoo.preps([0]), local.preps([0]))


@pytest.mark.parametrize(("fault", "told"), [("flip", "damaged"), ("hide", "does not have that file")])
def test_what_stays_wrong_is_told_and_not_kept(filled, local, fault, told):
    zoo = open_zoo("hf://me/zoo")
    filled.fault(fault, path_of(local, 0), times=99)
    for _ in range(2):
        with pytest.raises(HubError, match=told):
            zoo.preps([0])
    assert in_cache() == {}
    assert torch.equal(zoo.preps([1]), local.preps([1]))
    filled.fault(fault, path_of(local, 0), times=0)
    assert torch.equal(zoo.preps([0]), local.preps([0]))


@pytest.mark.parametrize("name", [MANIFEST, "models"])
def test_a_damaged_manifest_or_table(filled, local, name):
    path = MANIFEST if name == MANIFEST else local.manifest.table.path
    filled.fault("flip", path, times=99)
    with pytest.raises((HubError, ZooError), match="damaged"):
        open_zoo("hf://me/zoo")
    filled.fault("flip", path, times=0)
    assert torch.equal(open_zoo("hf://me/zoo").preps([0]), local.preps([0]))


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped header", "folder gone", "manifest", "table"])
def test_a_cache_that_lost_something_is_mended(filled, local, damage):
    commit = filled.head("me/zoo")
    open_zoo(f"hf://me/zoo@{commit}").preps()
    file = in_cache()[path_of(local, 0).rpartition("/")[2]]
    root = file.parent.parent
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "flipped header":
        content = bytearray(file.read_bytes())
        content[10] ^= 1
        file.write_bytes(content)
    elif damage == "folder gone":
        shutil.rmtree(root)
    else:
        (root / (MANIFEST if damage == "manifest" else local.manifest.table.path)).write_bytes(b"{}")
    filled.forget()
    zoo = open_zoo(f"hf://me/zoo@{commit}")
    assert torch.equal(zoo.preps(), local.preps())
    assert (len(filled.bodies) == 1) == (damage != "folder gone")


def flip(file, position=-1):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_the_cache_is_found_by_the_next_process(filled, local, monkeypatch):
    address = f"hf://me/zoo@{filled.head('me/zoo')}"
    open_zoo(address).preps()
    flip(in_cache()[path_of(local, 5).rpartition("/")[2]])
    filled.forget()
    monkeypatch.setenv("PREPKIT_VERIFY", "0")
    assert not torch.equal(open_zoo(address).preps(), local.preps())
    assert not torch.equal(open_zoo(address, verify=False).preps(), local.preps())
    monkeypatch.delenv("PREPKIT_VERIFY")
    assert torch.equal(open_zoo(address)[5][0].values, local[5][0].values)
    assert shards_of(filled) == [path_of(local, 5)]
    assert torch.equal(open_zoo(address).preps(), local.preps())
    assert shards_of(filled) == [path_of(local, 5)]


def test_a_shard_in_the_cache_is_hashed_once_in_a_process(filled, local, monkeypatch):
    address = f"hf://me/zoo@{filled.head('me/zoo')}"
    open_zoo(address).preps()
    hashed = []
    monkeypatch.setattr(store, "is_sound", lambda file, *rest: hashed.append(file.name) or True)
    zoo = open_zoo(address)
    hashed.clear()  # the table's
    for _ in range(2):
        assert torch.equal(zoo.preps(), local.preps())
        for _ in zoo.loader(3, shuffle="shards"):
            pass
    assert sorted(hashed) == sorted(file.name for file in in_cache().values())


def test_the_cache_is_cleared_under_an_open_zoo(filled, local):
    zoo = open_zoo("hf://me/zoo")
    zoo.preps([0])
    shutil.rmtree(cache_folder())
    assert torch.equal(zoo.preps(), local.preps())


def test_offline(filled, local, monkeypatch):
    commit = filled.head("me/zoo")
    open_zoo("hf://me/zoo").preps([0])
    filled.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for address in ("hf://me/zoo", f"hf://me/zoo@{commit}"):
        zoo = open_zoo(address)
        assert torch.equal(zoo.preps([0]), local.preps([0]))
        with pytest.raises(
            HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
        ):
            zoo.preps([1])
    with pytest.raises(
        HubError, match=r"the Hub cannot be reached, and the .* is not fully cached; unset HF_HUB_OFFLINE"
    ):
        open_zoo("hf://me/unseen")
    assert filled.requests == []


def test_names_and_tokens(filled, local, hub):
    with pytest.raises(HubError, match="no dataset repository 'me/none'"):
        open_zoo("hf://me/none")
    with pytest.raises(HubError, match="is no address"):
        open_zoo("hf://zoo")
    with pytest.raises(HubError, match="names a file"):
        open_zoo("hf://me/zoo/zoo.json")
    hub.add("me/data", {"a.csv": b"1"})
    with pytest.raises(ZooError, match="is no zoo"):
        open_zoo("hf://me/data")
    hub.token = "hf_right"
    hub.add("me/secret", hub.files("me/zoo"), private=True)
    with pytest.raises(HubError, match="hf auth login"):
        open_zoo("hf://me/secret", token="hf_wrong")
    zoo = pickle.loads(pickle.dumps(open_zoo("hf://me/secret", token="hf_right")))
    assert torch.equal(zoo.preps(), local.preps())


def test_a_cache_that_cannot_be_written(filled, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot write '.*file"):
        open_zoo("hf://me/zoo")


def test_what_is_in_the_cache_is_the_zoo(filled, local):
    """A streamed zoo whose shards have all come is an ordinary zoo in its folder."""
    zoo = open_zoo("hf://me/zoo")
    zoo.preps()
    _ = zoo.teacher
    root = zoo._store.root
    assert read_manifest(root) == local.manifest
    assert torch.equal(open_zoo(root).preps(), local.preps())
