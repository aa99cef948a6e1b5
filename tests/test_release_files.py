"""The files around the code name versions, extras and tasks that there are."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import prepkit

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps_of(workflow):
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == prepkit.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["authors"] == PROJECT["project"]["authors"]


def test_the_hooks_run_the_version_of_ruff_that_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = (hook["rev"] for hook in hooks if hook["repo"].endswith("ruff-pre-commit"))
    assert f"ruff=={revision.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_runs_tasks_that_the_makefile_has(workflow):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for step in steps_of(workflow) for line in step.get("run", "").splitlines()]
    asked = {target for line in lines if line.startswith("make ") for target in line.split()[1:]}
    assert asked
    assert asked <= targets


def test_python_versions_are_tested_that_are_supported():
    (ci,) = (file for file in WORKFLOWS if file.stem == "ci")
    tested = yaml.safe_load(ci.read_text())["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tested == named
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"


def test_extras_that_are_named_are_there():
    extras = PROJECT["project"]["optional-dependencies"]
    sources = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("prepkit/**/*.py"),
        *ROOT.glob("netspace/**/*.py"),
    ]
    found = {
        (name, file)
        for file in sources
        for names in re.findall(r"pip install (?:[\w-]+ )*['\"](?:prepkit|\.)\[([\w,]+)\]", file.read_text())
        for name in names.split(",")
    }
    assert len(found) > 5
    assert {(name, file) for name, file in found if name not in extras} == set()


def test_the_extra_all_has_all_others():
    extras = PROJECT["project"]["optional-dependencies"]
    (line,) = extras["all"]
    parts = re.fullmatch(r"prepkit\[([\w,]+)\]", line)[1].split(",")
    assert {need for part in parts for need in extras[part]} == {
        need for name, needs in extras.items() if name != "all" for need in needs
    }
