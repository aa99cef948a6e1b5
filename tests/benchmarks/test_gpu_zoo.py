"""The zoo's half of the check on a GPU runs on a CPU in tiny sizes, and all its engines make the same step."""

import pytest
import torch

from benchmarks import gpu_zoo, gpu_zoo_ways
from benchmarks.gpu_zoo_ways import Case, Way

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def stepped(way: Way) -> tuple[torch.Tensor, torch.Tensor]:
    case = Case("resnet8@digits", 4, 3, way, CPU, torch.float64)
    losses = [case.step() for _ in range(2)]
    return torch.stack(losses), case.parameters.values


@pytest.mark.parametrize("engine", ["grouped nhwc", "dense nhwc", "bmm nchw", "vmap"])
@pytest.mark.parametrize("pack", [2, 4])
def test_all_engines_make_the_same_step(engine, pack):
    for found, expected in zip(stepped(Way(engine, pack)), stepped(Way("alone", 1)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


SHORT = ("zoo waits", "zoo many against one")
OTHERS = sorted(gpu_zoo.CHECKS.keys() - {*SHORT, "zoo speed"})


@pytest.mark.parametrize("check", [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_each_check_runs(check):
    figures = gpu_zoo.CHECKS[check](CPU, True)
    assert figures


@pytest.mark.slow
def test_speed_is_measured_of_every_way(monkeypatch):
    monkeypatch.setattr(
        gpu_zoo_ways, "image_ways", lambda count: [Way("plain", 1), Way("dense nhwc", count, 2, bf16=True)]
    )
    figures = gpu_zoo_ways.zoo_speed(CPU, True)
    assert len(figures) == 3
    for found in figures.values():
        assert len(found) >= 2
        for way, rates in found.items():
            assert rates.get("steps a second", 0) > 0, (way, rates)
