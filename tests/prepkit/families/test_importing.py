"""Tests of builders that come from outside."""

import sys

import pytest
import torch
from registry_samples import NETS, message, small
from torch import nn

from prepkit.errors import RegistryError
from prepkit.families.detection import Detection, detect
from prepkit.families.registry import (
    Registry,
    architecture_from_callable,
)


@pytest.mark.parametrize("builder", ["plain", "draws", "Nets.inner"])
def test_architecture_from_callable(nets, builder):
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    one = architecture_from_callable(f"{nets}:{builder}", (1, 8, 8))
    assert (one.name, one.family, one.input_shape) == (f"{nets}.{builder}", builder, (1, 8, 8))
    assert one.num_parameters == one.num_trainable == one.layout.total == 20 + 219
    assert torch.equal(torch.rand(5), expected)
    assert one.build_folded()(one.example_input()).shape == (2, 3)
    assert detect(one.build().state_dict(), [one]) == Detection(one, folded=True)


def test_architecture_from_callable_takes_arguments_and_a_name(nets):
    one = architecture_from_callable(f"{nets}:plain", [1, 8, 8], name="wide@digits", arguments={"width": 3})
    assert one.name == "wide@digits"
    assert one.num_trainable == 30 + 327
    assert one.build()[0].out_channels == 3


def test_the_name_made_from_a_callable_can_be_a_file_name(tmp_path, monkeypatch):
    module = "a" * 120 + "\u00fc"
    (tmp_path / f"{module}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    one = architecture_from_callable(f"{module}:plain", (1, 8, 8))
    assert one.name == "a" * 93 + "_.plain"
    with pytest.raises(RegistryError, match="'x/y' cannot name an architecture"):
        architecture_from_callable(f"{module}:plain", (1, 8, 8), name="x/y")


def test_batch_norm_of_a_foreign_network_is_folded(nets):
    one = architecture_from_callable(f"{nets}:normalised", (1, 8, 8))
    assert one.num_trainable == 18 + 4 + 219
    assert one.num_parameters == 18 + 2 + 219
    assert [slot.name for slot in one.layout] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert detect(one.build().state_dict(), [one]) == Detection(one, folded=False)
    assert detect(one.build_folded().state_dict(), [one]) == Detection(one, folded=True)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("{nets}", "'{nets}' does not name a network builder; write module:callable."),
        ("{nets}:", "'{nets}:' does not name a network builder; write module:callable."),
        ("", "'' does not name a network builder; write module:callable."),
        (":plain", "':plain' does not name a network builder; write module:callable."),
        (
            "no_such_module:plain",
            "'no_such_module:plain': module 'no_such_module' cannot be imported: ModuleNotFoundError: "
            "No module named 'no_such_module'. It must lie in the current folder, or be installed.",
        ),
        ("{nets}:plane", "'{nets}:plane': there is no 'plane' in it. Did you mean 'plain'?"),
        ("{nets}:number", "'{nets}:number' is of type int, not a callable that builds a network."),
        ("{nets}:raising", "'{nets}:raising' failed to build '{nets}.raising': ValueError: no data for you."),
        ("{nets}:leaving", "'{nets}:leaving' failed to build '{nets}.leaving': SystemExit: 3."),
        (
            "{nets}:needs",
            "'{nets}:needs' failed to build '{nets}.needs': "
            "TypeError: needs() missing 1 required positional argument: 'argument'. "
            "Give what it needs with arguments={{...}}.",
        ),
        ("{nets}:dictionary", "'{nets}:dictionary' returned an object of type dict, not a torch.nn.Module."),
        ("{nets}:network", "'{nets}:network' is a network already; name the function or class that builds it."),
        ("{nets}:lazy", "'{nets}:lazy' returned lazy layers; run the network once before returning it."),
    ],
)
def test_builders_that_do_not_build(nets, spec, text):
    with pytest.raises(RegistryError) as error:
        architecture_from_callable(spec.format(nets=nets), (1, 8, 8))
    assert message(error) == text.format(nets=nets)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'."),
        ("raise SystemExit(2)", "SystemExit: 2."),
        ("1 +", "SyntaxError: invalid syntax "),
    ],
)
def test_modules_that_do_not_import(tmp_path, monkeypatch, source, text):
    (tmp_path / "broken_nets.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RegistryError) as error:
        architecture_from_callable("broken_nets:net", (1,))
    assert message(error).startswith(f"'broken_nets:net': module 'broken_nets' cannot be imported: {text}")


def test_a_builder_that_only_a_file_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_nets.py").write_text(
        f"open({str(tmp_path / 'touched')!r}, 'w').close()\nfrom prepkit.families.sine_mlp import SineMLP\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = small("mine").to_dict()
    data["config"]["builder"] = "evil_nets:SineMLP"

    one = Registry.from_dict({"architectures": [{"class_id": 0, **data}]})["mine"]
    assert one.layout == small("mine").layout
    assert one.num_parameters == one.num_trainable == 21
    for build in (one.build, one.build_folded):
        with pytest.raises(RegistryError) as error:
            build()
        assert message(error) == (
            "'mine' is built by 'evil_nets:SineMLP', which a file names and nothing here registers, so it is not "
            "imported. Install the package that registers it, or read the file with trust_code=True."
        )
    assert not (tmp_path / "touched").exists()
    assert "evil_nets" not in sys.modules

    trusted = Registry.from_dict({"architectures": [{"class_id": 0, **data}]}, trust_code=True)["mine"]
    assert isinstance(trusted.build(), nn.Module)
    assert (tmp_path / "touched").exists()
