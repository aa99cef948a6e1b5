"""Tests of files with random damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_samples import SAVERS, assert_same, rewritten, weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prepkit.checkpoint.load import Checkpoint, load_checkpoint
from prepkit.errors import CheckpointError

MUTATIONS = st.lists(st.tuples(st.sampled_from(["set", "cut", "insert", "delete"]), st.floats(0, 1), st.binary(
    min_size=1, max_size=1)), min_size=1, max_size=4)  # fmt: skip


def mutated(content: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, byte in mutations:
        place = int(where * len(content))
        before, after = content[:place], content[place:]
        content = {
            "set": before + byte + after[1:],
            "cut": before,
            "insert": before + byte + after,
            "delete": before + after[1:],
        }[kind]
    return content


def original(stored: str, folder: Path) -> bytes:
    path = folder / "original"
    SAVERS[stored](weights() if stored == "safetensors" else {"model": weights(), "lr": 0.1}, path)
    return path.read_bytes()


def loaded_or_refused(path: Path) -> Checkpoint | None:
    """The checkpoint if the file loads, None if it raises CheckpointError; any other exception fails the test."""
    try:
        found = load_checkpoint(path)
        message = str(path)
    except CheckpointError as error:
        found, message = None, str(error)
    assert str(path) in message
    assert all(isinstance(tensor, Tensor) for tensor in (found or {}).values())
    return found


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy", "safetensors"])
def test_random_damage_loads_or_raises_our_error(stored: str, tmp_path: Path) -> None:
    content = original(stored, tmp_path)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def check(mutations: list[tuple[str, float, bytes]]) -> None:
        path = tmp_path / "damaged"
        path.write_bytes(mutated(content, mutations))
        found = loaded_or_refused(path)
        if found is not None and stored == "torch zip":
            assert_same(found, weights())  # every byte that matters is under a checksum

    check()


def test_random_damage_under_right_checksums_loads_or_raises_our_error(tmp_path: Path) -> None:
    original("torch zip", tmp_path)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def check(mutations: list[tuple[str, float, bytes]]) -> None:
        def change(name: str, content: bytes) -> bytes:
            return mutated(content, mutations) if name == "data.pkl" else content

        loaded_or_refused(rewritten(tmp_path / "original", change))

    check()


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, prepkit.checkpoint.load; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
