"""Every damaged bit of a PRep file is found, and its header is read without torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prep_samples import contents

from prepkit.errors import PRepFileError
from prepkit.prep.file import (
    Origin,
    PRep,
    load_prep,
    read_prep_header,
    save_prep,
)
from prepkit.prep.layout import Layout


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


def test_reading_a_header_does_not_import_torch(tiny: Path) -> None:
    code = "import sys; from prepkit.prep.file import *; print(read_prep_header(sys.argv[1]).shape); "
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4 x 8\n", "")
