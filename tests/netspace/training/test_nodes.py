"""A training on two machines: two network namespaces that only a virtual cable joins, as root on Linux makes them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_zoos import SMALL

import netspace

PREFIX = "10.77.0"  # of a network that only the two namespaces know
PORT = 29511


def _ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str]]]:
    """Names and network interfaces of two namespaces that see each other and nothing else."""
    names = [f"netspace{os.getpid()}{letter}" for letter in "ab"]
    cables = [f"ns{os.getpid() % 100000}{letter}" for letter in "ab"]
    if shutil.which("ip") is None or not _ip("netns", "add", names[0]):
        pytest.skip("no network namespace can be made here: that takes iproute2, Linux and root")
    try:
        made = _ip("netns", "add", names[1])
        made = made and _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            made = made and _ip("link", "set", cable, "netns", name)
            made = made and _ip("-n", name, "addr", "add", f"{PREFIX}.{number}/24", "dev", cable)
            made = made and _ip("-n", name, "link", "set", cable, "up") and _ip("-n", name, "link", "set", "lo", "up")
        if not made:
            pytest.skip("no virtual cable can be made here")
        yield list(zip(names, cables, strict=True))
    finally:
        for name in names:
            _ip("netns", "del", name)


def test_two_machines_train_what_one_does(tmp_path: Path, small_zoo, nodes) -> None:
    settings = {**SMALL["digits_multi"], "batch.instances": 4, "training.precision": "float32"}
    settings |= {"training.steps": 2, "training.validate_every": 2}
    zoo, out = small_zoo("digits_multi"), tmp_path / "two"
    changes = [argument for key, value in settings.items() for argument in ("--set", f"{key}={json.dumps(value)}")]
    train = ["-m", "netspace", "train", "digits_multi", "--zoo", str(zoo), "--out", str(out), *changes]
    processes = []
    for rank, (name, cable) in enumerate(nodes):
        meet = ["--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
        meet += ["--master-addr", f"{PREFIX}.1", "--master-port", str(PORT)]
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *meet, *train]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": cable, "TP_SOCKET_IFNAME": cable}
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    one = netspace.train(netspace.load_recipe("digits_multi", settings), zoo, tmp_path / "one").metrics()
    two = netspace.open_run(out).metrics()
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        for key in ("loss", "loss_kd", "loss_class", "loss_gamma", "gradient_norm"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-3)
