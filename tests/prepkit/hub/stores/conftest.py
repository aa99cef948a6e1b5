"""A zoo in stores that fsspec reads, and a cache of its own for each test.

The server of `hub` also gives the files of a branch by plain HTTP, under an address that has nothing of the Hub's.
"""

import fsspec
import pytest
from folder_contents import files_of
from pushed_zoos import write_zoo

from prepkit.hub import _failures as failures


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Six instances in five shards, and a teacher, in a folder."""
    return write_zoo(tmp_path_factory.mktemp("source") / "zoo", count=6, teacher=True)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(failures, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def memory(source):
    """The address of a copy in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path, content in files_of(source).items():
        files.pipe_file(f"/some/zoo/{path}", content)
    yield "memory://some/zoo"
    files.rm("/some", recursive=True)


@pytest.fixture
def web(hub, source):
    """A server that has the zoo at `web.address`."""
    hub.add("me/zoo", files_of(source))
    hub.address = f"{hub.url}/datasets/me/zoo/resolve/main"
    return hub
