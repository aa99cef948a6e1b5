"""PRep files: exact, deterministic, mapped, and every damaged bit found."""

import hashlib
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prepkit.errors import InvalidShape, OutputError, PRepFileError, VerificationError
from prepkit.prep.file import (
    FORMAT,
    Origin,
    PRep,
    is_prep_file,
    load_prep,
    read_prep_header,
    save_prep,
)
from prepkit.prep.layout import Layout

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ORIGIN = Origin("resnet8@digits", 2, "ab" * 32, ("conv", "stages.0.0.conv1"))


def bits(tensor: Tensor) -> list[int]:
    """Every value as the whole number with the same bits: NaN has some too, and -0 is not 0."""
    return tensor.detach().reshape(-1).contiguous().view(WORDS[tensor.element_size()]).tolist()


def contents(prep: PRep) -> tuple[Any, ...]:
    """All that a PRep is, comparable with ==."""
    tensors = {"": prep.values, **prep.buffers}
    return (
        {name: (tensor.dtype, tuple(tensor.shape), bits(tensor)) for name, tensor in tensors.items()},
        prep.layout,
        prep.origin,
    )


def small_prep(dtype: torch.dtype = torch.float32) -> PRep:
    """Tied tensors, a running statistic, integer buffers, odd values, one row of padding and more."""
    shared = torch.tensor([[1.5, -0.0, float("inf")], [float("nan"), -2.0, 1e-7]]).to(dtype)
    tensors = {
        "a.weight": shared,
        "b.weight": shared,
        "bn.running_var": torch.tensor([0.25, 4.0]).to(dtype),
        "scale": torch.tensor(3.0).to(dtype),
        "bn.num_batches_tracked": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False, True]),
    }
    layout = Layout.of_tensors(tensors)
    buffers = {name: tensors[name] for name in ("bn.num_batches_tracked", "mask")}
    return PRep(layout.pack(tensors, layout.shape(8)), layout, ORIGIN, buffers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.prep.safetensors"


# There and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_saved_is_loaded_bit_for_bit(dtype: torch.dtype, path: Path) -> None:
    prep = small_prep(dtype)
    save_prep(prep, path)
    loaded = load_prep(path)
    assert contents(loaded) == contents(prep)
    assert loaded.values.dtype == dtype
    assert loaded.tensors().keys() == prep.tensors().keys() == {*prep.layout.names, *prep.buffers}
    for name, tensor in prep.tensors().items():
        assert bits(loaded.tensors()[name]) == bits(tensor)
    assert os.listdir(path.parent) == [path.name]


def test_ties_come_back_tied(path: Path) -> None:
    save_prep(small_prep(), path)
    tensors = load_prep(path).tensors()
    assert tensors["b.weight"].data_ptr() == tensors["a.weight"].data_ptr()
    assert load_prep(path).layout.ties == (("b.weight", "a.weight"),)


def test_a_layout_of_mixed_dtypes_gives_each_tensor_its_own_back(path: Path) -> None:
    tensors = {"half": torch.randn(3).half(), "brain": torch.randn(5).bfloat16(), "double": torch.randn(2).double()}
    layout = Layout.of_tensors(tensors)
    save_prep(PRep(layout.pack(tensors, layout.shape(8)), layout), path)
    loaded = load_prep(path)
    assert loaded.values.dtype == torch.float64
    for name, tensor in tensors.items():
        assert loaded.tensors()[name].dtype == tensor.dtype
        assert bits(loaded.tensors()[name]) == bits(tensor)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
def test_integer_buffers_of_every_kind(dtype: torch.dtype, path: Path) -> None:
    prep = small_prep()
    buffer = torch.tensor([0, 1, 100]).to(dtype)
    save_prep(PRep(prep.values, prep.layout, prep.origin, {"index.table": buffer}), path)
    loaded = load_prep(path).buffers
    assert list(loaded) == ["index.table"]
    assert (loaded["index.table"].dtype, loaded["index.table"].tolist()) == (dtype, [0, 1, 100])


def test_values_need_neither_be_contiguous_nor_without_gradient(path: Path) -> None:
    prep = small_prep()
    values = prep.values.t().contiguous().t().requires_grad_()
    assert not values.is_contiguous()
    save_prep(PRep(values, prep.layout, prep.origin, prep.buffers), path)
    assert contents(load_prep(path)) == contents(prep)


def test_an_origin_is_optional(path: Path) -> None:
    prep = small_prep()
    save_prep(PRep(prep.values, prep.layout), path)
    assert load_prep(path).origin == Origin(None, None, None, ())


def test_only_what_differs_from_the_usual_adds_keys(path: Path) -> None:
    """Files without a prefix and with usual versions keep the bytes that they always had."""
    prep = small_prep()
    for origin, added in (
        (ORIGIN, set()),
        (replace(ORIGIN, prefix="module.", versions={"": 2}), {"prefix", "versions"}),
    ):
        save_prep(PRep(prep.values, prep.layout, origin), path, overwrite=True)
        with safe_open(path, framework="pt") as file:
            assert {"prefix", "versions"} & json.loads(file.metadata()["prepkit"]).keys() == added
        assert load_prep(path).origin == origin


def test_the_header_alone(path: Path) -> None:
    prep = small_prep(torch.float16)
    save_prep(prep, path)
    header = read_prep_header(path)
    assert (header.layout, header.shape, header.dtype, header.origin) == (prep.layout, prep.shape, "float16", ORIGIN)
    assert header.buffer_names == ("bn.num_batches_tracked", "mask")


def test_the_file_is_what_the_format_says(path: Path) -> None:
    """Read by the format's own library, and by its definition: one metadata key, canonical JSON, two sums."""
    prep = small_prep()
    save_prep(prep, path)
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["buffer.bn.num_batches_tracked", "buffer.mask", "prep"]
        assert list(file.metadata()) == ["prepkit"]
        text = file.metadata()["prepkit"]
        stored = {name: file.get_tensor(name) for name in sorted(file.keys())}
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert data["format"] == "prepkit-prep/1"
    assert (data["architecture"], data["class_id"], data["num_parameters"]) == ("resnet8@digits", 2, 7)
    assert (data["source_sha256"], data["folded"]) == ("ab" * 32, ["conv", "stages.0.0.conv1"])
    assert Layout.from_dict(data["layout"]) == prep.layout
    content = b"".join(tensor.numpy().tobytes() for tensor in stored.values())
    assert data["content_sha256"] == hashlib.sha256(content).hexdigest()
    described = {name: [str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in stored.items()}
    rest = {key: value for key, value in data.items() if key != "sha256"}
    canonical = json.dumps([rest, described], sort_keys=True, separators=(",", ":"))
    assert data["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


# Mapped -------------------------------------------------------------------------------------------------------


def test_values_are_mapped_and_writing_to_them_does_not_change_the_file(path: Path) -> None:
    layout = Layout.of_tensors({"w": torch.zeros(1 << 20)})
    save_prep(PRep(layout.pack({"w": torch.ones(1 << 20)}, layout.shape(512)), layout), path)
    before = path.read_bytes()
    values = load_prep(path).values
    address = values.data_ptr()
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps if str(path) in line]
    assert any(int(start, 16) <= address < int(stop, 16) for start, stop in (r[0].split("-") for r in ranges))
    values.fill_(7.0)
    assert path.read_bytes() == before
    assert load_prep(path).values.eq(1.0).all()


def test_a_loaded_file_may_be_replaced_while_its_values_live(path: Path) -> None:
    prep = small_prep()
    save_prep(prep, path)
    loaded = load_prep(path)
    save_prep(PRep(torch.zeros(4, 8), prep.layout), path, overwrite=True)
    assert contents(loaded) == contents(prep)
    assert load_prep(path).values.eq(0).all()


# Saving -------------------------------------------------------------------------------------------------------


def test_two_processes_with_different_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, torch
        from prepkit.prep.layout import Layout
        from prepkit.prep.file import Origin, PRep, save_prep
        tensors = {name: torch.full((3,), float(i)) for i, name in enumerate("dcba")}
        layout = Layout.of_tensors(tensors)
        buffers = {name: torch.tensor(1) for name in {"x", "y", "z", "counter", "mask"}}  # in the order of the seed
        print(list(buffers))
        prep = PRep(layout.pack(tensors, layout.shape(8)), layout, Origin("n", 0, None, ("a",)), buffers)
        save_prep(prep, sys.argv[1])
    """)
    orders, files = [], []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.prep.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(file)]
        orders.append(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        files.append(file.read_bytes())
    assert len(set(orders)) == 2
    assert len(set(files)) == 1


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions(mask: int, path: Path) -> None:
    before = os.umask(mask)
    try:
        save_prep(small_prep(), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 & ~mask


def test_an_existing_file_is_kept_unless_told(path: Path) -> None:
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        save_prep(small_prep(), path)
    assert path.read_text() == "old"
    save_prep(small_prep(), path, overwrite=True)
    assert contents(load_prep(path)) == contents(small_prep())


def test_values_that_do_not_hold_the_layout_are_refused(path: Path) -> None:
    prep = small_prep()
    layout = Layout.of_tensors({"w": torch.zeros(100)})
    with pytest.raises(InvalidShape, match="100 parameters do not fit a PRep of 4 x 8"):
        save_prep(PRep(prep.values, layout), path)
    assert os.listdir(path.parent) == []


def test_a_disk_that_gives_other_bytes_back_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def save_and_flip(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, file, metadata)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(safetensors.torch, "save_file", save_and_flip)
    with pytest.raises(VerificationError, match="the disk gave back other bytes"):
        save_prep(small_prep(), path)
    assert os.listdir(path.parent) == []


# Damage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of about a thousand bytes."""
    tensors = {"l.bias": torch.tensor([1.0, -2.0]), "n": torch.tensor(3)}
    layout = Layout.of_tensors({"l.bias": tensors["l.bias"]})
    values = layout.pack({"l.bias": tensors["l.bias"]}, layout.shape(8))
    file = tmp_path_factory.mktemp("tiny") / "tiny.prep.safetensors"
    save_prep(PRep(values, layout, Origin("x", 0, "ab", ("l",)), {"n": tensors["n"]}), file)
    return file


def is_found(content: bytes, expected: tuple[Any, ...], file: Path) -> bool:
    """Whether damage is refused; anything but an error of ours or the exact contents fails."""
    file.write_bytes(content)
    try:
        found, message = contents(load_prep(file)), None
    except PRepFileError as error:
        found, message = expected, str(error)
    assert found == expected
    assert message is None or (str(file) in message and "\n" not in message)
    return message is not None


def test_every_flip_of_a_bit_or_a_byte_is_found_or_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    whole, expected = tiny.read_bytes(), contents(load_prep(tiny))
    assert len(whole) < 1300
    harmless = []
    for index in range(len(whole)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(whole)
            damaged[index] ^= mask
            if not is_found(bytes(damaged), expected, tmp_path / "damaged"):
                harmless.append((index, damaged[index]))
    assert harmless == []  # not even the blanks that fill up the header: none of these masks makes another blank


def test_every_header_that_is_accepted_is_the_header_that_was_written(tiny: Path, tmp_path: Path) -> None:
    """`inspect` reads the header alone, so a flip in it must show without the content."""
    whole = tiny.read_bytes()
    expected = read_prep_header(tiny)
    file = tmp_path / "damaged"
    for index in range(8 + int.from_bytes(whole[:8], "little")):
        for mask in (1, 4, 255):
            damaged = bytearray(whole)
            damaged[index] ^= mask
            file.write_bytes(damaged)
            try:
                assert read_prep_header(file) == expected
            except PRepFileError:
                continue


@pytest.mark.parametrize("dtype", ["[4, 8]", "{}", "null", "4"])
def test_a_dtype_that_is_no_text_is_found(tiny: Path, tmp_path: Path, dtype: str) -> None:
    header = f'{{"prep":{{"dtype":{dtype},"shape":[4,8],"data_offsets":[0,128]}}}}'.encode()
    file = tmp_path / "damaged"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(128))
    with pytest.raises(PRepFileError, match="unknown dtype"):
        load_prep(file)


def test_every_truncation_is_found(tiny: Path, tmp_path: Path) -> None:
    whole, expected = tiny.read_bytes(), contents(load_prep(tiny))
    for length in range(len(whole)):
        assert is_found(whole[:length], expected, tmp_path / "damaged"), length
    assert is_found(whole + b"\0", expected, tmp_path / "damaged")


def test_content_is_not_read_when_verification_is_declined(tiny: Path, tmp_path: Path) -> None:
    damaged = bytearray(tiny.read_bytes())
    damaged[-1] ^= 1
    file = tmp_path / "damaged"
    file.write_bytes(damaged)
    with pytest.raises(PRepFileError, match="damaged: its content does not match the sha256 it carries"):
        load_prep(file)
    assert load_prep(file, verify=False).layout == load_prep(tiny).layout


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_headers_are_found_or_change_nothing(data: st.DataObject, tiny: Path, tmp_path: Path) -> None:
    whole, expected = tiny.read_bytes(), contents(load_prep(tiny))
    length = int.from_bytes(whole[:8], "little")
    header, content = bytearray(whole[8 : 8 + length]), whole[8 + length :]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(header)))
        stop = data.draw(st.integers(start, min(start + 20, len(header))))
        header[start:stop] = data.draw(st.binary(max_size=20) | st.sampled_from([b"null", b'"', b"1e999", b"[" * 20]))
    is_found(len(header).to_bytes(8, "little") + header + content, expected, tmp_path / "damaged")


# Files that are something else, or of another version, or forged -----------------------------------------------


def forged(path: Path, change: Callable[[dict[str, Any]], Any], tensors: dict[str, Tensor] | None = None) -> None:
    """A PRep file whose metadata was changed and its header's sum made right again."""
    prep = small_prep()
    save_prep(prep, path)
    with safe_open(path, framework="pt") as file:
        data = json.loads(file.metadata()["prepkit"])
        stored = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors is None else tensors  # noqa: SIM118
    data = change(data) or data
    if isinstance(data, dict):
        rest = {key: value for key, value in data.items() if key != "sha256"}
        described = {name: [str(tensor.dtype)[6:], list(tensor.shape)] for name, tensor in stored.items()}
        canonical = json.dumps([rest, described], sort_keys=True, separators=(",", ":"))
        data["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    save_file(stored, path, {"prepkit": json.dumps(data)})


def test_forging_without_a_change_is_accepted(path: Path) -> None:
    forged(path, lambda data: None)
    assert contents(load_prep(path)) == contents(small_prep())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="prepkit-prep/2"), "has format 'prepkit-prep/2'; this prepkit reads"),
        (lambda data: data.update(format="other/1"), "is no PRep file: its format is 'other/1', not 'prepkit-prep/1'."),
        (lambda data: data.pop("format") and None, "is no PRep file: its format is None"),
        (lambda data: [data], "is no PRep file: its format is None"),
        (lambda data: "text", "is no PRep file: its format is None"),
        (
            lambda data: data.update(architecture=3),
            "architecture, class_id, source_sha256 or folded has the wrong type",
        ),
        (lambda data: data.update(class_id=True), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(class_id="2"), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(source_sha256=[]), "architecture, class_id, source_sha256 or folded has the wrong"),
        (lambda data: data.update(folded="conv"), "architecture, class_id, source_sha256 or folded has the wrong type"),
        (lambda data: data.update(prefix=3), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(versions={"a": "1"}), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(options=["key"]), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(options={"key": 3}), "prefix, versions or options has the wrong type"),
        (lambda data: data.update(layout=None), "layout: a layout is an object with a list `slots`."),
        (lambda data: data["layout"].update(slots=[]), "nothing to pack"),
        (lambda data: data["layout"]["slots"][0].update(shape=["2"]), "layout.slots[0].shape: expected whole numbers"),
        (lambda data: data["layout"]["slots"][0].update(dtype="int8"), "layout.slots[0].dtype: expected one of"),
        (lambda data: data["layout"]["slots"][0].update(dtype=["float32"]), "layout.slots[0].dtype: expected one of"),
        (lambda data: data["layout"]["slots"][0].update(name="\ud800"), "text that is not Unicode"),
        (lambda data: data.update(architecture="\udfff"), "text that is not Unicode"),
        (lambda data: data["layout"]["slots"][0].update(shape=[10**6]), "1,000,003 parameters do not fit a PRep of"),
        (lambda data: data["layout"]["slots"][0].update(shape=[10**400]), "too large"),
        (lambda data: data["layout"].update(ties=[["b.weight"]]), "layout.ties: expected pairs of names."),
        (lambda data: data.update(content_sha256=None), "its content does not match the sha256 it carries"),
    ],
)
def test_metadata_of_the_wrong_type_or_version(
    change: Callable[[dict[str, Any]], Any], message: str, path: Path
) -> None:
    forged(path, change)
    with pytest.raises(PRepFileError) as caught:
        load_prep(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"'{path}'")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(32)}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(4, 8, dtype=torch.int32)}, "has no matrix 'prep' of floats"),
        ({"prep": torch.zeros(4, 12)}, "width 12 is not a multiple of 8"),
        ({"prep": torch.zeros(3, 8)}, "height 3 is not a multiple of 4"),
        ({"prep": torch.zeros(0, 8)}, "height 0 is not positive"),
        (
            {"prep": torch.zeros(4, 8), "extra": torch.tensor(1)},
            "beside 'prep' stand extra, which are no integer buffers",
        ),
        ({"prep": torch.zeros(4, 8), "buffer.a.weight": torch.ones(6)}, "stand buffer.a.weight, which are no integer"),
    ],
)
def test_tensors_that_a_prep_file_does_not_have(tensors: dict[str, Tensor], message: str, path: Path) -> None:
    forged(path, lambda data: None, tensors)
    with pytest.raises(PRepFileError) as caught:
        read_prep_header(path)
    assert message in str(caught.value)


def test_other_files(path: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b"", "is no PRep file: it has 0 bytes and no header."),
        (b"1", "is no PRep file: it has 1 byte and no header."),
        (b"PK\x03\x04" + bytes(100), "`prepkit pack` makes one of a checkpoint."),
        ((1000).to_bytes(8, "little") + b"{", "it may be truncated"),
        ((2).to_bytes(8, "little") + b"[]", "its header is not an object"),
        ((4).to_bytes(8, "little") + b"{]{]", "its header is not JSON"),
        ((16).to_bytes(8, "little") + b'{"a":{}, "a":{}}', "its header is not JSON (a name stands twice)"),
        ((20_000).to_bytes(8, "little") + b"[" * 20_000, "its header is not JSON"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        assert not is_prep_file(path)
        with pytest.raises(PRepFileError) as caught:
            load_prep(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_metadata_that_is_not_json(path: Path) -> None:
    for text in ("", "{", "[" * 20_000, "NaN"):
        save_file({"prep": torch.zeros(4, 8)}, path, {"prepkit": text})
        assert is_prep_file(path)
        with pytest.raises(PRepFileError, match="is no PRep file"):
            load_prep(path)


def test_plain_safetensors_are_pointed_to_pack(path: Path) -> None:
    save_file({"prep": torch.zeros(4, 8)}, path)
    assert not is_prep_file(path)
    with pytest.raises(
        PRepFileError, match=r"is a safetensors checkpoint, not a PRep; make one with `prepkit pack .*`\.$"
    ):
        load_prep(path)


def test_missing_files_directories_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for name, message in (
        ("missing", "does not exist."),
        (".", "is a directory, not a PRep file."),
        ("pipe", "is no PRep file: it has 0 bytes"),
    ):
        assert not is_prep_file(tmp_path / name)
        for read in (load_prep, read_prep_header):
            with pytest.raises(PRepFileError) as caught:
                read(tmp_path / name)
            assert message in str(caught.value)


def test_format_name() -> None:
    assert FORMAT == "prepkit-prep/1"


def test_reading_a_header_does_not_import_torch(tiny: Path) -> None:
    code = "import sys; from prepkit.prep.file import *; print(read_prep_header(sys.argv[1]).shape); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4 x 8\n", "")
