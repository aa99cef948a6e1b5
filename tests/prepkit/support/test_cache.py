"""The cache folder and the environment."""

from pathlib import Path

from prepkit.support.cache import cache_folder


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("PREPKIT_CACHE", "~/a")
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path.home() / "a"
    monkeypatch.delenv("PREPKIT_CACHE")
    assert cache_folder() == Path("/hf/prepkit")
    monkeypatch.delenv("HF_HOME")
    assert cache_folder() == Path("/xdg/prepkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "prepkit"
