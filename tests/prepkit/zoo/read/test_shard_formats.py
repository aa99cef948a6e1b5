"""Tests of the contract that both shard formats keep, and of what belongs to one of them."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from folder_contents import files_of
from forged_zoos import replace_shard, rewrite_manifest
from safetensors import safe_open
from safetensors.torch import save_file
from writer_samples import tensors_of, trained, write_digits

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.tensors import same_bits
from prepkit.zoo.format.manifest import MANIFEST, read_manifest
from prepkit.zoo.write.writer import ZooWriter

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
