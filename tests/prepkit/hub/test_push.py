"""A push is visible whole or not at all, arrives bit for bit, and sends nothing twice.

The Hub's own client talks to a small server that speaks its protocol.
"""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi
from pushed_zoos import write_zoo

from prepkit.cli import main
from prepkit.errors import HubError
from prepkit.hub import _failures as failures
from prepkit.hub import upload
from prepkit.hub.bundle import Bundle, Upload
from prepkit.hub.client import hub_cache_folder
from prepkit.hub.push import push
from prepkit.hub.upload import interruptibly, push_bundle
from prepkit.zoo.card.card import PICTURE, README, write_card
from prepkit.zoo.format.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = write_zoo(tmp_path_factory.mktemp("pushed") / "zoo", teacher=True)
    write_card(root)
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another zoo, none of whose files has the content of a file of the first."""
    root = write_zoo(tmp_path_factory.mktemp("other") / "zoo", count=8, seed=50)
    write_card(root)
    return root


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["push", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def content_of(root):
    """Contents of a zoo's files, without the card."""
    manifest = read_manifest(root)
    paths = [shard.path for shard in manifest.shards] + [manifest.table.path, "zoo.json"]
    paths += [manifest.teacher.path] if manifest.teacher else []
    return {path: (root / path).read_bytes() for path in paths}


def without_card(files):
    """Leave out what a push adds to a zoo; the tests of the viewer read its copies of the table."""
    added = (README, PICTURE, ".gitattributes")
    return {path: content for path, content in files.items() if path not in added and not path.startswith("viewer/")}


# What arrives -------------------------------------------------------------------------------------------------


def test_it_arrives_bit_for_bit_in_one_commit(hub, zoo):
    before = content_of(zoo)
    told = []
    done = push(zoo, "me/zoo", progress=told.append)
    assert (done.created, done.commits, done.others) == (True, 1, ())
    files = hub.files("me/zoo")
    assert without_card(files) == before
    assert b'open_zoo("hf://me/zoo")' in files[README]
    assert files[PICTURE] == (zoo / PICTURE).read_bytes()
    assert done.commit == hub.head("me/zoo")
    assert sum(told) == sum(file.bytes for file in done.files) == done.new_bytes
    assert min(told) >= 0
    assert content_of(zoo) == before


def test_the_same_again_sends_nothing_and_makes_no_commit(hub, zoo):
    first = push(zoo, "me/zoo")
    hub.forget()
    told = []
    again = push(zoo, "me/zoo", progress=told.append)
    assert (again.commit, again.commits, again.created, again.new_bytes) == (first.commit, 0, False, 0)
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert sum(told) == sum(file.bytes for file in again.files)


def test_a_new_version_sends_what_is_new_and_the_old_one_stays(hub, zoo, tmp_path):
    first = push(zoo, "me/zoo")
    old = hub.files("me/zoo")
    root = write_zoo(tmp_path / "zoo", count=8, teacher=True)  # its first six instances are those of `zoo`
    hub.forget()
    told = []
    second = push(root, "me/zoo", progress=told.append)
    assert sum(told) == sum(file.bytes for file in second.files)
    assert any(file.there for file in second.files if file.path.startswith("shards/"))
    files = hub.files("me/zoo")
    new = {file.path for file in second.files if not file.there}
    assert set(hub.uploaded()) <= {hashlib.sha256(files[path]).hexdigest() for path in new}
    assert len(hub.uploaded()) == len(set(hub.uploaded()))
    assert hub.files("me/zoo", first.commit) == old
    assert without_card(files) == {**without_card(old), **content_of(root)}
    assert set(second.others) == old.keys() - {".gitattributes"} - {file.path for file in second.files}


def test_more_files_than_a_commit_has_go_with_the_manifest_last(hub, zoo, other, monkeypatch):
    first = push(other, "me/zoo")
    monkeypatch.setattr(upload, "FILES_PER_COMMIT", 4)
    done = push(zoo, "me/zoo")
    assert done.commits == 3
    versions = [hub.files("me/zoo", commit) for commit in hub.commits("me/zoo")]
    assert without_card(versions[-1]) == {**without_card(versions[-4]), **content_of(zoo)}
    for version in versions[-3:-1]:  # the older zoo is whole in them
        assert {path: version[path] for path in content_of(other)} == content_of(other)
    assert first.commit in hub.commits("me/zoo")


def test_a_private_repository(hub, zoo):
    push(zoo, "me/zoo", private=True)
    assert hub.is_private("me/zoo")
    push(zoo, "me/zoo", private=True)
    push(zoo, "me/open")
    assert not hub.is_private("me/open")
    with pytest.raises(HubError, match=r"'me/open' is there already and public; make it private in its settings"):
        push(zoo, "me/open", private=True)


def test_a_model_repository_through_the_same_code(hub, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"weights" * 100)
    files = [Upload.of("a/w.safetensors", tmp_path / "w.safetensors"), Upload.of("README.md", b"---\n---\nrun")]
    done = push_bundle(Bundle("me/run", "model", "a run", tuple(files)))
    assert (done.created, done.commits) == (True, 1)
    held = hub.files("me/run", repo_type="model")
    assert held["a/w.safetensors"] == b"weights" * 100
    assert held["README.md"] == b"---\n---\nrun"
    assert push_bundle(Bundle("me/run", "model", "again", tuple(files))).commits == 0


# The command --------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_files_and_sizes_and_changes_nothing(hub, zoo):
    told = command(zoo, "me/zoo", "--dry-run", "--private").stdout
    for path, content in content_of(zoo).items():
        assert any(line.split() == [path, f"{len(content):,}", "new"] for line in told.splitlines())
    assert "would send to a new private repository me/zoo: 12 files" in told
    assert not hub.exists("me/zoo")
    document = json.loads(command(zoo, "me/zoo", "--dry-run", "--json").stdout)
    assert (document["commit"], document["created"], document["dry_run"]) == (None, True, True)
    assert document["bytes"] == document["new_bytes"] == sum(file["bytes"] for file in document["files"])
    push(zoo, "me/zoo")
    assert "there already" in command(zoo, "me/zoo", "--dry-run").stdout


def test_the_command_tells_commit_and_page(hub, zoo):
    told = command(zoo, "hf://me/zoo").stdout
    assert f"{zoo} -> me/zoo: 12 files" in told
    assert hub.head("me/zoo") in told
    assert told.endswith(f"{hub.url}/datasets/me/zoo\n")
    document = json.loads(command(zoo, "me/zoo", "--json").stdout)
    assert document["commit"] == hub.head("me/zoo")
    assert all(file["there"] for file in document["files"])
    assert "has all of" in command(zoo, "me/zoo").stdout


def test_a_licence_is_given_on_the_way(hub, tmp_path):
    root = write_zoo(tmp_path / "zoo", count=2, license=None)
    assert "no licence" in command(root, "me/zoo", status=2).stderr
    assert not hub.exists("me/zoo")
    command(root, "me/zoo", "--license", "cc-by-4.0")
    assert json.loads(hub.files("me/zoo")["zoo.json"])["license"] == "cc-by-4.0"
    assert (root / "zoo.json").read_bytes() == hub.files("me/zoo")["zoo.json"]


@pytest.mark.parametrize(
    ("repo", "told"),
    [
        ("zoo", "no address on the Hub"),
        ("me/zoo@main", "newest version of a whole repository; write me/zoo."),
        ("me/zoo/shards", "newest version of a whole repository; write me/zoo."),
        ("me/zoo--x", "is no name of a repository"),
    ],
)
def test_what_is_no_repository_is_told(hub, zoo, repo, told):
    assert told in command(zoo, repo, status=1).stderr
    assert hub.requests == []


# What goes wrong ----------------------------------------------------------------------------------------------


def test_a_push_beside_another_is_told_and_changes_nothing(hub, zoo, other, monkeypatch):
    push(zoo, "me/zoo")
    real_upload = upload._Version.upload

    def overtaken(version, files, progress):
        additions = real_upload(version, files, progress)
        hub.add("me/zoo", {"theirs.txt": b"theirs"})
        return additions

    with monkeypatch.context() as patch:
        patch.setattr(upload._Version, "upload", overtaken)
        with pytest.raises(
            HubError, match=r"'me/zoo' got another version while this one was uploaded, so this one was not made"
        ):
            push(other, "me/zoo")
    assert without_card(hub.files("me/zoo")) == {**content_of(zoo), "theirs.txt": b"theirs"}
    hub.forget()
    done = push(other, "me/zoo")
    assert hub.uploaded() == []  # it was there from the first attempt
    assert content_of(other).items() <= hub.files("me/zoo").items()
    assert "theirs.txt" in done.others


def test_two_at_once_leave_one_whole_zoo(hub, zoo, other):
    push_bundle(Bundle("me/zoo", "dataset", "begin", (Upload.of("a.txt", b"a"),)))
    told = []

    def run(root):
        try:
            push(root, "me/zoo")
        except HubError as error:
            told.append(str(error))

    threads = [threading.Thread(target=run, args=(root,)) for root in (zoo, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = hub.files("me/zoo")
    winner = zoo if files["zoo.json"] == (zoo / "zoo.json").read_bytes() else other
    assert content_of(winner).items() <= files.items()
    assert len(told) + len(hub.commits("me/zoo")) >= 3
    assert all("got another version" in text for text in told)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, zoo, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    begun = push_bundle(Bundle("me/zoo", "dataset", "begin", (Upload.of("a.txt", b"a"),)))
    hub.fault("lost", "/commit/main")
    done = push(zoo, "me/zoo")
    assert done.commit == hub.head("me/zoo")
    assert hub.commits("me/zoo")[-2:] == [begun.commit, done.commit]
    assert content_of(zoo).items() <= hub.files("me/zoo").items()


def test_a_busy_server_is_asked_again(hub, zoo, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    hub.fault("busy", "/commit/main", 2)
    assert push(zoo, "me/zoo").commit == hub.head("me/zoo")


def test_a_server_that_stays_busy_is_told_and_nothing_is_visible(hub, zoo, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)
    hub.fault("busy", "/commit/main", 99)
    with pytest.raises(HubError, match=r"the Hub is busy or broken just now \(HTTP 503, dataset repository 'me/zoo'\)"):
        push(zoo, "me/zoo")
    assert without_card(hub.files("me/zoo")) == {}


def test_a_file_that_changes_on_the_way_is_not_pushed(hub, zoo, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"before")
    files = [Upload.of("w.safetensors", file)]
    file.write_bytes(b"after.")
    with pytest.raises(
        HubError, match=r"'w.safetensors' was changed or removed while it was pushed; nothing is visible"
    ):
        push_bundle(Bundle("me/zoo", "dataset", "m", tuple(files)))
    file.unlink()
    with pytest.raises(
        HubError, match=r"'w.safetensors' was changed or removed while it was pushed; nothing is visible"
    ):
        push_bundle(Bundle("me/zoo", "dataset", "m", tuple(files)))
    assert without_card(hub.files("me/zoo")) == {}


def test_a_server_out_of_reach_is_told(hub, zoo, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached for the dataset repository 'me/zoo'" in command(zoo, "me/zoo", status=1).stderr
    with pytest.raises(HubError) as caught:
        push(zoo, "me/zoo", dry_run=True)
    assert (caught.value.repo, caught.value.status) == ("me/zoo", None)


@pytest.mark.parametrize("path", ["large.safetensors", "small.txt"])
def test_other_content_of_the_same_size_is_sent(hub, path):
    for content in (b"before", b"after.", b"after."):
        files = [Upload.of(path, content)]
        done = push_bundle(Bundle("me/zoo", "dataset", "m", tuple(files)))
        assert hub.files("me/zoo")[path] == content
    assert done.commits == 0


def test_a_body_that_is_sent_twice_is_counted_once(hub, tmp_path):
    file = tmp_path / "w.bin"
    file.write_bytes(bytes(range(250)) * 2000)  # more than the client reads at once
    sent = Upload.of("w.bin", file)
    hub.fault("busy", sent.sha256)
    told = []
    push_bundle(Bundle("me/run", "model", "m", (sent,)), progress=told.append)
    assert hub.uploaded() == [sent.sha256] * 2
    assert sum(told) == sent.size
    assert min(told) >= 0
    assert hub.files("me/run", repo_type="model")["w.bin"] == file.read_bytes()


def test_a_version_that_is_not_whole_is_told(hub, zoo):
    shard = read_manifest(zoo).shards[0]
    hub.fault("ignore", shard.path)
    with pytest.raises(
        HubError, match=rf"commit \w{{40}} of 'me/zoo' was made, but does not hold what was sent as {shard.path};"
    ):
        push(zoo, "me/zoo")
    push(zoo, "me/zoo")
    assert content_of(zoo).items() <= hub.files("me/zoo").items()


def test_trees_of_several_pages_are_read_whole(hub, zoo):
    push(zoo, "me/zoo")
    hub.page_size = 2
    assert push(zoo, "me/zoo").commits == 0


def test_a_push_says_nothing_on_its_own(hub, zoo, capfd):
    push(zoo, "me/zoo")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_without_the_right_token_nothing_is_pushed(hub, zoo, token, monkeypatch):
    hub.token = "hf_right"
    with pytest.raises(HubError, match=r"(log in with `hf auth login`, or set HF_TOKEN|does not know your token)"):
        push(zoo, "me/zoo", token=token)
    assert not hub.exists("me/zoo")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    push(zoo, "me/zoo", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="log in with `hf auth login`"):
        push(zoo, "me/zoo", token=token)
    assert push(zoo, "me/zoo", token="hf_right").commits == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_push_that_is_stopped_shows_nothing_and_goes_on(hub, zoo, number, status):
    shards = [shard.sha256 for shard in read_manifest(zoo).shards]
    hub.fault("busy", shards[-1], 99)  # the process waits, and tries again
    process = subprocess.Popen(
        [sys.executable, "-c", "from prepkit.cli import main; main()", "push", str(zoo), "me/zoo"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not set(shards[:-1]) <= hub.objects.keys() or shards[-1] not in hub.uploaded():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == status, told
    assert hub.uploaded().count(shards[-1]) <= 2  # the client would have tried five times more
    assert number == signal.SIGKILL or "interrupted; what was sent is kept. The same command goes on." in told
    assert without_card(hub.files("me/zoo")) == {}
    hub.fault("busy", shards[-1], 0)
    hub.forget()
    push(zoo, "me/zoo")
    assert not set(hub.uploaded()) & set(shards[:-1])
    assert content_of(zoo).items() <= hub.files("me/zoo").items()


def test_a_zoo_in_the_hubs_own_cache_is_pushed_on(hub, zoo):
    commit = push(zoo, "me/zoo").commit
    snapshot = HfApi(endpoint=hub.url).snapshot_download(
        "me/zoo", repo_type="dataset", revision=commit, cache_dir=hub_cache_folder()
    )
    push(snapshot, "me/copy")
    assert without_card(hub.files("me/copy")) == content_of(zoo)
    assert b'open_zoo("hf://me/copy")' in hub.files("me/copy")[README]


@pytest.mark.parametrize("settings", [{"count": 0}, {"count": 2, "format": "hdf5"}, {"count": 2, "dtype": "float64"}])
def test_zoos_of_all_kinds_are_pushed(hub, tmp_path, settings):
    root = write_zoo(tmp_path / "zoo", **settings)
    push(root, "me/zoo")
    assert without_card(hub.files("me/zoo")) == content_of(root)


def test_without_login_nothing_is_planned_for_what_cannot_be_seen(hub, zoo):
    hub.token, hub.hidden = "hf_right", 401
    with pytest.raises(
        HubError, match=r"the Hub does not let you see the dataset repository 'me/zoo', or there is none"
    ):
        push(zoo, "me/zoo", dry_run=True)


def test_a_folder_called_tilde_is_no_home(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    Path("~/a.bin").write_bytes(b"a")
    push_bundle(Bundle("me/run", "model", "m", (Upload.of("a.bin", Path("~/a.bin")),)))
    assert hub.files("me/run", repo_type="model")["a.bin"] == b"a"


def test_what_fails_in_the_thread_that_sends_is_raised():
    with pytest.raises(ZeroDivisionError):
        interruptibly(lambda: 1 / 0)
