"""The rules of tests/test_layering.py find what breaks them, in a small package."""

from pathlib import Path

import pytest
from imports import circle, circle_of_folders, module_files
from test_layering import MOST_LINES, ROOT, faults, of_one_name, too_long, weights

import prepkit


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package like prepkit that keeps all rules."""
    sources = {
        "__init__.py": "from prepkit.cli import main",
        "errors.py": "import json",
        "prep/__init__.py": "",
        "prep/layout.py": "from prepkit.errors import E\ndef f():\n    import torch",
        "families/__init__.py": "",
        "families/registry.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        "running/__init__.py": "",
        "running/_stacking.py": "import torch",
        "running/instances.py": "from prepkit.running._stacking import stack",
        "packing.py": "import torch\nfrom prepkit.prep import layout\nfrom .families.registry import detect",
        "zoo/__init__.py": "",
        "zoo/format/__init__.py": "",
        "zoo/format/paths.py": "from prepkit.errors import E",
        "cli/__init__.py": "from prepkit.cli import common\ndef f():\n    from prepkit.packing import pack",
        "cli/common.py": "from prepkit import errors",
    }
    for name, source in sources.items():
        path = tmp_path / "prepkit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "prepkit"


def test_a_package_that_keeps_the_rules(package: Path) -> None:
    assert (faults(package), circle(package), circle_of_folders(package), weights(package)) == ([], [], [], [])


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "errors.py",
            "from prepkit.prep.layout import L",
            "errors:1 imports prepkit.prep.layout.L, which stands",
        ),
        ("errors.py", "def f():\n    import prepkit.cli", "errors:2 imports prepkit.cli, which stands below"),
        ("errors.py", "if TYPE_CHECKING:\n    import prepkit.cli", "errors:2 imports prepkit.cli, which stands below"),
        ("errors.py", "class A:\n  def f(self):\n    from . import cli", "errors:3 imports prepkit.cli, which"),
        (
            "zoo/format/paths.py",
            "from ...cli import main",
            "paths:1 imports prepkit.cli.main, which stands below",
        ),
        ("zoo/format/paths.py", "from prepkit import Layout", "paths:1 imports prepkit.Layout from the public names"),
        ("zoo/format/paths.py", "import prepkit", "paths:1 imports prepkit from the public names"),
        ("zoo/format/paths.py", "import netspace.run", "imports netspace.run, but prepkit stands alone"),
        (
            "zoo/format/paths.py",
            "from prepkit.prep.layout import _f",
            "prepkit.prep.layout._f, which is private",
        ),
        ("zoo/format/paths.py", "import prepkit.running._stacking", "prepkit.running._stacking, which is private"),
        ("novelty.py", "", "prepkit.novelty has no place in ORDERS"),
    ],
)
def test_what_breaks_the_rules_is_found(file: str, source: str, fault: str, package: Path) -> None:
    (package / file).write_text(source)
    (found,) = faults(package)
    assert fault in found


def test_what_netspace_may_not_import_is_found(tmp_path: Path) -> None:
    package = tmp_path / "netspace"
    package.mkdir()
    (package / "recipe.py").write_text("import prepkit\nfrom prepkit import Layout\nfrom prepkit.errors import E")
    assert faults(package) == []
    (package / "data.py").touch()
    (package / "recipe.py").write_text("from prepkit.zoo.read.store import Store\nfrom netspace.data import D")
    first, second = sorted(faults(package))
    assert "netspace.data.D, which stands below it" in second or "netspace.data.D, which stands below it" in first
    assert "not in OPEN_TO_NETSPACE" in first + second


@pytest.mark.parametrize("how", ["def f():\n    ", "if TYPE_CHECKING:\n    "])
def test_a_circle_is_found(how: str, package: Path) -> None:
    (package / "zoo/format/paths.py").write_text(f"{how}from prepkit.zoo.format import store")
    (package / "zoo/format/store.py").write_text("from prepkit.zoo.format.paths import f")
    assert faults(package) == []
    assert set(circle(package)) == {"prepkit.zoo.format.paths", "prepkit.zoo.format.store"}


def test_a_circle_of_folders_is_found(package: Path) -> None:
    """No module of it is in a circle: a imports b, and another module beside b imports another beside a."""
    for name, source in {
        "hub/a/one.py": "from prepkit.hub.b.one import f",
        "hub/a/two.py": "",
        "hub/b/one.py": "",
        "hub/b/two.py": "from prepkit.hub.a.two import f",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert circle(package) == []
    assert set(circle_of_folders(package)) == {"prepkit.hub.a", "prepkit.hub.b"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("errors.py", "import numpy as np"),
        ("errors.py", "try:\n    from torch import nn\nexcept ImportError:\n    pass"),
        ("cli/common.py", "from prepkit.packing import pack_checkpoint"),
        ("cli/common.py", "class A:\n    import h5py"),
    ],
)
def test_what_makes_a_light_module_heavy_is_found(file: str, source: str, package: Path) -> None:
    (package / file).write_text(source)
    assert len(weights(package)) == 1


def test_what_is_too_long_is_found(tmp_path: Path) -> None:
    for name, lines in (("prepkit/a.py", MOST_LINES), ("tests/deep/test_b.py", MOST_LINES + 1), ("other/c.py", 999)):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text("\n" * lines)
    (found,) = too_long(tmp_path)
    assert found.startswith("tests/deep/test_b.py has 401 lines, and 400 is the most: ")


def test_tests_of_one_name_are_found(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        for name in ("test_a.py", "conftest.py", f"test_{folder}.py"):
            file = tmp_path / "tests" / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    assert of_one_name(tmp_path) == ["tests/one/test_a.py and tests/other/test_a.py have one name; rename one."]


def test_a_fault_in_reality_would_be_found() -> None:
    """The files that the rules look at are the ones that are installed."""
    assert prepkit.__file__ is not None
    assert Path(prepkit.__file__).parent.samefile(ROOT / "prepkit")
    assert len(module_files(ROOT / "prepkit")) > 25
