"""The check for a GPU, with tiny sizes on a CPU: that it runs, and that its plain steps are the same steps."""

import json

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_choices import VARIANTS, host_drawn, part_choices
from benchmarks.gpu_sheet import Sheet
from benchmarks.gpu_steps import Case
from netspace.space import gpu_functions

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
def test_choices_are_timed(tmp_path, monkeypatch):
    for name in ("WARMUPS", "ROUNDS", "STEPS"):
        monkeypatch.setattr(gpu_functions, name, 1)
    sheet = Sheet(tmp_path / "choices.json", CPU, True, ["sdf"])
    part_choices(sheet)
    assert set(sheet.figures.pop("sdf, third convolution")["seconds"]) == {"convolution", "product"}
    names = [f"second convolution, {outputs}, {way}" for outputs in ("1,250 outputs", "1,256 outputs")
             for way in ("product", "convolution")]  # fmt: skip
    assert [name for name, found in sheet.figures.items() if found["steps a second"] > 0] == names


def test_all_parts_together_take_less_than_nine_minutes():
    assert sum(limit for _, limit in gpu_check.PARTS.values()) < 9 * 60


def test_a_variant_computes_what_the_other_one_does(monkeypatch):
    """The third convolution as a product, and points that the host draws, change a step's speed and not its loss."""
    monkeypatch.setattr(gpu_functions.fast, "decodes_channels_last", lambda *_: True)
    expected = float(Case("sdf", CPU, True, "float32").ours()["loss"].detach())
    for name in ("third convolution as a product", "third convolution by the library", "points drawn by the host"):
        _, way, prepare = VARIANTS[name]
        with way():
            case = Case("sdf", CPU, True, "float32")
            prepare(case)
            assert case.space.decoder.third_as_product == name.endswith("as a product")
            assert float(case.ours()["loss"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_host_draws_the_points_that_a_cpu_draws():
    task = Case("sdf", CPU, True, "float32").data.task
    asked = ((3, 4), (0, 1), 5, 7)
    for found, expected in zip(host_drawn(task, *asked), task.batches(*asked), strict=True):
        assert torch.equal(found.inputs, expected.inputs)
        assert torch.equal(found.targets, expected.targets)


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(tmp_path, capfd):
    parts = [part for part in gpu_check.PARTS if part != "tests"]
    figures = run(tmp_path, capfd, parts, ["single", "multi", "sdf"])
    assert figures["same"]["sdf, float32"]["recorded, relative"] == 0


def test_a_failed_case_is_told_and_the_next_one_runs(tmp_path, capsys):
    sheet = Sheet(tmp_path / "part.json", CPU, True)

    def fails():
        raise RuntimeError("no such kernel")

    sheet.case("first", fails)
    sheet.case("second", lambda: {"steps a second": 3})
    kept = json.loads((tmp_path / "part.json").read_text())
    assert kept["first"]["error"] == "RuntimeError: no such kernel"
    assert kept["second"]["steps a second"] == 3
    assert "FAILED RuntimeError: no such kernel" in gpu_check.table({"part": kept})
