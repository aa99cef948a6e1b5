"""Zoos in stores that fsspec reads, by the same store as zoos on the Hub: in memory, and on a server with Range."""

import gc
import pickle
import re
import shutil
from contextlib import suppress
from dataclasses import replace

import fsspec
import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from pushed_zoos import path_of, shards_of, write_zoo
from store_contract import StoreContract
from store_samples import in_cache, parts
from torch.utils.data import DataLoader

from prepkit.address import HubAddress, UrlAddress, parse_remote
from prepkit.api import open_zoo
from prepkit.cli import main
from prepkit.errors import HubError, ZooError
from prepkit.hub import _shard_cache as shard_cache
from prepkit.hub.store import open_store
from prepkit.inspecting.places import tensors_at
from prepkit.support.cache import cache_folder
from prepkit.support.files import sha256_of_file
from prepkit.zoo.format.manifest import MANIFEST, write_manifest

pytest.importorskip("aiohttp")

pytestmark = pytest.mark.usefixtures("one_thread")


class TestMemory(StoreContract):
    @pytest.fixture
    def folder(self, source):
        return source

    @pytest.fixture
    def store(self, memory):
        return open_store(memory)


class TestWeb(TestMemory):
    @pytest.fixture
    def store(self, web):
        return open_store(web.address)


# What comes when ----------------------------------------------------------------------------------------------


def test_a_shard_comes_when_it_is_touched_once(web, source):
    local, zoo = open_zoo(source), open_zoo(web.address)
    assert sorted(web.served()) == sorted([MANIFEST, local.manifest.table.path])
    assert torch.equal(zoo.preps([3, 0, 3]), local.preps([3, 0, 3]))
    assert sorted(shards_of(web)) == sorted([path_of(local, 3), path_of(local, 0)])
    web.forget()
    again = open_zoo(web.address)
    assert torch.equal(again.preps([3]), local.preps([3]))
    assert list(web.served()) == [MANIFEST]  # it is fetched each time, since only it tells which zoo is there now
    name = re.sub(r"[^\w.]+", "--", web.address)
    assert {path.partition("/shards/")[0] for path in in_cache()} == {f"{name}/{sha256_of_file(source / MANIFEST)}"}
    assert parts() == []


def test_a_loader_and_workers(web, source):
    local, zoo = open_zoo(source), open_zoo(web.address)
    for (preps, _, indices), expected in zip(zoo.loader(2, seed=3), local.loader(2, seed=3), strict=True):
        assert torch.equal(preps, expected[0])
        assert torch.equal(indices, expected[2])
    assert sorted(shards_of(web)) == sorted(shard.path for shard in local.manifest.shards)
    shutil.rmtree(cache_folder())
    for preps, _, indices in DataLoader(zoo.dataset(), 3, num_workers=2, multiprocessing_context="fork"):
        assert torch.equal(preps, local.preps(indices))


def test_commands(web, memory, source, tmp_path):
    def run(*command, status=0):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == status, done.output
        return done.output

    assert "6 instances" in run("zoo", "info", web.address)
    assert list(web.served()) == [MANIFEST]
    run("zoo", "export", web.address, "m3", "-o", str(tmp_path / "m3.safetensors"))
    local = open_zoo(source)["m3"][0].tensors()
    for place in (f"{web.address}#m3", f"{memory}#m3"):
        with tensors_at(place) as tensors:
            assert all(torch.equal(tensors[name], local[name]) for name in local)
    with pytest.raises(ZooError, match="name one by its id"), tensors_at(memory):
        pass
    assert "fsspec knows no store 's4'" in run("zoo", "verify", "s4://bucket/zoo", status=1)
    assert "fsspec's configuration" in run("zoo", "info", "https://u:secret@host/zoo", status=2)


# A zoo that changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["replaced", "removed", "shard gone"])
def test_a_zoo_that_was_changed_meanwhile(memory, source, tmp_path, change):
    files, zoo = fsspec.filesystem("memory"), open_zoo(memory)
    first = zoo.preps([0])
    copy = pickle.dumps(zoo)
    shard = path_of(zoo, 3)
    if change == "replaced":
        newer = write_zoo(tmp_path / "newer", count=4, seed=70)
        for path, content in files_of(newer).items():
            files.pipe_file(f"/some/zoo/{path}", content)
        files.pipe_file(f"/some/zoo/{shard}", b"other")
    else:
        files.rm(f"/some/zoo/{shard}")
        if change == "removed":
            files.rm(f"/some/zoo/{MANIFEST}")
    told = {"replaced": "was changed after it was opened.*Open it again", "removed": "was removed after it was opened"}
    with pytest.raises(HubError, match=told.get(change, f"{re.escape(shard)} is not there")):
        zoo.preps([3])
    assert torch.equal(zoo.preps([0]), first)
    if change == "replaced":
        assert torch.equal(open_zoo(memory).preps(), open_zoo(newer).preps())
        assert torch.equal(pickle.loads(copy).preps([0]), first)  # from the cache
        shutil.rmtree(cache_folder())
        with pytest.raises(HubError, match="was changed after it was opened"):
            pickle.loads(copy)


def test_an_annotated_zoo_keeps_its_shards(web, source, tmp_path):
    """Its zoo.json is another one, but shards have their sum in their names, and none of them comes again."""
    zoo = open_zoo(web.address)
    before = zoo.preps()
    write_manifest(replace(zoo.manifest, name="annotated"), tmp_path, overwrite=True)
    web.add("me/zoo", {MANIFEST: (tmp_path / MANIFEST).read_bytes()})
    web.forget()
    again = open_zoo(web.address)
    assert (zoo.name, again.name) == ("zoo", "annotated")
    assert torch.equal(again.preps(), before)
    assert shards_of(web) == []
    assert torch.equal(zoo.preps(), before)
    assert len(in_cache()) == 10
    num_bytes = sum(shard.bytes for shard in again.manifest.shards)
    del zoo, again
    gc.collect()
    used = dict.fromkeys(cache_folder().glob(shard_cache.SHARDS), 0.0)
    shard_cache.make_room(cache_folder(), num_bytes, lambda path: used[path], lambda path: None)
    assert len(in_cache()) == 10  # the two names of a file count once
    shard_cache.make_room(cache_folder(), num_bytes - 1, lambda path: used[path], lambda path: None)
    assert len(in_cache()) == 8


# Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://bucket/zoo?versionId=7", "without '[?]' and '#'"),
        ("https://host/zoo?sig=secret", "'https://host/zoo[?]...' is no address"),
        ("https://me:secret@host/zoo", "'https://...@host/zoo' holds a password"),
        ("https://secret@host/zoo", "holds a password or a token"),
        ("sftp://me:secret@host/zoo", "holds a password or a token"),
        ("file:///data/zoo", "is on this machine; give the path"),
        ("s3:/bucket/zoo", "write it as s3://bucket/zoo"),
        ("s3://", "write it as s3://bucket/zoo"),
        ("s3://bucket/../zoo", "write it as s3://bucket/zoo"),
        ("simplecache::s3://bucket/zoo", "write it as s3://bucket/zoo"),
        ("memory://a b", "write it as s3://bucket/zoo"),
    ],
)
def test_what_is_no_address(text, told):
    with pytest.raises(HubError, match=told) as caught:
        open_zoo(text)
    assert "secret" not in str(caught.value)


def test_addresses():
    assert parse_remote("S3://bucket/a/zoo/") == UrlAddress("s3", "bucket/a/zoo")
    assert str(parse_remote("sftp://me@host/zoo")) == "sftp://me@host/zoo"
    assert parse_remote("hf://me/zoo@v1") == HubAddress("me/zoo", "v1")


def test_a_package_that_is_missing(monkeypatch):
    def missing(protocol):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(HubError, match=r"'gs://b/zoo' needs a package that is not installed: Please install gcsfs"):
        open_zoo("gs://b/zoo")
    with suppress(ImportError):
        fsspec.get_filesystem_class("gs")
