"""Folders of models as huggingface_hub downloads them: which are models, and what their paths say.

train/model_idx_0007/pytorch_lora_weights.safetensors                   one repository of many LoRA adapters
train/models--acme--vit-1/refs/main, snapshots/<commit>/model.safetensors      the cache: a repository a model
train/acme__vit-1/model.safetensors, or model.safetensors.index.json and its parts     plain folders
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prepkit.errors import ZooError, listed
from prepkit.prep.slot import natural_key
from prepkit.zoo.importers._folders import walked

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_lora_weights.safetensors")
NUMBERED = re.compile(r"model_idx_(\d{1,18})")
CACHE = "models--"  # begins the name of a repository's folder in the cache, in which `--` stands for `/`
SPLITS = {"val": "validation", "val_holdout": "validation_holdout"}  # what the zoo calls these; others keep their names
KNOWN_SPLITS = ("train", "val", "test", "val_holdout", "test_holdout", "validation")


@dataclass(frozen=True)
class FoundModel:
    """A model on the disk.

    file:    its weights, or the index of their parts
    id:      its id on the Hub, or the path of its folder
    columns: model_idx and hf_model_id, where its path says them
    split:   the folder of a split that it is in, as the zoo calls it
    """

    file: Path
    id: str
    columns: dict[str, int | str]
    split: str | None


@dataclass
class FoundModels:
    """Models in natural order of their paths, and folders of models in which there are no weights."""

    models: list[FoundModel] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def models_in(root: Path) -> FoundModels:
    """Find the models in a folder and below it.

    raises ZooError for two models of one id, or a folder that cannot be read
    """
    found = FoundModels()
    for folder in _folders(root):
        relative = folder.relative_to(root)
        inside = _snapshot(folder) if folder.name.startswith(CACHE) else folder
        file = None if inside is None else next((inside / name for name in WEIGHTS if (inside / name).is_file()), None)
        if file is not None:
            found.models.append(_model(file, folder, relative))
        elif folder.name.startswith(CACHE) or NUMBERED.fullmatch(folder.name):
            found.without.append(relative.as_posix())
    _check_unique(found.models)
    return found


def split_in(relative: Path) -> str | None:
    """Return the split that a path below the folder begins with, None if it begins with none."""
    first = relative.parts[0] if relative.parts else ""
    return SPLITS.get(first, first) if first in KNOWN_SPLITS else None


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders that may be models, in natural order; nothing in a model of the cache is one itself."""
    for path, folders, _ in walked(root):
        yield path
        names = () if path.name.startswith(CACHE) else folders
        folders[:] = sorted((name for name in names if not name.startswith(".")), key=natural_key)


def _snapshot(folder: Path) -> Path | None:
    """Return the folder of the commit that `main` was when it was fetched, or of the only one."""
    try:
        return folder / "snapshots" / (folder / "refs/main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        snapshots = [path for path in folder.glob("snapshots/*") if path.is_dir()]
        return snapshots[0] if len(snapshots) == 1 else None


def _model(file: Path, folder: Path, relative: Path) -> FoundModel:
    columns: dict[str, int | str] = {}
    id_ = relative.as_posix() if relative.parts else folder.resolve().name
    number = NUMBERED.fullmatch(folder.name)
    if number:
        columns["model_idx"] = int(number[1])
    elif folder.name.startswith(CACHE):
        id_ = columns["hf_model_id"] = folder.name.removeprefix(CACHE).replace("--", "/")
    elif folder.name.count("__") == 1:
        id_ = columns["hf_model_id"] = folder.name.replace("__", "/")
    return FoundModel(file, id_, columns, split_in(relative))


def _check_unique(models: list[FoundModel]) -> None:
    first: dict[str, FoundModel] = {}
    repeated = []
    for model in models:
        other = first.setdefault(model.id, model)
        if other is not model:
            repeated.append(f"{other.file} and {model.file}, both '{model.id}'")
    if repeated:
        raise ZooError(f"models are there twice: {listed(repeated, 3)}. Leave one of each out.")
