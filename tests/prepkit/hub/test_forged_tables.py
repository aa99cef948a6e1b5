"""A table on the Hub has no more rows than its shards there have bytes for; else it is not even fetched."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folder_contents import files_of
from pushed_zoos import write_zoo

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.hub import _sizes
from prepkit.hub.pull import pull
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import checksum, read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 1_000_000


@pytest.fixture
def source(tmp_path):
    return write_zoo(tmp_path / "source", shard_bytes=10**6)


def forged(root):
    """The files of a zoo whose first shard claims a million rows, and whose table of equal rows is small."""
    manifest = read_manifest(root)
    table = pq.read_table(root / manifest.table.path)
    many = pa.table({name: pa.repeat(column[0], ROWS) for name, column in table.to_pydict().items()})
    pq.write_table(many, root / "many.parquet", compression="zstd")
    content = (root / "many.parquet").read_bytes()
    assert len(content) < 200_000
    data = json.loads((root / "zoo.json").read_text())
    first = data["shards"][0]
    data["shards"] = [first]
    first.update(rows=ROWS, bytes=ROWS * 64 * 512 * 4)
    data["table"].update(rows=ROWS, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    data["splits"] = {}
    data["sha256"] = checksum(data)
    shard = (root / first["path"]).read_bytes()
    return {"zoo.json": json.dumps(data).encode(), data["table"]["path"]: content, first["path"]: shard}


@pytest.mark.parametrize("has_shard", [True, False])
def test_rows_without_values_are_refused(hub, source, tmp_path, monkeypatch, has_shard):
    files = forged(source)
    shard = next(path for path in files if path.startswith("shards/"))
    size = len(files[shard]) if has_shard else 0
    if not has_shard:
        del files[shard]
    hub.add("me/zoo", files)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("the table was read"))
    message = rf"shards\[0\]: 1,000,000 rows take [0-9,]+ bytes, but of {shard} the repository has {size:,} bytes"
    for ask in (lambda: open_zoo("hf://me/zoo"), lambda: pull("me/zoo", tmp_path / "part", where="accuracy > 0")):
        with pytest.raises(ZooError, match=message):
            ask()
    assert set(hub.served()) == {"zoo.json"}
    assert not (tmp_path / "part").exists()


def test_a_sound_zoo_is_asked_for_once(hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr(_sizes, "FEW_ROWS", 3)
    hub.add("me/zoo", files_of(source))
    opened = open_zoo("hf://me/zoo")
    assert torch.equal(opened.preps(), open_zoo(source).preps())
    version = f"hf://me/zoo@{hub.head('me/zoo')}"
    hub.forget()
    open_zoo(version)
    assert hub.requests == []
    assert len(open_zoo(pull("me/zoo", tmp_path / "part", where="accuracy > 0.2"))) == 3


def test_a_small_zoo_needs_no_list_of_files(hub, source):
    hub.add("me/zoo", files_of(source))
    open_zoo("hf://me/zoo")
    assert not any("/tree/" in path for _, path in hub.requests)


def test_a_local_table_is_not_split_before_the_shards_are_looked_at(source, tmp_path, monkeypatch):
    for path, content in forged(source).items():
        (tmp_path / "zoo" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / path).write_bytes(content)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("the table was read"))
    with pytest.raises(ZooError, match=r"it has .* bytes, the manifest says"):
        split(tmp_path / "zoo")
