"""What a zoo is normalised by comes with the zoo, with a part of it, and to those who stream it."""

import pytest
from pushed_zoos import write_zoo

from prepkit.api import open_zoo, verify
from prepkit.hub.pull import pull
from prepkit.hub.push import push
from prepkit.zoo.change.normalising import normalise


@pytest.mark.slow  # each file beside the shards goes the way of the teacher, which other tests follow
@pytest.mark.usefixtures("one_thread")
def test_it_comes_whole_in_part_and_streamed(hub, tmp_path, monkeypatch):
    root = write_zoo(tmp_path / "source" / "zoo")
    sha256 = normalise(root, split="test", card=False).stored.sha256
    push(root, "me/zoo")
    pull("me/zoo", tmp_path / "zoo")
    pull("me/zoo", tmp_path / "part", where="accuracy > 0.2")
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    for zoo in (open_zoo(tmp_path / "zoo"), open_zoo(tmp_path / "part"), open_zoo("hf://me/zoo")):
        zoo.check_preprocessing(sha256)
        assert list(zoo.preprocessing.normals) == ["vanilla_cnn@digits"]
    assert verify(tmp_path / "zoo").ok
    assert verify(tmp_path / "part").ok
