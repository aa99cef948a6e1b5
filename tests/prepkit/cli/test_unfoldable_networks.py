"""BatchNorm that cannot be folded: the message names it, and each of the ways out works."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_samples import entries, run, with_random_statistics
from torch.nn.functional import conv2d

UNFOLDABLE = ("--arch", "cli_nets:Late", "--input", "3x8x8")


def test_batch_norm_that_cannot_be_folded_says_where_and_why(nets: Any, folder: Path) -> None:
    torch.save(with_random_statistics(nets["Late"]()).state_dict(), "late.pt")
    run("pack", "late.pt", *UNFOLDABLE, "--keep-bn", "-o", "kept.prep.safetensors")
    before = entries(folder)
    result = run("pack", "late.pt", *UNFOLDABLE, code=2)
    assert "1 of 1 BatchNorm cannot be folded" in result.stderr
    assert "bn" in result.stderr
    assert "--keep-bn" in result.stderr
    assert "--bn affine makes each of these a scale and a shift per channel" in result.stderr
    assert "keep_unfoldable" not in result.stderr
    assert "Traceback" not in result.stderr
    assert entries(folder) == before


@pytest.mark.parametrize("command", ["pack", "fuse"])
def test_batch_norm_that_cannot_be_folded_becomes_an_affine_map(nets: Any, command: str) -> None:
    torch.manual_seed(0)
    network = with_random_statistics(nets["Late"]()).eval()
    torch.save(network.state_dict(), "late.pt")
    if command == "pack":
        result = run("pack", "late.pt", *UNFOLDABLE, "--bn", "affine")
        run("unpack", "late.prep.safetensors", "-o", "out.pt")
    else:
        result = run("fuse", "late.pt", *UNFOLDABLE, "--bn", "affine", "-o", "out.pt")
    assert "folded        0 BatchNorm layers, 1 made affine (bn); outputs equal within " in result.stdout
    tensors = torch.load("out.pt", weights_only=True)
    assert list(tensors) == ["conv.weight", "conv.bias", "bn.weight", "bn.bias"]
    images = torch.randn(5, 3, 9, 9)
    features = conv2d(images, tensors["conv.weight"], tensors["conv.bias"]).relu()
    found = features * tensors["bn.weight"][:, None, None] + tensors["bn.bias"][:, None, None]
    torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-5)
    again = run("pack", "out.pt", *UNFOLDABLE, "--json")  # it is known as the packed form of this network
    assert json.loads(again.stdout)["packed"][0]["architecture"] == "cli_nets.Late"


def test_running_statistics_that_no_fold_reaches_never_pass(nets: Any) -> None:
    """A module whose statistics are named as a BatchNorm's, in a shape that no BatchNorm has."""
    torch.save(nets["Strange"]().state_dict(), "strange.pt")
    result = run("pack", "strange.pt", "--arch", "cli_nets:Strange", "--input", "3x9x9", code=2)
    assert "norm: it holds running statistics, but not a mean and a variance of one value a channel" in result.stderr
    assert "--keep-bn" in result.stderr
    run("pack", "strange.pt", "--arch", "cli_nets:Strange", "--input", "3x9x9", "--keep-bn")
