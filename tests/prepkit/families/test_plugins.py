"""Tests of architectures that plug-ins register."""

import sys
import textwrap

import pytest
import torch
from registry_samples import NAMES, message
from torch import nn

from prepkit.errors import FusionError, RegistryError
from prepkit.families.detection import Detection, detect
from prepkit.families.registry import (
    Architecture,
    Registry,
    architecture,
    architectures,
    built_in_registry,
)


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put a distribution with entry points and a module `<name>_plugin` on sys.path."""

    def install(name: str, entries: dict[str, str], source: str) -> None:
        root = tmp_path / name
        info = root / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[prepkit.architectures]\n{lines}")
        (root / f"{name}_plugin.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(root)

    return install


WORKING = """
from torch import nn
from prepkit.families.registry import Architecture

calls = []
ready = Architecture("ready@toy", "toy", (3,), "{name}_plugin:net", {{"width": 5}}, {{}})

def made():
    calls.append(1)
    return Architecture("made@toy", "toy", (3,), "{name}_plugin:net", {{"width": 7}}, {{}})

def net(width):
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1))
"""


def test_plugins_are_found_by_name_and_by_tensors(distribution):
    name = "goodnets"
    distribution(
        name, {"ready@toy": "goodnets_plugin:ready", "made@toy": "goodnets_plugin:made"}, WORKING.format(name=name)
    )
    assert architectures() == [*NAMES, "made@toy", "ready@toy"]
    assert "goodnets_plugin" not in sys.modules  # a list does not import

    assert architecture("resnet8@cifar10") is built_in_registry("cifar10")["resnet8@cifar10"]
    assert "goodnets_plugin" not in sys.modules

    ready, made = architecture("ready@toy"), architecture("made@toy")
    assert (ready.num_parameters, made.num_parameters) == (26, 36)
    assert architecture("made@toy") is made
    assert sys.modules["goodnets_plugin"].calls == [1]
    assert detect(made.build().state_dict()) == Detection(made, folded=True)
    assert detect(ready.build().state_dict()) == Detection(ready, folded=True)
    with pytest.raises(RegistryError, match="Did you mean 'made@toy'"):
        architecture("mode@toy")
    assert Registry([made, ready, architecture("lenet_like@digits")]).class_ids == {
        "ready@toy": 0,
        "made@toy": 1,
        "lenet_like@digits": 2,
    }


def test_a_plugin_that_cannot_be_folded_is_not_in_the_way_of_others(distribution):
    source = """
        from torch import nn
        from prepkit.families.registry import Architecture

        ready = Architecture("ready@toy", "toy", (3,), "stiffnets_plugin:net", {})

        def net():
            return nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1, track_running_stats=False))
    """
    distribution("stiffnets", {"ready@toy": "stiffnets_plugin:ready"}, source)
    assert detect({"unknown": torch.zeros(3)}) is None
    with pytest.raises(FusionError):
        architecture("ready@toy").build_folded()


def test_a_file_may_name_the_builder_that_a_plugin_registers(distribution):
    distribution("filenets", {"ready@toy": "filenets_plugin:ready"}, WORKING.format(name="filenets"))
    data = architecture("ready@toy").to_dict()
    assert isinstance(Architecture.from_dict(data).build(), nn.Module)
    data["config"]["arguments"] = {"width": 6}
    with pytest.raises(RegistryError, match="which a file names and nothing here registers"):
        Architecture.from_dict(data).build()


def test_a_name_clash_with_a_built_in_architecture(distribution):
    distribution("clashnets", {"resnet8@cifar10": "clashnets_plugin:ready"}, WORKING.format(name="clashnets"))
    for look_up in (architectures, lambda: architecture("resnet8@cifar10")):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert message(error) == (
            "architecture 'resnet8@cifar10' is registered by prepkit itself and by distribution 'clashnets 1.2'; "
            "uninstall one."
        )
    assert architecture("resnet32@cifar10").num_parameters == 465_674  # others are not in the way
    assert "clashnets_plugin" not in sys.modules


def test_a_name_clash_between_two_distributions(distribution):
    for name in ("firstnets", "secondnets"):
        distribution(name, {"ready@toy": f"{name}_plugin:ready"}, WORKING.format(name=name))
    for look_up in (architectures, lambda: architecture("ready@toy")):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert "architecture 'ready@toy' is registered by distribution" in message(error)
        assert "firstnets 1.2" in message(error)
        assert "secondnets 1.2" in message(error)
    with pytest.raises(RegistryError, match="architecture 'ready@toy' is registered by"):
        detect({"unknown": torch.zeros(3)})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "module_that_is_gone:net",
            "architecture 'toy@toy' of distribution '{name} 1.2' (module_that_is_gone:net) cannot be loaded: "
            "ModuleNotFoundError: No module named 'module_that_is_gone'. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:gone",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:gone) cannot be loaded: "
            "AttributeError: module '{name}_plugin' has no attribute 'gone'. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:raising",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:raising) cannot be loaded: "
            "OSError: no disk. Fix or uninstall it.",
        ),
        (
            "{name}_plugin:number",
            "architecture 'toy@toy' of distribution '{name} 1.2' ({name}_plugin:number) is of type int, "
            "not a prepkit Architecture.",
        ),
        (
            "{name}_plugin:ready",
            "distribution '{name} 1.2' registers 'toy@toy', but {name}_plugin:ready is named 'ready@toy'; "
            "give both the same name.",
        ),
    ],
)
def test_broken_plugins_name_their_distribution_when_looked_at(distribution, request, value, text):
    name = f"broken{request.node.callspec.indices['value']}nets"
    source = WORKING.format(name=name) + "\nnumber = 5\n\ndef raising():\n    raise OSError('no disk')\n"
    distribution(name, {"toy@toy": value.format(name=name)}, source)

    assert architectures()[-1] == "toy@toy"
    assert architecture("resnet8@cifar10").name == "resnet8@cifar10"
    assert detect(architecture("resnet8@digits").build().state_dict()) is not None

    for look_up in (lambda: architecture("toy@toy"), lambda: detect({"unknown": torch.zeros(3)})):
        with pytest.raises(RegistryError) as error:
            look_up()
        assert message(error) == text.format(name=name)
