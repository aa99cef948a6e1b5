"""What a pull does with what lies in its folder already: zoos, older ones and damaged ones, and other files."""

import os

import pytest
import torch
from pull_samples import add, files_of, flip
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import HubError, OutputError, ZooError, ZooLocked
from prepkit.hub.pull import pull, pull_zoo
from prepkit.support.lock import changing
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("damage", [flip, os.remove, lambda file: os.truncate(file, 100)])
@pytest.mark.parametrize("kind", ["shard", "table", "teacher"])
def test_damage_on_the_disk_is_found_and_mended(hub, source, tmp_path, kind, damage):
    commit = add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    manifest = read_manifest(root)
    path = {"shard": manifest.shards[1].path, "table": manifest.table.path, "teacher": manifest.teacher.path}[kind]
    damage(root / path)
    hub.forget()
    assert not pull_zoo("me/zoo", root, revision=commit).was_there
    assert [served for served, _ in hub.bodies] == [path]
    assert files_of(root) == files_of(source)


def test_another_version_is_refused_and_replaces_the_old_one_when_forced(hub, source, newer, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    hub.add("me/zoo", files_of(newer))
    with pytest.raises(OutputError, match=r"holds the whole zoo of me/zoo at \w{12}, not .* force=True"):
        pull("me/zoo", root)
    assert files_of(root) == files_of(source)
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(newer)


def test_an_old_zoo_stays_whole_until_the_new_one_is(hub, source, newer, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    hub.add("me/zoo", files_of(newer))
    path = read_manifest(newer).shards[-1].path
    hub.fault("flip", path, times=99)
    with pytest.raises(HubError, match="came damaged"):
        pull("me/zoo", root, force=True)
    assert verify(root).ok
    assert read_manifest(root) == read_manifest(source)
    assert torch.equal(open_zoo(root).preps(), open_zoo(source).preps())
    hub.fault("flip", path, times=0)
    hub.forget()
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(newer)


def test_a_zoo_that_was_changed_is_not_replaced(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    split(root, {"train": 1.0}, card=False, force=True)
    mine = read_manifest(root)
    with pytest.raises(OutputError, match="not this one, or was changed"):
        pull("me/zoo", root)
    assert read_manifest(root) == mine
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


def test_a_forced_pull_leaves_nothing_of_one_that_was_interrupted(hub, source, tmp_path):
    add(hub, source)
    root = write_zoo(tmp_path / "here", count=4, seed=50)
    path = read_manifest(source).shards[-1].path
    hub.fault("flip", path, times=99)
    with pytest.raises(HubError, match="damaged"):
        pull("me/zoo", root, force=True)
    other = write_zoo(tmp_path / "other", count=3, seed=70)
    add(hub, other, "me/other")
    assert any((root / shard.path).exists() for shard in read_manifest(source).shards)
    pull("me/other", root, force=True)
    assert verify(root).notes == ()
    assert files_of(root) == files_of(other)


def test_a_zoo_that_is_being_changed_is_not_replaced(hub, source, tmp_path):
    add(hub, source)
    root = write_zoo(tmp_path / "here", count=4, seed=50)
    before = files_of(root)
    with changing(root), pytest.raises(ZooLocked, match="is being written by process"):
        pull("me/zoo", root, force=True)
    assert files_of(root) == before
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


def test_a_zoo_whose_manifest_is_damaged_is_replaced_when_forced(hub, source, tmp_path):
    add(hub, source)
    root = pull("me/zoo", tmp_path / "here")
    (root / "zoo.json").write_text("{")
    with pytest.raises(OutputError, match="force=True"):
        pull("me/zoo", root)
    pull("me/zoo", root, force=True)
    assert files_of(root) == files_of(source)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_files_is_left_alone(hub, source, tmp_path, force):
    add(hub, source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"holds other files \(thesis.tex\)"):
        pull("me/zoo", tmp_path / "mine", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        pull("me/zoo", tmp_path / "file", force=force)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zoo.json").write_text('{"animals": 3}')
    with pytest.raises((OutputError, ZooError)):
        pull("me/zoo", tmp_path / "other", force=force)
    assert (tmp_path / "other" / "zoo.json").read_text() == '{"animals": 3}'


def test_an_empty_folder_is_filled(hub, source, tmp_path):
    add(hub, source)
    (tmp_path / "here").mkdir()
    assert files_of(pull("me/zoo", tmp_path / "here")) == files_of(source)
