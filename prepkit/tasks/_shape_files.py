"""Shapes in a folder of the user's: DeepSDF's .npz files of points and distances, and triangle meshes.

files = find_files(folder, SDF_SUFFIXES, "sdf_files")      # in natural order: a shape's item is its position here
samples = read_samples(files[3])                           # DeepSDF's `pos` and `neg`
solid = read_mesh(folder / "chair.obj")                    # a Solid, see prepkit.tasks._sdf
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prepkit.errors import ZooError, listed
from prepkit.prep.layout import natural_key
from prepkit.support.files import sha256_of_file
from prepkit.tasks._mesh import Mesh
from prepkit.tasks._sdf import normalised
from prepkit.tasks.task import DataMissing

if TYPE_CHECKING:
    from numpy.typing import NDArray

SDF_SUFFIXES = (".npz",)
MESH_SUFFIXES = (".obj", ".ply", ".stl", ".off")


@dataclass(frozen=True)
class Samples:
    """Points and distances of one .npz file, `[n, 4]` float32: x, y, z, signed distance, in the file's own units.

    pos, neg: points outside and inside
    dropped:  number of rows that were left out because a value in them is not finite
    """

    pos: NDArray[np.float32]
    neg: NDArray[np.float32]
    dropped: int


def find_files(folder: Path | None, suffixes: Sequence[str], dataset: str) -> tuple[Path, tuple[Path, ...]]:
    """The folder, and all files with these suffixes in it, however deep; `2.npz` comes before `10.npz`.

    raises DataMissing if no folder is given, or it is not there
    raises ZooError if it holds none
    """
    if folder is None or not folder.is_dir():
        found = "none was named" if folder is None else f"{folder} is not there"
        kinds = listed(suffixes)
        raise DataMissing(f"the shapes of this task ({dataset}) are {kinds} files in a folder; {found}: data=FOLDER")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    if not files:
        raise ZooError(f"{folder}: holds no {listed(suffixes)} file.")
    return folder, tuple(sorted(files, key=lambda path: natural_key(path.relative_to(folder).as_posix())))


def files_sha256(folder: Path, files: Sequence[Path]) -> str:
    """The sha256 of the names and contents of files, in hex."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{sha256_of_file(path)} {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def read_samples(path: Path) -> Samples:
    """DeepSDF's `pos` and `neg` of a .npz file, without rows that hold NaN.

    raises ZooError naming file and key for a file that is damaged or foreign, or an array of another shape
    """
    arrays = {}
    try:
        # The file is opened here, as numpy forgets to close a damaged one that it opened itself.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as archive:
            for key in ("pos", "neg"):
                if key not in archive.files:
                    raise ZooError(f"{path}, {key}: missing; the file holds {listed(archive.files) or 'nothing'}.")
                arrays[key] = archive[key]
    except ZooError:
        raise
    except Exception as error:  # numpy and zipfile raise errors of many kinds for a damaged file
        raise ZooError(f"{path}: is no .npz file of arrays ({type(error).__name__}: {error}).") from None
    sound = {key: _finite_rows(path, key, array) for key, array in arrays.items()}
    dropped = sum(len(arrays[key]) - len(sound[key]) for key in sound)
    return Samples(sound["pos"], sound["neg"], dropped)


def read_mesh(path: Path) -> Mesh:
    """A mesh file as a solid, normalised as DeepSDF does; see prepkit.tasks._sdf.normalised.

    raises DataMissing without trimesh
    raises ZooError for a file that cannot be read, or a mesh that is not watertight and so has no inside
    """
    try:
        import trimesh
    except ImportError:
        raise DataMissing("meshes are read by trimesh, which is missing; pip install 'prepkit[train]'.") from None
    try:
        loaded = trimesh.load_mesh(path)
        loaded.merge_vertices(merge_tex=True, merge_norm=True)  # seams of textures are no edges of the surface
        loaded.update_faces(loaded.nondegenerate_faces())
        watertight = bool(len(loaded.faces)) and loaded.is_watertight and loaded.is_winding_consistent
    except Exception as error:  # trimesh raises errors of many kinds for a damaged file
        raise ZooError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error}).") from None
    if not watertight:
        open_edges = "it has holes, or sides that do not face the same way"
        raise ZooError(f"{path}: is not watertight, so it has no inside: {open_edges}. Repair it first.")
    vertices, faces = np.asarray(loaded.vertices, np.float64), np.asarray(loaded.faces, np.int64)
    return Mesh(normalised(vertices), faces if loaded.volume > 0 else faces[:, ::-1])


def _finite_rows(path: Path, key: str, array: NDArray[np.generic]) -> NDArray[np.float32]:
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind != "f":
        found = f"{list(array.shape)} {array.dtype}"
        raise ZooError(f"{path}, {key}: expected floating point [n, 4] (x, y, z, signed distance), found {found}.")
    rows: NDArray[np.float32] = array.astype(np.float32)
    return rows[np.isfinite(rows).all(1)]
