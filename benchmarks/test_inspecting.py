"""`prepkit stat` and `prepkit diff`: 128 MiB of values, against reading the file and against calls into torch."""

import hashlib
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import save_file

from benchmarks.timing import interleaved, record, summary
from prepkit.inspecting.differences import differences
from prepkit.inspecting.places import tensors_at
from prepkit.inspecting.statistics import statistics

TENSORS, SIDE = 8, 2048
ROUNDS = 7


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inspecting")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(SIDE, SIDE, generator=generator) for n in range(TENSORS)}
    save_file(tensors, folder / "a.safetensors")
    save_file({**tensors, "layers.3.weight": tensors["layers.3.weight"] + 1e-3}, folder / "b.safetensors")
    return str(folder / "a.safetensors"), str(folder / "b.safetensors")


def sha256(path: str) -> None:
    with Path(path).open("rb") as file:
        hashlib.file_digest(file, "sha256")


def test_stat(benchmark: BenchmarkFixture, files: tuple[str, str]) -> None:
    path, _ = files

    def ours() -> None:
        with tensors_at(path) as tensors:
            found.update(statistics(tensors))

    def torch_calls() -> None:
        with tensors_at(path) as tensors:
            for name, x in tensors.items():
                by_torch[name] = float(x.std(correction=0))
                _ = x.mean(), x.min(), x.max(), x.norm(), (x == 0).sum(), x.isnan().sum(), x.isinf().sum()

    found: dict[str, object] = {}
    by_torch: dict[str, float] = {}
    seconds = interleaved(
        {"sha256": lambda: sha256(path), "stat": ours, "calls into torch": torch_calls}, rounds=ROUNDS
    )
    for name, deviation in by_torch.items():
        assert found[name].deviation == pytest.approx(deviation, rel=1e-5)  # type: ignore[attr-defined]
    benchmark.pedantic(ours, rounds=1)
    record(benchmark, "inspecting", "stat, 128 MiB of float32", summary(seconds, "sha256"))


def test_diff(benchmark: BenchmarkFixture, files: tuple[str, str]) -> None:
    first, second = files

    def ours() -> None:
        with tensors_at(first) as a, tensors_at(second) as b:
            found.update({name: difference.largest for name, difference in differences(a, b).items()})

    def torch_calls() -> None:
        with tensors_at(first) as a, tensors_at(second) as b:
            for name in a:
                distance = (a[name] - b[name]).abs()
                by_torch[name] = float(distance.max())
                distance.mean()

    def hashes() -> None:
        sha256(first)
        sha256(second)

    found: dict[str, float | None] = {}
    by_torch: dict[str, float] = {}
    seconds = interleaved({"sha256": hashes, "diff": ours, "calls into torch": torch_calls}, rounds=ROUNDS)
    assert found == pytest.approx(by_torch, rel=1e-3)
    benchmark.pedantic(ours, rounds=1)
    record(benchmark, "inspecting", "diff, 2 x 128 MiB of float32", summary(seconds, "sha256"))
