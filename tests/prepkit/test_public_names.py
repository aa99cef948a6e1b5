"""The public surface: what is there is a contract, and it costs nothing until it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from forked_python import ForkedPython

import prepkit
from prepkit import errors

# Adding a name is a decision; removing one breaks someone.
NAMES = [
    "Architecture",
    "Checkpoint",
    "CheckpointError",
    "DataMissing",
    "DeviceError",
    "Fusion",
    "FusionError",
    "HubError",
    "InvalidShape",
    "Layout",
    "LayoutMismatch",
    "OutputError",
    "PRep",
    "PRepFileError",
    "PRepShape",
    "Packed",
    "PrepkitError",
    "Pulled",
    "Registry",
    "RegistryError",
    "Slot",
    "Symmetries",
    "SymmetryError",
    "VerificationError",
    "WhereError",
    "Zoo",
    "ZooError",
    "ZooLocked",
    "ZooWriter",
    "__version__",
    "align",
    "architecture",
    "architectures",
    "audit",
    "bench",
    "built_in_registry",
    "canonical",
    "convert",
    "create_zoo",
    "cut",
    "detect",
    "drop",
    "fuse_batch_norm",
    "import_zoo",
    "load_checkpoint",
    "load_prep",
    "load_spec",
    "load_task",
    "merge",
    "open_zoo",
    "orbit_distance",
    "pack_checkpoint",
    "pull",
    "push",
    "run_instances",
    "save_prep",
    "save_state_dict",
    "split",
    "symmetries",
    "train_zoo",
    "verify",
    "views",
]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_this_list() -> None:
    assert sorted(prepkit.__all__) == NAMES
    # There are 50, import_zoo, views, symmetries with its type and its error, three that compare networks by them,
    # and bench.
    assert len(set(prepkit.__all__)) == len(prepkit.__all__) <= 62


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_under_its_name_with_a_docstring(name: str) -> None:
    value = getattr(prepkit, name)
    if name == "__version__":
        assert value == version("prepkit")
        return
    if isinstance(value, ModuleType):
        assert value.__name__ == f"prepkit.{name}"
    else:
        assert value.__name__ == name
        assert value.__module__.startswith("prepkit.")
    first_line = value.__doc__.strip().splitlines()[0]
    assert first_line.endswith((".", ":"))
    assert not first_line.startswith(f"{name}(")  # what dataclasses write by themselves


def test_dir_lists_all_names_before_any_is_used() -> None:
    assert set(NAMES) <= set(dir(prepkit))
    assert set(NAMES) <= set(python("import prepkit; print(*dir(prepkit))").split())


def test_names_for_type_checkers_are_the_names_at_run_time() -> None:
    """Both come from the stub; each line of it has the form that re-exports."""
    tree = ast.parse(Path(prepkit.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {}
    for node in tree.body:
        assert isinstance(node, ast.ImportFrom)
        (alias,) = node.names
        assert alias.name == alias.asname
        homes[alias.name] = node.module
    assert sorted(homes) == NAMES
    for name, module in homes.items():
        if module == "prepkit":
            assert import_module(f"prepkit.{name}") is getattr(prepkit, name)
        else:
            assert getattr(import_module(str(module)), name) is getattr(prepkit, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prepkit' has no attribute 'pack'"):
        prepkit.pack  # noqa: B018
    assert not hasattr(prepkit, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'layuot'"):
        from prepkit import layuot  # noqa: F401


def test_errors_are_public_but_for_those_with_a_public_base_and_a_single_cause() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PrepkitError)
    }
    assert found - set(NAMES) == {"UnsafeCheckpoint"}


def test_a_name_is_looked_up_once() -> None:
    assert prepkit.Layout is prepkit.Layout
    assert "Layout" in vars(prepkit)


def test_star_import_gives_the_names(forked_python: ForkedPython) -> None:
    done = forked_python.run("-c", "from prepkit import *; print(*sorted(name for name in dir() if name[0] != '_'))")
    assert done.stdout.split() == [name for name in NAMES if name != "__version__"]


def test_importing_prepkit_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "safetensors", "click", "pyarrow", "h5py", "huggingface_hub", "matplotlib"]
    code = "import sys, prepkit; prepkit.PrepkitError; prepkit.PRepShape; prepkit.architectures(); prepkit.PRep; "
    assert python(code + f"print(*(name for name in {heavy} if name in sys.modules))").split() == []
