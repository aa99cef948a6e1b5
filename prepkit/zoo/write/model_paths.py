"""Paths of the models of a zoo: files and addresses out of what the user gives, and an id for each.

m0.pt, m1.pt                                  ids m0, m1
runs/a/model.pt, runs/b/model.pt              ids a, b: the parts of the paths that differ
runs/a/ck/e1.pt, runs/a/ck/e2.pt, runs/b/...  ids a/e1, a/e2, ...
hf://user/model                               id user/model
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prepkit.address import HUB_SCHEME, HubAddress
from prepkit.checkpoint.sharded import INDEX_SUFFIX, PART, model_file
from prepkit.errors import ZooError, counted, listed
from prepkit.support.files import is_zoo
from prepkit.zoo.write.links import walk_once, without_links

MODEL_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
# What trainers write beside the weights.
NO_MODEL = re.compile(r"(optimi[sz]er|scheduler|scaler|rng_state|training_args)[^.]*\.(pt|pth|bin)$", re.IGNORECASE)
SUFFIXES = (".prep.safetensors", ".safetensors.index.json")


def name_of(model: Path | HubAddress) -> str:
    """Return the name of a model's file, or its address."""
    return model.name if isinstance(model, Path) else str(model)


def stem(model: Path | HubAddress) -> str:
    """Return a model's name without suffix: `model` for model.pt and model.prep.safetensors, `user/model` for hf://user/model.

    An address keeps its whole path, since most files on the Hub are called model.safetensors.
    """
    name = name_of(model).removeprefix(HUB_SCHEME)
    if isinstance(model, HubAddress) and model.path is None:
        return name
    return without_suffix(name)


def without_suffix(name: str) -> str:
    """Return a path or a name without the suffix of a model's file."""
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), Path(name).suffix)
    return name.removesuffix(suffix) or name


def place_of(file: Path) -> str:
    """Return the absolute path of a file with `/` between its parts; symbolic links are not followed."""
    return slashed(os.path.abspath(file))


def slashed(path: str) -> str:
    """Return a path with `/` between its parts, also one that Windows wrote."""
    return path.replace("\\", "/")


def common_folder(places: Sequence[str]) -> str:
    """Return the deepest folder that holds all these files; an empty text if there is none."""
    folders = {place.rpartition("/")[0] for place in places}
    try:
        return slashed(os.path.commonpath([f"{folder}/" for folder in folders])).rstrip("/")
    except ValueError:  # no files, or files on several drives
        return ""


def ids_of(models: Iterable[Path | HubAddress]) -> list[str]:
    """Return an id for each model: its name without suffix, or the parts of its path that differ where names repeat.

    Only a file that is given twice has the same id as another one.
    """
    models = list(models)
    places = [place_of(model) for model in models if isinstance(model, Path)]
    names = [stem(model) for model in models if isinstance(model, Path)]
    if len(set(names)) < len(set(places)):
        names = _parts_that_differ(places)
    local = iter(names)
    return [next(local) if isinstance(model, Path) else stem(model) for model in models]


def expanded(models: Iterable[Path | HubAddress]) -> tuple[list[Path | HubAddress], tuple[str, ...]]:
    """Put the models in a folder in the folder's place, in the order of their paths.

    returns the models, and sentences on files in the folders that were left out
    raises ZooError for a folder without models, and for a zoo
    """
    files: list[Path | HubAddress] = []
    notes: list[str] = []
    for model in models:
        if isinstance(model, HubAddress) or not os.path.isdir(model):
            files.append(model)
            continue
        index = model_file(model)
        found, others = ([index], []) if index != model else _models_in(model)
        if not found:
            raise ZooError(f"'{model}' holds no model: no file in it ends in {', '.join(MODEL_SUFFIXES)}.")
        if others:
            left = counted(len(others), "file is", "files are")
            notes.append(f"{counted(len(found), 'model')} in '{model}'; {left} left out: {listed(others)}.")
        files.extend(found)
    local = [str(file) for file in files if isinstance(file, Path)]
    kept, note = without_links(local)
    gone = set(local).difference(kept)
    return [file for file in files if not (isinstance(file, Path) and str(file) in gone)], (*notes, *note)


def paths_in(content: bytes) -> list[str]:
    """Return the paths in a list, one a line or, as `find -print0` writes them, with a zero byte between them.

    A byte-order mark, which Windows writes, is no part of the first path; UTF-16 is known by its mark.
    raises ZooError for a list that is cut in the middle of a letter
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            text = content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise ZooError(f"the list of files begins as UTF-16 does, but is not: {error.reason}.") from None
        return [line for line in re.split("\0" if "\0" in text else r"[\r\n]+", text) if line.strip()]
    content = content.removeprefix(codecs.BOM_UTF8)
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def _models_in(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the files of models in a folder and all folders in it, and the paths of all other files."""
    found: list[Path] = []
    others: list[str] = []
    for place, folders, names in walk_once(folder):
        if is_zoo(Path(place)):
            raise ZooError(f"'{place}' is a zoo; `prepkit zoo merge` makes one zoo of several.")
        unfinished = ".writing" in folders  # a zoo that is being written, perhaps the very one
        folders[:] = [] if unfinished else sorted(name for name in folders if not name.startswith("."))
        has_index = any(name.endswith(INDEX_SUFFIX) for name in names)
        for name in [] if unfinished else sorted(names):
            is_index = name.endswith(INDEX_SUFFIX)
            is_part = has_index and PART.search(name) is not None
            is_model = name.endswith(MODEL_SUFFIXES) and not NO_MODEL.match(name) and not is_part
            if is_index or is_model:
                found.append(Path(place, name))
            elif not is_part:
                others.append(str(Path(place, name).relative_to(folder)))
    return found, others


def _parts_that_differ(places: Sequence[str]) -> list[str]:
    root = common_folder(places)
    paths = [place.removeprefix(f"{root}/") for place in places]
    stems = [without_suffix(path) for path in paths]
    if len(set(stems)) == len(set(paths)):
        paths = stems
    split = [path.split("/") for path in paths]
    if len({len(parts) for parts in split}) > 1:
        return paths
    differing = [position for position, parts in enumerate(zip(*split, strict=True)) if len(set(parts)) > 1]
    return ["/".join(parts[position] for position in differing) for parts in split]
