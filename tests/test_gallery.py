"""The examples of the gallery run as notebooks, which jupytext makes of them, and each draws its picture."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "gallery.md"
GALLERY = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.read_text().startswith("# %%"))
LINES = 60
ARGUMENTS = {"interpolate_networks": "2 3 1", "morph_chairs": "2 3 1 8"}  # what takes minutes is tried in small
Run = Callable[[NotebookNode, Path, list[str]], None]
PARTS = re.compile(r"^## .*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module", params=["one kernel for all", pytest.param("a kernel each", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A function that runs a notebook in a folder; one kernel runs all, since it takes seconds to import torch."""
    each = request.param == "a kernel each"
    paths = os.pathsep.join([str(ROOT), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    client = NotebookClient(new_notebook(), timeout=240)

    def run(notebook: NotebookNode, folder: Path, arguments: list[str]) -> None:
        # No name is left of another notebook.
        notebook.cells.insert(0, new_code_cell(f"%reset -f\n%cd -q {folder}\nimport sys\nsys.argv[1:] = {arguments}"))
        client.nb = notebook
        if client.km is None:
            client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
        client.execute(cleanup_kc=each)

    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**settings, "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython"))}.items():
            patch.setenv(key, value)
        yield run
        if client.km is not None:
            client.nb = new_notebook()
            client.execute()  # ends the kernel


@pytest.mark.xdist_group("notebooks")
@pytest.mark.filterwarnings("ignore")  # of the notebook's own libraries
@pytest.mark.parametrize("name", GALLERY)
def test_an_example_runs_as_a_notebook(name: str, run: Run, tmp_path: Path) -> None:
    own = EXAMPLES / f"{name}.py"
    assert len(own.read_text().splitlines()) <= LINES
    run(jupytext.read(own), tmp_path, ARGUMENTS.get(name, "").split())
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
