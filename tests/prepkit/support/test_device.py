"""Names of devices and their hardware, on machines that have other devices than this one."""

import pytest
import torch

from prepkit.errors import DeviceError
from prepkit.support import device as device_module
from prepkit.support.device import choose_device, constant, gpu_kernels, hardware


@pytest.fixture
def machine(monkeypatch):
    def with_devices(gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_devices


@pytest.mark.parametrize("name", [None, "auto"])
def test_a_gpu_is_chosen_if_there_is_one(machine, name):
    for devices, chosen in (((0, False), "cpu"), ((0, True), "mps"), ((2, False), "cuda")):
        machine(*devices)
        assert choose_device(name) == torch.device(chosen)


def test_devices_by_name(machine):
    machine(2, mps=True)
    for name in ("cpu", "cpu:0", "cuda", "cuda:1", "mps"):
        assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "tpu", "cpu:x", "", "meta", "xpu"])
def test_unknown_names(name):
    with pytest.raises(DeviceError) as raised:
        choose_device(name)
    assert str(raised.value) == f"unknown device '{name}'; use cpu, cuda, cuda:N or mps."


@pytest.mark.parametrize(
    ("name", "devices", "seen"),
    [
        ("cuda", (0, False), "no GPU"),
        ("mps", (0, False), "no GPU"),
        ("cuda", (0, True), "an mps device"),
        ("cuda:1", (1, False), "1 CUDA device"),
        ("cuda:99", (2, False), "2 CUDA devices"),
        ("cpu:1", (0, False), "no GPU"),
    ],
)
def test_devices_that_are_not_there(machine, name, devices, seen):
    machine(*devices)
    with pytest.raises(DeviceError) as raised:
        choose_device(name)
    assert (
        str(raised.value) == f"device '{name}' was asked for, but this torch sees {seen}; use another one, such as cpu."
    )


def test_one_core_is_one_core(monkeypatch):
    monkeypatch.setattr(device_module.os, "sched_getaffinity", lambda of: {0}, raising=False)
    assert hardware(torch.device("cpu")).endswith(", 1 core")
    monkeypatch.setattr(device_module.os, "sched_getaffinity", lambda of: {0, 1}, raising=False)
    assert hardware(torch.device("cpu")).endswith(", 2 cores")


def test_a_constant_is_made_once():
    numbers = (1, 0, 2)
    with torch.inference_mode():
        made = constant(numbers, torch.int64, torch.device("cpu"))
    assert made.tolist() == [1, 0, 2]
    assert made.dtype == torch.int64
    assert not made.is_inference()  # whoever asks first, others may differentiate
    assert constant(numbers, torch.int64, torch.device("cpu")) is made
    assert constant(numbers, torch.float32, torch.device("cpu")).dtype == torch.float32


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpus_kernels_are_chosen_until_the_end_of_the_block(deterministic):
    def flags():
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    def fails():
        with gpu_kernels(torch.device("cuda"), deterministic):
            assert flags() == (True, True, deterministic, False)
            raise KeyError

    before = flags()
    with pytest.raises(KeyError):
        fails()
    assert flags() == before
    with gpu_kernels(torch.device("cpu"), True):
        assert flags() == before
