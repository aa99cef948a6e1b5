"""Tests of the contract that both shard formats keep, of stores, and of zoos that must be refused."""

import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from store_contract import StoreContract
from writer_samples import files_of, tensors_of, trained, write_digits

import prepkit
from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.tensors import same_bits
from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest
from prepkit.zoo.read.store import LocalStore
from prepkit.zoo.write.writer import ZooWriter

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def rewrite_manifest(root: Path, change) -> None:
    """Change zoo.json and give it a right checksum, as a forger would."""
    data = json.loads((root / MANIFEST).read_text())
    change(data)
    data["sha256"] = checksum(data)
    (root / MANIFEST).write_text(json.dumps(data))


def replace_shard(root: Path, number: int, write) -> Path:
    """Put another file in a shard's place, with a manifest that names its size."""
    shard = read_manifest(root).shards[number]
    file = root / shard.path
    file.unlink()
    write(file)
    rewrite_manifest(root, lambda data: data["shards"][number].update(bytes=file.stat().st_size))
    return file


def table_of(root: Path) -> pa.Table:
    return pq.read_table(root / read_manifest(root).table.path)


def replace_table(root: Path, table: pa.Table) -> None:
    """Put another table in the zoo's table's place, with its right size and sha256."""
    file = root / read_manifest(root).table.path
    pq.write_table(table, file)
    content = file.read_bytes()
    change = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_manifest(root, lambda data: data["table"].update(change))


MODELS = r"models-[0-9a-f]{12}\.parquet"
NOT_UTF8 = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.string())


class Contract:
    """Tests that each shard format passes; a subclass names the format, and reads files with the format's library."""

    format = ""

    def read_independently(self, file: Path) -> torch.Tensor:
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_round_trip_is_bit_for_bit(self, tmp_path, dtype):
        given = [tensors_of(seed, (3, 4 + seed % 2, 2), DTYPES[dtype]) for seed in range(9)]
        given[0]["0.weight"][0] = torch.tensor([-0.0, 1e-7, 6e4], dtype=DTYPES[dtype])
        with ZooWriter(tmp_path / "zoo", width=8, format=self.format, shard_bytes=300) as writer:
            for index, tensors in enumerate(given):
                writer.add(tensors, id=f"m{index}")
        zoo = open_zoo(tmp_path / "zoo")
        assert len(zoo.manifest.shards) >= 3
        assert zoo.manifest.dtype == dtype
        for index, tensors in enumerate(given):
            prep, metadata = zoo[index]
            assert metadata["id"] == f"m{index}"
            assert prep.values.dtype == DTYPES[dtype]
            unpacked = prep.tensors()
            assert unpacked.keys() == tensors.keys()
            assert all(same_bits(unpacked[name], tensors[name]) for name in tensors)
            flat = zoo.preps(index).reshape(-1)
            assert same_bits(
                flat[: prep.layout.total], torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])
            )
            assert not flat[prep.layout.total :].any()

    def test_wider_zoo_gives_the_network_its_own_dtype_back(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8, format=self.format, dtype="float64") as writer:
            writer.add(tensors_of(1))
        zoo = open_zoo(tmp_path / "zoo")
        assert zoo.preps().dtype == torch.float64
        assert all(same_bits(zoo[0][0].tensors()[name], tensor) for name, tensor in tensors_of(1).items())

    def test_add_stack_equals_add(self, tmp_path):
        networks = [trained("lenet_like@digits", seed) for seed in range(7)]
        about = {"name": "zoo", "format": self.format, "shard_bytes": 30_000}
        with ZooWriter(tmp_path / "one", **about) as writer:
            for index, network in enumerate(networks):
                writer.add(network, split="train", run=index)
        stack = {name: torch.stack([n.state_dict()[name] for n in networks]) for name in networks[0].state_dict()}
        with ZooWriter(tmp_path / "stack", **about) as writer:
            ids = writer.add_stack(stack, architecture="lenet_like@digits", split="train", run=list(range(7)))
        assert ids == [f"{index:06d}" for index in range(7)]
        preps = prepkit.architecture("lenet_like@digits").layout.pack(stack, prepkit.PRepShape(4, 1024))
        with ZooWriter(tmp_path / "preps", **about) as writer:
            writer.add_stack(preps, architecture="lenet_like@digits", split=["train"] * 7, run=np.arange(7))
        assert files_of(tmp_path / "one") == files_of(tmp_path / "stack") == files_of(tmp_path / "preps")

    def test_shards_hold_the_named_rows_for_other_libraries_too(self, tmp_path):
        root = write_digits(tmp_path / "zoo", format=self.format)
        zoo = open_zoo(root)
        assert len(zoo.manifest.shards) > len(zoo.manifest.architectures)
        arrays = [self.read_independently(root / shard.path) for shard in zoo.manifest.shards]
        for shard, array in zip(zoo.manifest.shards, arrays, strict=True):
            height = zoo.manifest.architecture(shard.architecture).height
            assert tuple(array.shape) == (shard.rows, height, zoo.manifest.width)
        for row in zoo.table.to_pylist():
            prep, _ = zoo[row["id"]]
            assert torch.equal(arrays[row["shard"]][row["row"]], prep.values)

    def test_sizes_and_sums_are_those_of_the_files(self, tmp_path):
        import hashlib

        root = write_digits(tmp_path / "zoo", format=self.format)
        manifest = read_manifest(root)
        for stored in (*manifest.shards, manifest.table):
            content = (root / stored.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (stored.bytes, stored.sha256)
            assert stored.sha256[:12] in stored.path
        named = {stored.path for stored in (*manifest.shards, manifest.table)}
        assert set(files_of(root)) == named | {MANIFEST}

    def test_shards_keep_to_their_size(self, tmp_path):
        manifest = read_manifest(write_digits(tmp_path / "zoo", format=self.format, shard_bytes=50_000))
        for shard in manifest.shards:
            assert shard.rows * manifest.architecture(shard.architecture).height * manifest.width * 4 <= 50_000
        assert read_manifest(write_digits(tmp_path / "tiny", format=self.format, shard_bytes=1)).shards[0].rows == 1

    def test_teacher(self, tmp_path):
        teacher = trained("resnet20@digits", 3)
        with ZooWriter(tmp_path / "zoo", format=self.format) as writer:
            writer.add(trained("lenet_like@digits", 0))
            writer.set_teacher(teacher)
        zoo = open_zoo(tmp_path / "zoo")
        inputs = torch.randn(3, 1, 8, 8)
        torch.testing.assert_close(zoo.teacher(inputs), teacher(inputs), rtol=1e-4, atol=1e-4)
        assert zoo.registry.teacher.name == "resnet20@digits"
        file = tmp_path / "zoo" / zoo.manifest.teacher.path
        content = bytearray(file.read_bytes())
        content[-1000] ^= 1
        file.write_bytes(content)
        with pytest.raises(ZooError, match=r"teacher-.*damaged"):
            _ = open_zoo(tmp_path / "zoo").teacher

    def test_empty_zoo(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", format=self.format, registry=prepkit.built_in_registry("digits")):
            pass
        with ZooWriter(tmp_path / "bare", format=self.format):
            pass
        zoo = open_zoo(tmp_path / "zoo")
        assert len(zoo) == 0
        assert zoo.preps().shape == (0, 24, 512)
        assert [member.name for member in zoo.registry] == list(prepkit.built_in_registry("digits").class_ids)
        assert len(zoo.where("id == 'x'")) == 0
        assert open_zoo(tmp_path / "bare").preps().shape == (0, 4, 512)
        assert open_zoo(tmp_path / "bare", width=64).preps().shape == (0, 4, 64)

    # Refused ------------------------------------------------------------------------------------------------------

    def refused(self, root: Path, match: str) -> None:
        with pytest.raises(ZooError, match=match):
            open_zoo(root)[0]

    @pytest.fixture
    def root(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8, format=self.format) as writer:
            for seed in range(5):
                writer.add(tensors_of(seed))
        return tmp_path / "zoo"

    def the_file(self, root: Path) -> Path:
        return root / read_manifest(root).shards[0].path

    def test_missing_shard(self, root):
        self.the_file(root).unlink()
        self.refused(root, "shards/.*: missing")

    @pytest.mark.parametrize("cut", [1, 100, 10_000])
    def test_truncated_shard(self, root, cut):
        file = self.the_file(root)
        content = file.read_bytes()[: max(0, file.stat().st_size - cut)]
        file.write_bytes(content)
        self.refused(root, "shards/.*bytes, the manifest says")
        if content:  # and with a manifest that agrees with the file
            rewrite_manifest(root, lambda data: data["shards"][0].update(bytes=len(content)))
            self.refused(root, "shards/.*(truncated|not the shard)")

    def test_appended_shard(self, root):
        with open(self.the_file(root), "ab") as file:
            file.write(b"x")
        self.refused(root, "bytes, the manifest says")

    def test_not_the_format_at_all(self, root):
        replace_shard(root, 0, lambda file: file.write_bytes(b"\x00" * 5000))
        self.refused(root, "not the shard that the manifest describes")


class TestSafetensors(Contract):
    format = "safetensors"

    def read_independently(self, file):
        with safe_open(file, framework="pt") as opened:
            assert list(opened.keys()) == ["prep"]
            return opened.get_tensor("prep")

    @pytest.mark.parametrize(
        "tensors",
        [
            {"prep": torch.zeros(5, 4, 16)},  # another shape
            {"prep": torch.zeros(5, 4, 8, dtype=torch.int32)},  # another dtype of the same size
            {"other": torch.zeros(5, 4, 8)},
            {"prep": torch.zeros(5, 4, 8), "more": torch.zeros(1)},
        ],
    )
    def test_other_arrays(self, root, tensors):
        replace_shard(root, 0, lambda file: save_file(tensors, file))
        self.refused(root, "not the shard that the manifest describes")

    @pytest.mark.parametrize("offsets", [[0, 1 << 40], [1 << 40, (1 << 40) + 640], [-640, 0], [0, 8]])
    def test_header_that_points_elsewhere(self, root, offsets):
        def write(file: Path) -> None:
            header = json.dumps({"prep": {"dtype": "F32", "shape": [5, 4, 8], "data_offsets": offsets}}).encode()
            file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(640))

        replace_shard(root, 0, write)
        self.refused(root, "no whole safetensors file")


class TestHdf5(Contract):
    format = "hdf5"

    def read_independently(self, file):
        with h5py.File(file, "r") as opened:
            assert list(opened) == ["prep"]
            return torch.from_numpy(opened["prep"][:])

    def test_bfloat16_says_so(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8, format="hdf5") as writer:
            writer.add(tensors_of(3, dtype=torch.bfloat16))
        with h5py.File(self.the_file(tmp_path / "zoo"), "r") as opened:
            assert opened["prep"].attrs["dtype"] == b"bfloat16"
            bits = torch.from_numpy(opened["prep"][:].view(np.int16)).view(torch.bfloat16)
        assert same_bits(bits[0], open_zoo(tmp_path / "zoo")[0][0].values)

    def plain(self, opened: h5py.File, **how) -> None:
        opened.create_dataset("prep", data=np.zeros((5, 4, 8), "<f4"), **how).attrs["dtype"] = np.bytes_("float32")

    def attack(self, file: Path, kind: str) -> None:
        secret = file.parent.parent.parent / "secret.bin"
        secret.write_bytes(b"s" * 640)
        with h5py.File(file, "w") as opened:
            if kind == "chunked":
                self.plain(opened, chunks=(1, 4, 8))
            elif kind == "compressed":
                self.plain(opened, compression="gzip")
            elif kind == "extra dataset":
                self.plain(opened)
                opened["more"] = 1
            elif kind == "external storage":
                dataset = opened.create_dataset("prep", (5, 4, 8), "<f4", external=[(str(secret), 0, 640)])
                dataset.attrs["dtype"] = np.bytes_("float32")
            elif kind == "soft link":
                opened["prep"] = h5py.SoftLink("/elsewhere")
            elif kind == "external link":
                opened["prep"] = h5py.ExternalLink(str(secret), "/prep")
            elif kind == "group":
                opened.create_group("prep")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((5, 4, 8), "<f4")
                layout[:] = h5py.VirtualSource(str(secret), "prep", (5, 4, 8))
                opened.create_virtual_dataset("prep", layout).attrs["dtype"] = np.bytes_("float32")
            elif kind == "other shape":
                opened.create_dataset("prep", data=np.zeros((5, 8, 4), "<f4")).attrs["dtype"] = np.bytes_("float32")
            elif kind == "other dtype":
                opened.create_dataset("prep", data=np.zeros((5, 4, 8), "<i4")).attrs["dtype"] = np.bytes_("float32")
            elif kind == "no attribute":
                opened.create_dataset("prep", data=np.zeros((5, 4, 8), "<f4"))
            elif kind == "no values":
                opened.create_dataset("prep", (5, 4, 8), "<f4").attrs["dtype"] = np.bytes_("float32")
            elif kind == "null":
                opened.create_dataset("prep", data=h5py.Empty("<f4")).attrs["dtype"] = np.bytes_("float32")

    @pytest.mark.parametrize(
        "kind",
        ["chunked", "compressed", "extra dataset", "external storage", "soft link", "external link", "group", "virtual"]
        + ["other shape", "other dtype", "no attribute", "no values", "null"],
    )
    def test_hostile_files(self, root, kind):
        replace_shard(root, 0, lambda file: self.attack(file, kind))
        self.refused(root, "not the shard that the manifest describes")

    def test_the_attacks_start_from_a_file_that_is_accepted(self, root):
        def write(file: Path) -> None:
            with h5py.File(file, "w") as opened:
                self.plain(opened)

        replace_shard(root, 0, write)
        assert not open_zoo(root).preps().any()


class TestLocalStore(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path):
        with ZooWriter(tmp_path / "zoo", width=8, shard_bytes=300) as writer:
            writer.set_teacher(tensors_of(9))
            for seed in range(7):
                writer.add(tensors_of(seed, (3, 4 + seed % 2, 2)))
        return tmp_path / "zoo"

    @pytest.fixture
    def store(self, folder):
        return LocalStore(folder)

    def test_another_zoo_in_its_place_is_refused_in_another_process(self, store, folder):
        pickled = pickle.dumps(store)
        shutil.rmtree(folder)
        with ZooWriter(folder, width=8) as writer:
            writer.add(tensors_of(1))
        with pytest.raises(ZooError, match="was replaced"):
            pickle.loads(pickled)


class TestStoreWithoutMapping(TestLocalStore):
    @pytest.fixture
    def store(self, folder):
        return LocalStore(folder, mmap=False)


class TestVerifying:
    @pytest.fixture
    def root(self, tmp_path):
        """A zoo with a flipped bit in the values of its second shard."""
        with ZooWriter(tmp_path / "zoo", width=8, shard_bytes=300) as writer:
            for seed in range(5):
                writer.add(tensors_of(seed))
        shard = tmp_path / "zoo" / read_manifest(tmp_path / "zoo").shards[1].path
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        return tmp_path / "zoo"

    def test_a_damaged_shard_is_refused_at_its_first_touch(self, root):
        open_zoo(root).preps()
        zoo = open_zoo(root, verify=True)
        damaged = zoo.shard_numbers == 1
        assert len(zoo.select(np.flatnonzero(~damaged)).preps()) == int((~damaged).sum())
        shard = zoo.manifest.shards[1]
        with pytest.raises(ZooError, match=rf"{shard.path}: damaged, its sha256 .*{shard.sha256[:12]}.*fetch it again"):
            zoo.preps()
        with pytest.raises(ZooError, match="damaged"):
            pickle.loads(pickle.dumps(zoo)).preps()

    @pytest.mark.parametrize("said", ["0", "1", ""])
    def test_the_environment_says_whether(self, root, monkeypatch, said):
        monkeypatch.setenv("PREPKIT_VERIFY", said)
        if said == "1":
            with pytest.raises(ZooError, match="damaged"):
                open_zoo(root).preps()
            open_zoo(root, verify=False).preps()
        else:
            open_zoo(root).preps()

    def test_another_word_is_refused(self, root, monkeypatch):
        monkeypatch.setenv("PREPKIT_VERIFY", "yes")
        with pytest.raises(ZooError, match=r"PREPKIT_VERIFY is 'yes'; set it to 1 .* or to 0"):
            open_zoo(root)


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

    def test_columns_of_other_kinds_are_read_and_exported(self, root, tmp_path):
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
        command = [
            sys.executable,
            "-c",
            "from prepkit.cli import main; main()",
            "zoo",
            "export",
            root,
            row["id"],
            "-o",
            tmp_path / "m.pt",
        ]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)["metadata"]
        assert found["when"] == "2026-01-02T03:00:00+00:00"
        assert (found["curve"], found["raw"]) == ([0.5, "nan"], "00ff")

    @pytest.mark.parametrize("part", ["", "shards", "shard", "table", "zoo.json"])
    def test_files_that_may_not_be_read(self, root, part):
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
            done = subprocess.run([sys.executable, "-c", reading, ".", file], cwd=root, capture_output=True, text=True)
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
        self.refused(tmp_path / "empty", r"is not a zoo: it has no zoo\.json")
