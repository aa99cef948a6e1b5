"""Tests of zoos whose manifest or table must be refused."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from folder_contents import files_of
from forged_zoos import replace_table, rewrite_manifest, table_of
from writer_samples import tensors_of

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest
from prepkit.zoo.write.writer import ZooWriter

MODELS = r"models-[0-9a-f]{12}\.parquet"

NOT_UTF8 = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())


class TestManifest:
    @pytest.fixture
    def root(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8) as writer:
            for seed in range(3):
                writer.add(tensors_of(seed), split="train", accuracy=seed / 4)
        return tmp_path / "zoo"

    def refused(self, root: Path, match: str) -> None:
        with pytest.raises(ZooError, match=match):
            open_zoo(root)

    def test_every_flipped_bit_is_refused(self, root):
        content = (root / MANIFEST).read_bytes()
        random = np.random.default_rng(0)
        for position in range(len(content)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << random.integers(8)
            (root / MANIFEST).write_bytes(damaged)
            with pytest.raises(ZooError, match=r"zoo\.json"):
                read_manifest(root)

    def test_every_truncation_is_refused(self, root):
        content = (root / MANIFEST).read_bytes().rstrip()
        for end in range(0, len(content), 7):
            (root / MANIFEST).write_bytes(content[:end])
            with pytest.raises(ZooError, match=r"zoo\.json"):
                read_manifest(root)

    def test_unknown_keys_are_kept(self, root):
        rewrite_manifest(root, lambda data: data.update(invented_later={"a": [1]}))
        assert open_zoo(root).manifest.to_dict()["invented_later"] == {"a": [1]}

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"format": "prepkit-zoo/2"}, "newer .* upgrade prepkit"),
            ({"format": "something"}, "not a prepkit zoo"),
            ({"width": 12}, "multiple of 8"),
            ({"height": 0}, "not positive"),
            ({"height": True}, "height: expected a whole number; found true"),
            ({"dtype": "int8"}, "expected one of float64"),
            ({"shard_format": "zip"}, "unknown shard format 'zip'"),
            ({"splits": {"train": -1}}, "splits"),
            ({"splits": {"train": 99}}, "splits"),
            ({"table": None}, "table"),
            ({"shards": []}, "the table has 3 rows, the shards 0"),
            ({"name": float("nan")}, "damaged"),
        ],
    )
    def test_wrong_values(self, root, change, match):
        data = json.loads((root / MANIFEST).read_text())
        data.update(change)
        if data["name"] == data["name"]:
            data["sha256"] = checksum(data)
        (root / MANIFEST).write_text(json.dumps(data))
        self.refused(root, match)

    @pytest.mark.parametrize(
        "path",
        ["../zoo.safetensors", "/etc/passwd", "shards/../../x", "shards\\x", "C:/x", "//host/x", "", ".", "~/x"]
        + ["shards//x", "./x", "shards/x\x00", "shards/.hidden", "shards/", "C:x", "shards/a b"],
    )
    @pytest.mark.parametrize("what", ["shards", "table"])
    def test_paths_that_lead_elsewhere(self, root, path, what):
        def change(data):
            (data["shards"][0] if what == "shards" else data["table"])["path"] = path

        rewrite_manifest(root, change)
        self.refused(root, "is refused")

    @pytest.mark.parametrize("name", ["../x", "a/b", ".x", ""])
    def test_architectures_that_cannot_stand_in_a_file_name(self, root, name):
        rewrite_manifest(root, lambda data: data["architectures"][0].update(name=name))
        self.refused(root, "refused")

    def test_absurd_shapes(self, root):
        def change(data):
            data["architectures"][0]["layout"]["slots"][0]["shape"] = [1 << 40, 1 << 40]

        rewrite_manifest(root, change)
        self.refused(root, r"slots\[0\]\.shape: .* is too large")

    def test_more_rows_than_the_file_has(self, root):
        def change(data):
            data["shards"][0]["rows"] = data["table"]["rows"] = 1 << 40

        rewrite_manifest(root, change)
        self.refused(root, r"zoo\.json, shards\[0\]\.rows: .* would take 140,737,488,355,328 bytes, but the shard has")
        rewrite_manifest(root, lambda data: data["shards"][0].update(bytes=1 << 59))
        (root / read_manifest(root).table.path).write_bytes(b"not read before the sizes of the shards are known")
        self.refused(root, r"safetensors: it has .* bytes, the manifest says 576,460,752,303,423,488")

    def test_fewer_rows_than_the_table_has(self, root):
        rewrite_manifest(root, lambda data: (data["shards"][0].update(rows=2), data["table"].update(rows=2)))
        rewrite_manifest(root, lambda data: data["splits"].update(train=2))
        self.refused(root, r"parquet: it has 3 rows, the manifest says 2")

    @pytest.mark.parametrize("place", ["name", "task", "splits", "slot", "tie", "config", "later"])
    @pytest.mark.parametrize("half", ["\ud800", "x\udfff"])
    def test_text_that_is_not_unicode(self, root, place, half):
        def change(data):
            stored = data["architectures"][0]
            changes = {
                "name": lambda: data.update(name=half),
                "task": lambda: data.update(task={"kind": ["images", half]}),
                "splits": lambda: data["splits"].update({half: 0}),
                "slot": lambda: stored["layout"]["slots"][1].update(name=half),
                "tie": lambda: stored["layout"]["ties"].append([half, stored["layout"]["slots"][0]["name"]]),
                "config": lambda: stored.update(config={half: 1}),
                "later": lambda: data.update(invented_later=[half]),
            }
            changes[place]()

        rewrite_manifest(root, change)
        self.refused(root, r"zoo\.json, .*: the text is not Unicode")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"dtype": ["float32"]}, r"slots\[0\]\.dtype: expected one of float64"),
            ({"dtype": {"float32": 1}}, r"slots\[0\]\.dtype: expected one of float64"),
            ({"shape": [10**400]}, r"slots\[0\]\.shape: a tensor of more than .* values is too large"),
            ({"kind": ["parameter"]}, r"slots\[0\]\.kind: expected 'parameter'"),
            ({"name": ["w"]}, r"slots\[0\]\.name: expected Unicode text"),
        ],
    )
    def test_slots_of_other_kinds(self, root, change, match):
        rewrite_manifest(root, lambda data: data["architectures"][0]["layout"]["slots"][0].update(change))
        self.refused(root, match)

    def test_absurd_height(self, root):
        rewrite_manifest(root, lambda data: data.update(height=1 << 40))
        self.refused(root, r"zoo\.json, height: PReps of 1099511627776 x 8 are refused")

    def test_memory_that_is_not_there(self, root):
        rewrite_manifest(root, lambda data: data.update(height=1 << 33))
        zoo = open_zoo(root)
        for read in (zoo.preps, lambda: zoo.preps(slice(0, 1), height=1 << 60), zoo.masks):
            with pytest.raises(ZooError, match=r"PReps of \d+ x 8 take .* bytes, which memory does not have"):
                read()

    def test_links(self, root, tmp_path):
        file = root / read_manifest(root).shards[0].path
        outside = tmp_path / "outside.safetensors"
        shutil.move(file, outside)
        os.symlink(outside, file)
        self.refused(root, "is a link to .* copy the file")
        file.unlink()
        shutil.move(outside, file)
        shutil.move(root / "shards", tmp_path / "shards")
        os.symlink(tmp_path / "shards", root / "shards")
        self.refused(root, "is a link")

    def test_links_of_the_hubs_cache_are_followed(self, root, tmp_path):
        repository = tmp_path / "hub" / "datasets--me--zoo"
        snapshot = repository / "snapshots" / ("a" * 40)
        (repository / "blobs").mkdir(parents=True)
        for index, (name, content) in enumerate(files_of(root).items()):
            blob = repository / "blobs" / f"{index:064x}"
            blob.write_bytes(content)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            up = "../" * (len(Path(name).parts) + 1)
            os.symlink(f"{up}blobs/{blob.name}", snapshot / name)
        assert torch.equal(open_zoo(snapshot).preps(), open_zoo(root).preps())
        shard = snapshot / read_manifest(root).shards[0].path
        shard.unlink()
        (tmp_path / "evil").write_bytes((root / read_manifest(root).shards[0].path).read_bytes())
        os.symlink(tmp_path / "evil", shard)
        self.refused(snapshot, "is a link")

    def test_table_damaged_missing_or_wrong(self, root):
        table = root / read_manifest(root).table.path
        content = table.read_bytes()
        random = np.random.default_rng(1)
        for position in random.integers(len(content), size=40).tolist():
            damaged = bytearray(content)
            damaged[position] ^= 1 << random.integers(8)
            table.write_bytes(damaged)
            self.refused(root, r"models-.*\.parquet: damaged")
        table.unlink()
        self.refused(root, r"models-.*\.parquet: missing")

    @pytest.mark.parametrize(
        ("name", "values", "match"),
        [
            ("shard", [0, 0, 1], "row 2: there is no shard 1"),
            ("shard", [0, -1, 0], "row 1: there is no shard -1"),
            ("row", [0, 3, 1], "row 1: its shard has no row 3"),
            ("row", [0, None, 1], "column 'row': it has missing values"),
            ("row", ["0", "1", "2"], "column 'row': it has type string, not whole numbers"),
            ("shard", None, "columns shard are missing"),
            ("id", [1, 2, 3], "column 'id': it has type int64, not text"),
            ("id", ["a", None, "c"], "column 'id': it has missing values"),
            ("id", [b"a", b"b", b"c"], "column 'id': it has type binary, not text"),
            ("id", NOT_UTF8, "column 'id': damaged values .*UTF8"),
            ("note", NOT_UTF8, "column 'note': damaged values .*UTF8"),
            ("architecture", [None] * 3, "column 'architecture': it has type null, not text"),
            ("split", [1.5, 2.5, None], "column 'split': it has type double, not text"),
            ("class_id", ["0", "0", "0"], "column 'class_id': it has type string, not whole numbers"),
        ],
    )
    def test_forged_tables(self, root, name, values, match):
        table = table_of(root)
        table = table.drop_columns([name] if name in table.column_names else [])
        replace_table(root, table if values is None else table.append_column(name, pa.array(values)))
        self.refused(root, f"{MODELS}.*{match}")
        assert verify(root).faults[0].file == read_manifest(root).table.path

    def test_a_column_that_stands_twice(self, root):
        table = table_of(root)
        replace_table(root, table.append_column("accuracy", table["accuracy"]))
        self.refused(root, f"{MODELS}: the columns accuracy stand twice")

    def test_a_small_table_of_very_many_rows_is_refused_before_it_is_read(self, root, monkeypatch):
        many = pa.table({name: pa.repeat(column[0], 1_000_000) for name, column in table_of(root).to_pydict().items()})
        replace_table(root, many)
        monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("the table was read"))
        self.refused(root, f"{MODELS}: it has 1,000,000 rows, the manifest says 3")
        rewrite_manifest(root, lambda data: (data["shards"][0].update(rows=10**6), data["table"].update(rows=10**6)))
        self.refused(root, r"zoo\.json, shards\[0\]\.rows: 1,000,000 rows would take 128,000,000 bytes")

    def test_columns_of_other_kinds_are_read_and_exported(self, root, tmp_path, forked_python):
        from datetime import UTC, datetime, time

        table = table_of(root)
        nanoseconds = pa.array([1, None, 2], pa.timestamp("ns"))
        columns = {
            "curve": pa.array([[0.5, math.nan], None, []]),
            "when": pa.array([datetime(2026, 1, 2, 3, tzinfo=UTC)] * 3),
            "exact": nanoseconds,
            "far": pa.array([1 << 50] * 3, pa.timestamp("ms")),
            "clock": pa.array([1000] * 3, pa.time64("ns")),
            "raw": pa.array([b"\x00\xff", None, b""]),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        replace_table(root, table)
        row = open_zoo(root).metadata(0)
        assert row["when"] == datetime(2026, 1, 2, 3, tzinfo=UTC)
        assert row["exact"] == "1970-01-01 00:00:00.000000001"
        assert row["clock"] == time(microsecond=1)
        assert isinstance(row["far"], str)
        command = ["zoo", "export", root, row["id"], "-o", tmp_path / "m.pt", "--json"]
        done = forked_python.run("-m", "prepkit", *command)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)["metadata"]
        assert found["when"] == "2026-01-02T03:00:00+00:00"
        assert (found["curve"], found["raw"]) == ([0.5, "nan"], "00ff")

    @pytest.mark.parametrize("part", ["", "shards", "shard", "table", "zoo.json"])
    def test_files_that_may_not_be_read(self, root, part, forked_python):
        """A process without root's rights, which ignore permissions, reads the zoo."""
        manifest = read_manifest(root)
        names = {"shard": manifest.shards[0].path, "table": manifest.table.path}
        file = root / names.get(part, part)
        reading = (
            "import os, sys, prepkit\nroot = sys.argv[1]\n"
            "def read():\n"
            "    for call in (lambda: prepkit.open_zoo(root).preps(), lambda: print(*prepkit.verify(root).faults)):\n"
            "        try: call()\n"
            "        except prepkit.ZooError as error: print(error)\n"
            "read()\n"  # imports all that is needed, which others may not be allowed to read
            "os.chmod(sys.argv[2], 0)\n"
            "if os.geteuid() == 0: os.seteuid(65534)\n"
            "read()\n"
        )
        for each in (root, *root.rglob("*")):
            each.chmod(0o755)
        try:
            done = forked_python.run("-c", reading, ".", file, cwd=root)
        finally:
            file.chmod(0o755)
        assert done.stderr == ""
        nothing, opened, verified = done.stdout.splitlines()
        assert nothing == ""
        assert "cannot be read: Permission denied" in opened
        assert "cannot be read: Permission denied" in verified
        assert file.name in opened

    def test_not_a_zoo(self, tmp_path, root):
        (tmp_path / "file").write_text("x")
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "none", "does not exist")
        self.refused(tmp_path / "file", "not a folder")
        self.refused(tmp_path / "empty", r"is not a zoo: it has no zoo\.json\. `prepkit zoo create` makes a zoo")
        root.rename(tmp_path / "empty" / "the-zoo")
        self.refused(tmp_path / "empty", r"is not a zoo: it has no zoo\.json\. '.*empty.the-zoo' is one\.")
