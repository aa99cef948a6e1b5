"""`prepkit info`: versions, extras, caches and settings, and what it must not tell."""

import json
import sys
from importlib import metadata
from pathlib import Path

import numpy
import pytest
import torch
from cli_samples import run

from prepkit.inspecting import installation

REQUIREMENTS = [
    "numpy>=1.26",
    "no-such-package>=2; python_version > '3'",
    "pytest; extra == 'train'",
    'prepkit[ray,train]; extra == "all"',
    'another-one[with]>=1,<3; python_version > "3" and extra == "ray"',
]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """An installation of which all is known."""
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(metadata, "metadata", lambda name: Provided())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("PREPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@localhost/")
    monkeypatch.setenv("PREPKIT_VERIFY", str(Path.home() / "x"))
    (tmp_path / "cache" / "images").mkdir(parents=True)
    (tmp_path / "cache" / "images" / "a").write_bytes(b"x" * 3000)
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "cache" / "images" / "a")


class Provided:
    def get_all(self, key):
        return {"Provides-Extra": ["train", "ray", "all"]}[key]


def test_the_document(installed):
    found = json.loads(run("info", "--json").stdout)
    assert found["packages"] == {"numpy": numpy.__version__, "no-such-package": None}
    assert found["extras"] == {"train": {"pytest": pytest.__version__}, "ray": {"another-one": None}}
    assert found["torch"]["version"] == torch.__version__
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {key: found["caches"]["prepkit"][key] for key in ("files", "bytes")} == {"files": 1, "bytes": 3000}
    assert found["caches"]["hub"]["files"] == 0
    assert found["variables"]["PREPKIT_VERIFY"] == "~/x"


def test_the_text_tells_what_is_missing_and_no_secret(installed):
    text = run("info").stdout
    assert "numpy " in text
    assert "no-such-package is missing" in text
    assert "another-one not installed; pip install 'prepkit[ray]'" in text
    assert "HF_TOKEN=(set)" in text
    assert "HF_ENDPOINT=https://(set)@localhost/" in text
    assert "secret" not in text
    assert "2.9 KiB" in text
    assert str(Path.home()) not in text


def test_a_torch_that_cannot_be_imported_is_told(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch      torch cannot be imported: " in run("info").stdout


def test_a_source_that_is_not_installed_is_told(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "metadata", missing)
    assert installation.extras() == []
    assert "without being installed" in run("info").stdout
