"""The check for a GPU, with tiny sizes on a CPU: that it runs, and that its plain steps are the same steps."""

import json

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_steps import Case

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.mark.parametrize("setting", ["single", "multi", "sdf"])
def test_plain_steps_and_ours_compute_the_same(setting):
    plain, ours = (Case(setting, CPU, True, "float32") for _ in range(2))
    expected = [float(plain.plain()) for _ in range(2)]
    found = [float(ours.ours()["loss"].detach()) for _ in range(2)]
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    # Adam's first update is the sign of each gradient, so rounding shows; most where sines multiply it by 30.
    assert found[1] == pytest.approx(expected[1], rel=1e-3 if setting == "sdf" else 1e-4)
    assert expected[1] != pytest.approx(expected[0], rel=1e-4)


def run(tmp_path, capfd, parts, settings):
    gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", *parts, "--settings", *settings])
    figures = json.loads((tmp_path / "gpu_check.json").read_text())
    cases = {(part, name): found for part in parts for name, found in figures[part].items()}
    assert not [case for case, found in cases.items() if "error" in found]
    assert all(figures[part]["end"]["how"] == "finished" for part in parts)
    table = capfd.readouterr().out
    assert all(any(line.startswith(part) and name in line for line in table.splitlines()) for part, name in cases)
    return figures


def test_the_check_runs_on_a_cpu(tmp_path, capfd):
    figures = run(tmp_path, capfd, ["sections"], ["sdf"])
    assert figures["sections"]["sdf"]["encode"] > 0


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path, capfd):
    parts = [part for part in gpu_check.PARTS if part != "tests"]
    figures = run(tmp_path, capfd, parts, ["single", "multi", "sdf"])
    assert figures["same"]["sdf, float32"]["recorded, relative"] == 0


def test_a_failed_case_is_told_and_the_next_one_runs(tmp_path, capsys):
    sheet = gpu_check.Sheet(tmp_path / "part.json", CPU, True)

    def fails():
        raise RuntimeError("no such kernel")

    sheet.case("first", fails)
    sheet.case("second", lambda: {"steps a second": 3})
    kept = json.loads((tmp_path / "part.json").read_text())
    assert kept["first"]["error"] == "RuntimeError: no such kernel"
    assert kept["second"]["steps a second"] == 3
    assert "FAILED RuntimeError: no such kernel" in gpu_check.table({"part": kept})
