"""Zoos are pulled from stores that fsspec reads as from the Hub: in memory, and from a web server."""

import pytest
from click.testing import CliRunner
from folder_contents import files_of

from prepkit.api import open_zoo, verify
from prepkit.cli import main
from prepkit.errors import HubError, OutputError, ZooError
from prepkit.hub.pull import pull, pull_zoo
from prepkit.support.files import sha256_of_file

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _undrawn_in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr("prepkit.zoo.card.card.picture_of", lambda zoo: None)  # drawing takes long
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["memory", "web"])
def address(request):
    """The address of a copy in a store."""
    store = request.getfixturevalue(request.param)
    return store if request.param == "memory" else store.address


def test_a_whole_zoo_comes_and_is_known_afterwards(address, source, tmp_path):
    pulled = pull_zoo(address, tmp_path / "here")
    here = files_of(tmp_path / "here")
    assert {name: here[name] for name in files_of(source)} == files_of(source)
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
