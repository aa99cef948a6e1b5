"""The examples of the gallery run as notebooks, which jupytext makes of them, and each draws its picture."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "gallery.md"
GALLERY = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.read_text().startswith("# %%"))
LINES = 60
ARGUMENTS = {"interpolate_networks": "2 3 1", "morph_chairs": "2 3 1 8"}  # what takes minutes is tried in small
PARTS = re.compile(r"^## .*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore")  # of the notebook's own libraries
@pytest.mark.parametrize("name", GALLERY)
def test_an_example_runs_as_a_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = EXAMPLES / f"{name}.py"
    assert len(own.read_text().splitlines()) <= LINES
    paths = os.pathsep.join([str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    for key, value in {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = jupytext.read(own)
    arguments = ARGUMENTS.get(name, "").split()
    notebook.cells.insert(0, new_code_cell(f"import sys\nsys.argv[1:] = {arguments}"))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python", "language": "python"}
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
    client.execute()
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_every_example_with_its_picture() -> None:
    # The learners are run by tests/prepkit/test_learner_examples.py.
    learners = sorted(path.stem for path in EXAMPLES.glob("learn_*.py"))
    shown = []
    for part in PARTS.findall(PAGE.read_text()):
        names = re.findall(r"^`examples/(\w+)\.py`: ", part, re.MULTILINE)
        assert re.findall(r"!\[[^]]+\]\((\S+)\)", part) == [f"gallery/{name}.png" for name in names], part
        shown += names
    assert sorted(shown) == sorted([*GALLERY, *learners])
    assert {path.stem for path in (PAGE.parent / "gallery").iterdir()} == set(shown)
