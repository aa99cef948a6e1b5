"""`--arch` for networks with several inputs, token ids, a batch of one, and builders with arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import prepkit
from prepkit.cli import main
from prepkit.families.registry import architecture_from_callable


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(6, 2)

    def forward(self, image: Tensor, extra: Tensor) -> Any:
        return self.fc(torch.cat([self.bn(self.conv(image)).mean((2, 3)), extra], 1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.bn = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)

    def forward(self, ids: Tensor) -> Any:
        return self.bn(self.conv(self.embed(ids).mT))


class OfOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.bn(self.conv(x)).reshape(4, -1) if len(x) == 1 else self.fail()


class Wide(nn.Module):
    def __init__(self, width: int, activation: str = "ReLU") -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), getattr(nn, activation)()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.bn(self.conv(x)))


def two_inputs() -> nn.Module:
    network: Any = TwoInputs()
    network.example_input_array = (torch.randn(2, 3, 8, 8), torch.randn(2, 2))
    return network


def listed_inputs() -> nn.Module:
    network: Any = TwoInputs()
    network.example_input_array = [torch.randn(2, 3, 8, 8), torch.randn(2, 2)]
    return network


def words() -> nn.Module:
    network: Any = Words()
    network.example_input_array = torch.randint(0, 9, (2, 7))
    return network


def of_one() -> nn.Module:
    network: Any = OfOne()
    network.example_input_array = {"x": torch.randn(1, 3, 8, 8)}
    return network


def wrong() -> nn.Module:
    network: Any = OfOne()
    network.example_input_array = "x"
    return network


def prepkit_pack(folder: Path, network: nn.Module, *options: str) -> Result:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(network.state_dict(), folder / "m.pt")
    return CliRunner().invoke(main, ["pack", str(folder / "m.pt"), "-o", str(folder / "m.prep.safetensors"), *options])


@pytest.mark.parametrize(
    ("builder", "shape", "inputs"),
    [
        (two_inputs, "3x8x8", (torch.randn(3, 3, 9, 9), torch.randn(3, 2))),
        (listed_inputs, "3x8x8", (torch.randn(3, 3, 9, 9), torch.randn(3, 2))),
        (words, "7", (torch.randint(0, 9, (3, 5)),)),
        (of_one, "3x8x8", (torch.randn(1, 3, 9, 9),)),
    ],
)
def test_a_network_that_names_its_inputs_folds(builder, shape, inputs, tmp_path):
    network = builder()
    call = ("--arch", f"{__name__}:{builder.__name__}", "--input", shape)
    result = prepkit_pack(tmp_path, network, *call)
    assert result.exit_code == 0, result.output
    assert architecture_from_callable(call[1], None).input_shape == tuple(map(int, shape.split("x")))
    assert "1 BatchNorm layer; outputs equal within" in result.output
    folded = architecture_from_callable(call[1], (3, 8, 8)).build_folded()
    folded.load_state_dict(prepkit.load_prep(tmp_path / "m.prep.safetensors").tensors())
    with torch.no_grad():
        torch.testing.assert_close(folded(*inputs), network.eval()(*inputs), rtol=1e-4, atol=1e-5)


def test_a_network_that_names_its_inputs_needs_no_input_shape(tmp_path):
    call = ("--arch", f"{__name__}:words", "--force")
    assert prepkit_pack(tmp_path, words(), *call).exit_code == 0
    without = prepkit_pack(tmp_path, Words(), "--arch", f"{__name__}:Words", "--force")
    assert without.exit_code == 2
    assert "Words' needs the shape of one input too: give --input, such as 3x32x32, or have the" in without.output


def test_a_zoo_takes_and_rebuilds_such_a_network(tmp_path):
    network = two_inputs().eval()
    torch.save(network.state_dict(), tmp_path / "m.pt")
    call = ["zoo", "create", str(tmp_path / "zoo"), str(tmp_path / "m.pt"), "--arch", f"{__name__}:two_inputs"]
    result = CliRunner().invoke(main, [*call, "--input", "3x8x8"])
    assert result.exit_code == 0, result.output
    inputs = (torch.randn(3, 3, 9, 9), torch.randn(3, 2))
    with torch.no_grad():
        rebuilt = prepkit.open_zoo(tmp_path / "zoo", trust_code=True).network(0)
        torch.testing.assert_close(rebuilt(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("builder", [TwoInputs, Words, OfOne])
def test_a_network_that_does_not_run_on_one_tensor_is_told_how_to_name_its_inputs(builder, tmp_path):
    result = prepkit_pack(tmp_path, builder(), "--arch", f"{__name__}:{builder.__name__}", "--input", "3x8x8")
    assert result.exit_code == 2
    assert (
        "; give another --input, or have the builder set `network.example_input_array` to inputs that it runs on in "
        "eval mode: " in result.output
    )


def test_inputs_of_another_kind_are_refused(tmp_path):
    result = prepkit_pack(tmp_path, OfOne(), "--arch", f"{__name__}:wrong", "--input", "3x8x8")
    assert result.exit_code == 2
    assert "its example_input_array is of type str; give a tensor, a tuple" in result.output


@pytest.mark.parametrize(("given", "activation"), [(("width=5",), "ReLU"), (("width=6", "activation=Tanh"), "Tanh")])
def test_a_builder_gets_its_arguments(given, activation, tmp_path):
    width = int(given[0][-1])
    options = [word for argument in given for word in ("--arch-arg", argument)]
    call = ("--arch", f"{__name__}:Wide", "--input", "3x8x8", *options)
    assert prepkit_pack(tmp_path, Wide(width, activation), *call).exit_code == 0
    zoo = tmp_path / "zoo"
    result = CliRunner().invoke(main, ["zoo", "create", str(zoo), str(tmp_path / "m.pt"), *call])
    assert result.exit_code == 0, result.output
    network: Any = prepkit.open_zoo(zoo, trust_code=True).network(0)
    assert (network.conv.out_channels, type(network.act).__name__) == (width, activation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "missing 1 required positional argument: 'width'. Give what it needs with --arch-arg NAME=VALUE."),
        (("--arch-arg", "widht=5"), "got an unexpected keyword argument 'widht'. Give what it needs with --arch-arg"),
        (("--arch-arg", "width"), "'width' is no argument such as width=16"),
        (("--arch-arg", "2=3"), "'2=3' is no argument such as width=16"),
    ],
)
def test_wrong_arguments_are_named(options, message, tmp_path):
    result = prepkit_pack(tmp_path, Wide(5), "--arch", f"{__name__}:Wide", "--input", "3x8x8", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_arguments_need_a_builder(tmp_path):
    for options, message in (
        ((), "--arch-arg goes with --arch module:callable."),
        (("--arch", "resnet8@digits"), "--arch-arg goes with a module:callable; 'resnet8@digits' has its own."),
    ):
        result = prepkit_pack(tmp_path, Wide(5), "--arch-arg", "width=5", *options)
        assert result.exit_code == 2
        assert message in result.output


# Whole networks -----------------------------------------------------------------------------------------------


REFUSALS = {
    "nn.Linear(3, 2)": "would import and call torch.nn.modules.linear.Linear, so it was not read",
    "own_net.Net(3, 2)": "holds no named tensors but an object of type own_net.Net",
}


@pytest.mark.parametrize("network", REFUSALS)
def test_the_refusal_of_a_pickled_network_has_the_code_that_takes_its_weights_out(network, tmp_path, forked_python):
    (tmp_path / "own_net.py").write_text("from torch import nn\nclass Net(nn.Linear): ...\n")
    save = f"import torch, own_net; from torch import nn; torch.save({network}, 'whole network.pt')"
    assert forked_python.run("-c", save, cwd=tmp_path).returncode == 0
    file = tmp_path / "whole network.pt"
    result = CliRunner().invoke(main, ["pack", str(file)])
    assert result.exit_code == 2
    assert REFUSALS[network] in result.output
    (code,) = re.findall("`(import torch; [^`]*)`", result.output)
    assert forked_python.run("-c", code, cwd=tmp_path).returncode == 0
    result = CliRunner().invoke(
        main, ["pack", str(tmp_path / "weights.pt"), "-o", str(tmp_path / "w.prep.safetensors")]
    )
    assert result.exit_code == 0, result.output
    assert prepkit.load_prep(tmp_path / "w.prep.safetensors").tensors().keys() == {"weight", "bias"}
