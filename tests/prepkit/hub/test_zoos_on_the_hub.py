"""`zoo info`, `verify` and `export` of zoos on the Hub, addresses of all kinds, and servers that ask to wait."""

import os
import time

import pytest
import torch
from command_line import as_json, prepkit
from folder_contents import files_of
from pushed_zoos import write_zoo

import prepkit as prepkit_package
from prepkit.address import HubAddress, parse
from prepkit.api import create_zoo, open_zoo
from prepkit.errors import HubError, ZooError
from prepkit.hub._failures import retried
from prepkit.hub._shard_cache import SHARDS
from prepkit.hub.checkpoints import fetch_checkpoint
from prepkit.hub.pull import pull
from prepkit.hub.push import push
from prepkit.support.cache import cache_folder
from prepkit.zoo.change.splitting import split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=6, teacher=True)


@pytest.fixture
def filled(hub, source):
    hub.add("me/zoo", files_of(source))
    return hub


# Without a pull -----------------------------------------------------------------------------------------------


def test_info_fetches_the_manifest_only(filled, source):
    assert as_json("zoo", "info", "hf://me/zoo") == as_json("zoo", "info", source)
    assert list(filled.served()) == ["zoo.json"]
    assert as_json("zoo", "info", "hf://me/none", status=1)["error"]["kind"] == "HubError"


def test_export(filled, source, tmp_path):
    prepkit("zoo", "export", "hf://me/zoo", "m3", "-o", tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    expected = open_zoo(source)["m3"][0].tensors()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_sound_zoo_is_verified_without_its_shards(filled, source):
    result = as_json("zoo", "verify", "hf://me/zoo")
    zoo = open_zoo(source)
    assert (result["ok"], result["faults"], result["instances"]) == (True, [], 6)
    assert result["zoo"] == f"hf://me/zoo@{filled.head('me/zoo')}"
    number = len(zoo.manifest.shards)
    assert result["notes"] == [
        f"0 shards of {number} hashed in the cache; the sums that the Hub lists were compared for all."
    ]
    assert set(filled.served()) == {"zoo.json", zoo.manifest.table.path}


@pytest.mark.parametrize("address", ["hf://me/zoo", HubAddress("me/zoo")], ids=type)
def test_python_verifies_as_the_command_does(filled, source, address):
    sizes = []
    found = prepkit_package.verify(address, progress=sizes.append)
    assert (found.ok, found.faults, found.instances) == (True, (), 6)
    assert found.path == f"hf://me/zoo@{filled.head('me/zoo')}"
    assert not any(path.startswith("shards/") for path in filled.served())
    assert sum(sizes) == open_zoo(source).num_bytes
    filled.add("me/zoo", {"shards/" + next((source / "shards").iterdir()).name: b"other"})
    assert [fault.place for fault in prepkit_package.verify("hf://me/zoo").faults] == ["shards[0]"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "hf://me/zoo", "jobs": 2}, "jobs is the number of threads that hash a local zoo; leave it out"),
        ({"path": "hf://me/zoo", "data": "x"}, "data is the folder for running instances again; give rerun=N too"),
        ({"path": {"zoo": 1}}, "path: expected the folder of a zoo or hf://user/zoo; found a dict"),
        ({"path": "hf://me/none"}, "me/none"),
        ({"path": "s4://me/zoo"}, "'s4://me/zoo': fsspec knows no store 's4'"),
    ],
)
def test_what_python_cannot_verify_is_refused(filled, given, message):
    with pytest.raises(prepkit_package.PrepkitError, match=message):
        prepkit_package.verify(**given)


def test_what_is_no_path_is_no_zoo():
    with pytest.raises(ZooError, match="path: expected the folder of a zoo or hf://user/zoo; found a NoneType"):
        open_zoo(None)


def test_a_flipped_bit_in_the_cache_is_told_and_removed(filled, source):
    open_zoo("hf://me/zoo").preps()
    shard = sorted(cache_folder().glob(SHARDS))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    text = prepkit("zoo", "verify", "hf://me/zoo").stdout
    assert f"shards/{shard.name}: was damaged in the cache and removed from it" in text
    assert not shard.exists()
    assert "was damaged" not in prepkit("zoo", "verify", "hf://me/zoo").stdout
    assert torch.equal(open_zoo("hf://me/zoo").preps(), open_zoo(source).preps())


def test_faults_of_the_repository(filled, source):
    shards = [shard.path for shard in open_zoo(source).manifest.shards]
    held = filled.repos["datasets", "me/zoo"]
    content = held.versions[held.head][shards[0]].content
    filled.add("me/zoo", {shards[0]: content[:-1] + b"?", shards[1]: b"short"})
    del held.versions[held.head][shards[2]]
    result = as_json("zoo", "verify", "hf://me/zoo", status=1)
    problems = {fault["file"]: fault["problem"] for fault in result["faults"]}
    assert list(problems) == shards[:3]
    assert problems[shards[0]].startswith("its sha256 is ")
    assert problems[shards[1]].startswith("it has 5 bytes, the manifest says ")
    assert problems[shards[2]] == "the repository does not have it."


def test_a_shard_without_a_listed_sum_is_fetched(filled, source, monkeypatch):
    path = open_zoo(source).manifest.shards[0].path
    held = filled.repos["datasets", "me/zoo"]
    files = held.versions[held.head]
    files[path] = type(files[path])(files[path].content, lfs=False)
    assert as_json("zoo", "verify", "hf://me/zoo")["ok"]
    assert path in filled.served()


# Addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://u/m@refs/pr/1", HubAddress("u/m", "refs/pr/1")),
        ("hf://u/m@refs/pr/12/a/b.pt", HubAddress("u/m", "refs/pr/12", "a/b.pt")),
        ("hf://u/m@refs/convert/parquet/x", HubAddress("u/m", "refs/convert/parquet", "x")),
        ("hf://u/m@feature%2Fx/b.pt", HubAddress("u/m", "feature/x", "b.pt")),
        ("hf://u/m@v1.0/b.pt", HubAddress("u/m", "v1.0", "b.pt")),
        ("hf://u/m@refs/heads", HubAddress("u/m", "refs", "heads")),
    ],
)
def test_revisions(text, address):
    assert parse(text) == address
    assert parse(str(address)) == address


def test_a_pull_request_is_read(filled, source, tmp_path):
    commit = filled.head("me/zoo")
    filled.names["refs/pr/1"] = commit
    filled.add("me/zoo", {"zoo.json": b"{}"})
    pull("me/zoo", tmp_path / "a", revision="refs/pr/1")
    pull("hf://me/zoo@refs/pr/1", tmp_path / "b")
    for zoo in (open_zoo(tmp_path / "a"), open_zoo(tmp_path / "b"), open_zoo("hf://me/zoo@refs/pr/1")):
        assert torch.equal(zoo.preps(), open_zoo(source).preps())
    model = filled.add("me/m", {"model.safetensors": b"1"}, repo_type="model")
    filled.names["refs/pr/2"] = model
    assert fetch_checkpoint("hf://me/m@refs/pr/2").address == HubAddress("me/m", model, "model.safetensors")


def test_addresses_of_other_kinds(tmp_path):
    for read in (fetch_checkpoint, lambda text: create_zoo(tmp_path / "new", [text])):
        with pytest.raises(HubError, match=r"'s3://bucket/zoo' cannot be read here: this takes hf://user/name"):
            read("s3://bucket/zoo")
    assert "'gs://bucket/zoo' cannot be read here" in prepkit("pack", "gs://bucket/zoo", status=2).stderr
    with pytest.raises(HubError, match=r"'s4://bucket/zoo': fsspec knows no store 's4'.* Did you mean 's3'"):
        open_zoo("s4://bucket/zoo")
    with pytest.raises(ZooError, match="takes a local folder; `prepkit pull` brings a zoo from hf://user/zoo"):
        split("hf://me/zoo")


# Servers ------------------------------------------------------------------------------------------------------


def test_a_server_that_asks_to_wait_is_waited_for(filled, source, tmp_path):
    for work in (
        lambda: open_zoo("hf://me/zoo"),
        lambda: pull("me/zoo", tmp_path / "here"),
        lambda: as_json("zoo", "verify", "hf://me/zoo"),
        lambda: push(source, "me/other"),
    ):
        begin = time.monotonic()
        filled.fault("limit", "", times=1)
        work()
        assert time.monotonic() - begin >= 1


def test_pauses_are_as_long_as_the_server_asks():
    from huggingface_hub.errors import HfHubHTTPError

    def work(seconds, failures):
        class Response:
            status_code, headers, request = 429, {"Retry-After": seconds}, None

        def call():
            if failures:
                failures.pop()
                raise HfHubHTTPError("slow down", response=Response())
            return "done"

        return call

    pauses = []
    assert retried(work("7", [1, 2]), pause=pauses.append) == "done"
    assert pauses == [7, 7]
    assert retried(work("soon", [1]), pause=pauses.append) == "done"
    assert pauses == [7, 7, 0.5]
    with pytest.raises(HfHubHTTPError):
        retried(work("3600", [1]), pause=pauses.append)
    assert len(pauses) == 3


def test_a_hub_without_xet_says_what_to_set(hub, source, forked_python):
    pytest.importorskip("hf_xet")
    script = f"from prepkit.hub.push import push; push({str(source)!r}, 'me/zoo')"
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "0", "HF_TOKEN": "hf_x"}
    result = forked_python.run("-c", script, env=environment)
    assert "this Hub does not serve the dataset repository 'me/zoo' by Xet" in result.stderr
    assert "set HF_HUB_DISABLE_XET=1 and run it again." in result.stderr
