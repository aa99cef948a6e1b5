"""Zoos are pulled from stores that fsspec reads as from the Hub: in memory, and from a web server."""

import fsspec
import pytest
from click.testing import CliRunner
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import HubError, OutputError, ZooError
from prepkit.hub import _failures as failures
from prepkit.hub.pull import pull, pull_zoo
from prepkit.support.files import sha256_of_file

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Six instances in five shards, and a teacher."""
    return write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=6, teacher=True)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("prepkit.zoo.card.card.picture_of", lambda zoo: None)  # drawing takes long
    monkeypatch.chdir(tmp_path)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(params=["memory", "web"])
def address(request, hub, source):
    """The address of a copy in a store."""
    if request.param == "web":
        hub.add("me/zoo", contents(source))
        yield f"{hub.url}/datasets/me/zoo/resolve/main"
        return
    files = fsspec.filesystem("memory")
    for path, content in contents(source).items():
        files.pipe_file(f"/pulled/zoo/{path}", content)
    yield "memory://pulled/zoo"
    files.rm("/pulled", recursive=True)


def test_a_whole_zoo_comes_and_is_known_afterwards(address, source, tmp_path):
    pulled = pull_zoo(address, tmp_path / "here")
    here = contents(tmp_path / "here")
    assert {name: here[name] for name in contents(source)} == contents(source)
    assert verify(tmp_path / "here").ok
    assert (pulled.record.repo, pulled.record.commit) == (address, sha256_of_file(source / "zoo.json"))
    assert not pulled.was_there
    next((tmp_path / "here" / "shards").iterdir()).unlink()
    assert not pull_zoo(address, tmp_path / "here").was_there  # what is missing is fetched again
    assert pull_zoo(address, tmp_path / "here").was_there
    assert verify(tmp_path / "here").ok


def test_some_instances_become_a_zoo_that_says_where_they_are_from(address, source, tmp_path):
    root = pull(address, tmp_path / "some", where="split == 'train'")
    ids = open_zoo(source).where("split == 'train'").table["id"].to_pylist()
    assert open_zoo(root).table["id"].to_pylist() == ids
    origin = open_zoo(root).manifest.provenance["cut"]
    assert (origin["repo"], origin["commit"]) == (address, sha256_of_file(source / "zoo.json"))
    with pytest.raises(OutputError, match=r"holds .* of .*; name another folder"):
        pull(address, root)


def test_the_command_takes_the_last_part_as_the_folder(address, tmp_path):
    done = CliRunner().invoke(main, ["pull", address])
    assert done.exit_code == 0, done.output
    name = address.rpartition("/")[2]
    assert done.stdout.startswith(f"{address} -> {name}: 6 instances, ")
    assert "; zoo.json " in done.stdout
    assert len(open_zoo(tmp_path / name)) == 6


def test_what_cannot_be_pulled(tmp_path):
    with pytest.raises(HubError, match=r"has no revisions, as only the Hub has some; leave revision=v1 out"):
        pull("memory://pulled/zoo", revision="v1")
    done = CliRunner().invoke(main, ["pull", "memory://pulled/zoo", "--revision", "v1"])
    assert (done.exit_code, "leave --revision v1 out" in done.stderr) == (1, True)
    with pytest.raises(ZooError, match=r"memory://nothing/here is no zoo: there is no .*zoo\.json"):
        pull("memory://nothing/here")
    with pytest.raises(HubError, match="write it without"):
        pull("s3://bucket/zoo?key=x")
    with pytest.raises(HubError, match="is on this machine; give the path of its folder"):
        pull("file:///tmp/zoo")
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]
