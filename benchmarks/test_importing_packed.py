"""Importing zoos that their makers packed: trajectories of NiNo, data bases of G.pt, files of inr2vec.

Each is imported whole and by a tenth, which shows how memory grows, against a loop that only reads the same numbers.
One round each; each way is a process of its own, whose peak memory is read at its end.
"""

import json
import os
from pathlib import Path

import h5py
import lmdb
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import prepkit
from benchmarks.test_importing import measured
from benchmarks.timing import record

STATES, PARAMETERS, RUNS = 2688, 14378, 3  # of fm-16, whose other 297 runs are not written: the file is sparse
BASES, RUNS_OF_BASE, CHECKPOINTS, MNIST = 4, 10, 200, [7840, 10, 100, 10]
SHAPES, SIREN = 200, 1_053_185

READ_NINO = f"""
import sys
with open(sys.argv[1], "rb") as file:
    for state in range({RUNS * STATES}):
        file.read({2 * PARAMETERS})
"""
READ_GPT = """
import json, lmdb, pathlib, sys
for group in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with lmdb.open(str(group), readonly=True, lock=False) as base, base.begin() as transaction:
        for run in json.loads((group / "runs.json").read_text()).values():
            for name in run["checkpoints"]:
                transaction.get(name.encode())
"""
READ_INR2VEC = """
import h5py, pathlib, sys
for path in sorted(pathlib.Path(sys.argv[1]).glob("*/*.h5")):
    with h5py.File(path) as file:
        file["params"][()]
"""


def write_nino(folder: Path) -> None:
    generator = np.random.default_rng(0)
    with open(folder / "fm-16.dat", "wb") as weights, open(folder / "fm-16_metrics.dat", "wb") as metrics:
        os.truncate(weights.fileno(), 300 * STATES * PARAMETERS * 2)
        for _ in range(RUNS):
            generator.normal(size=(STATES, PARAMETERS)).astype("<f2").tofile(weights)
        generator.uniform(0, 100, size=(300, STATES, 4)).astype("<f2").tofile(metrics)


def write_gpt(folder: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = np.array(MNIST, np.float32).tobytes()
    for base in range(BASES):
        runs = [f"{base * RUNS_OF_BASE + number:06d}" for number in range(RUNS_OF_BASE)]
        said = {}
        with lmdb.open(str(folder / "_".join(runs)), map_size=1 << 30) as opened, opened.begin(write=True) as put:
            for run in runs:
                names = {
                    f"{run}/ep{step // 8:03d}_it{step:05d}.pt": {"avg_test_err": 5.0} for step in range(CHECKPOINTS)
                }
                said[run] = {"checkpoints": names, "metadata": {}}
                for name in names:
                    put.put(name.encode(), generator.normal(size=sum(MNIST)).astype(np.float32).tobytes())
                    put.put(f"{name}_arch".encode(), sizes)
        (folder / "_".join(runs) / "runs.json").write_text(json.dumps(said))


def write_inr2vec(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(SHAPES):
        split = folder / ("test" if number < SHAPES // 10 else "train")
        split.mkdir(exist_ok=True)
        with h5py.File(split / f"{number}.h5", "w") as file:
            file["params"], file["class_id"] = generator.normal(size=SIREN).astype(np.float32), number % 10
            file["pcd"] = generator.normal(size=(2048, 3)).astype(np.float32)


KINDS = {  # kind: what writes it, the loop that reads it and its argument, its models, the options for a tenth of them
    "nino": (write_nino, READ_NINO, "fm-16.dat", RUNS * STATES, ["--runs", f"0:{RUNS}"], ["--states", "0:269"]),
    "gpt-lmdb": (write_gpt, READ_GPT, "", BASES * RUNS_OF_BASE * CHECKPOINTS, [], ["--checkpoints", "0:20"]),
    "inr2vec": (write_inr2vec, READ_INR2VEC, "", SHAPES, [], ["--pattern", "test/{index:int}.h5"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_import_a_packed_zoo(benchmark: BenchmarkFixture, tmp_path: Path, kind: str) -> None:
    write, loop, argument, models, options, tenth = KINDS[kind]
    source = tmp_path / "src"
    source.mkdir()
    write(source)
    importing = ["-m", "prepkit", "zoo", "import", kind, source]
    result = {
        "a tenth": measured(*importing, tmp_path / "small", *options, *tenth),
        "a loop that only reads": measured("-c", loop, source / argument),
        f"{models:,} models": measured(*importing, tmp_path / "zoo", *options),
    }
    assert len(prepkit.open_zoo(tmp_path / "zoo")) == models
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "importing", f"import {kind}", result)
