"""Whatever goes wrong on the way, a push is visible whole or not at all."""

import signal
import threading
import time

import pytest
from push_samples import command, content_of, without_card

from prepkit.errors import HubError
from prepkit.hub import _failures as failures
from prepkit.hub import upload
from prepkit.hub.bundle import Bundle, Upload
from prepkit.hub.push import push
from prepkit.hub.upload import interruptibly, push_bundle
from prepkit.zoo.format.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_a_push_that_is_stopped_shows_nothing_and_goes_on(hub, zoo, number, status, forked_python):
    shards = [shard.sha256 for shard in read_manifest(zoo).shards]
    hub.fault("busy", shards[-1], 99)  # the process waits, and tries again
    process = forked_python.start("-m", "prepkit", "push", zoo, "me/zoo")
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


def test_without_login_nothing_is_planned_for_what_cannot_be_seen(hub, zoo):
    hub.token, hub.hidden = "hf_right", 401
    with pytest.raises(
        HubError, match=r"the Hub does not let you see the dataset repository 'me/zoo', or there is none"
    ):
        push(zoo, "me/zoo", dry_run=True)


def test_what_fails_in_the_thread_that_sends_is_raised():
    with pytest.raises(ZeroDivisionError):
        interruptibly(lambda: 1 / 0)


def test_a_repository_without_its_owner_is_refused_with_what_to_write(hub, zoo):
    refused = command(zoo, "mine", status=1)
    assert "'mine' is no repository on the Hub; write USER/mine, with the name of its owner." in refused.stderr
