"""Two processes over gloo against one with the joint batch: the same losses, gradients and runs."""

import json
import os
import socket
import subprocess
import sys

import parallel_losses
import pytest
import torch
from small_zoos import SMALL

import netspace
from netspace.training.trainer import _check_line_instances
from prepkit.support.processes import ParallelError, Ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def start(count: int, *arguments: str) -> str:
    """Run a script or module with the tests' interpreter in `count` processes that find each other; what they print."""
    command = [sys.executable, *arguments]
    if count > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, *launcher, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "digits_multi",
            {
                "batch.instances": 4,
                "batch.boundary_share": 1.0,
                "batch.samples": 16,
                "loss.line": 2.0,
                "loss.line_from": 0.0,
                "batch.line_instances": 3,  # the four architectures' twelve are dealt to two processes
            },
        ),
        pytest.param("digits_single", {"batch.instances": 4, "batch.samples": 16}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_agree_with_one(tmp_path, small_zoo, name, changes, forked_python):
    arguments = (name, small_zoo(name), tmp_path, repr({**changes, "training.precision": "float32"}))
    parallel_losses.main(*arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for rank in ("0", "1"):  # with what torchrun tells its processes
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **meet, **told}
        processes.append(forked_python.start(parallel_losses.__file__, *arguments, env=environment))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, first, second = (torch.load(tmp_path / f) for f in ("0-of-1.pt", "0-of-2.pt", "1-of-2.pt"))
    if name == "digits_multi":
        assert one["parts"]["loss_gamma"] > 1  # 4 pairs, all but those within a process straddle
        assert one["parts"]["loss_line"] > 0.1
    for key, part in one["parts"].items():
        torch.testing.assert_close(first["parts"][key], part, rtol=1e-5, atol=0)
        assert torch.equal(first["parts"][key], second["parts"][key])
    for key, gradient in one["gradients"].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(first["gradients"][key], gradient, rtol=1e-4, atol=1e-5 * scale)
        assert torch.equal(first["gradients"][key], second["gradients"][key])


def test_instances_of_the_line_loss_that_cannot_be_dealt():
    _check_line_instances(4, 3, Ranks(0, 6))
    with pytest.raises(ParallelError, match=r"line_instances: 4 of each of 4 architectures .* 5 processes; use 5, or"):
        _check_line_instances(4, 4, Ranks(0, 5))


@pytest.mark.slow
def test_a_training_of_two_processes_ends_where_that_of_one_does(tmp_path, small_zoo):
    settings = {**SMALL["digits_multi"], "batch.instances": 4, "training.precision": "float32"}
    settings |= {"training.steps": 4, "training.validate_every": 2}
    arguments = [argument for key, value in settings.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
    for count in (1, 2):
        out = str(tmp_path / f"run{count}")
        printed = start(
            count,
            "-m",
            "netspace",
            "train",
            "digits_multi",
            "--zoo",
            str(small_zoo("digits_multi")),
            "--out",
            out,
            "--json",
            *arguments,
        )
        document = json.loads(printed)  # one process speaks
        assert document["best"] == netspace.open_run(out).facts("best")
    one, two = (netspace.open_run(tmp_path / f"run{count}") for count in (1, 2))
    for ours, theirs in zip(one.metrics(), two.metrics(), strict=True):
        assert ours["step"] == theirs["step"]
        for key in ("loss", "loss_kd", "loss_class", "loss_gamma", "gradient_norm"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-3)
    assert len(one.metrics()) == 4
