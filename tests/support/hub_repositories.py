"""Repositories of a small Hub, kept in memory with all their versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".parquet", ".h5", ".png", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Held:
    """A file of a version: its content, and whether it came by LFS."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Its sum: sha256 of a file in LFS, else git's sha1."""
        return sha256(self.content) if self.lfs else git_sha1(self.content)


@dataclass
class Repo:
    """A repository: its versions by commit, the newest last."""

    private: bool = False
    versions: dict[str, dict[str, Held]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.versions)[-1]

    def commit(self, files: dict[str, Held]) -> str:
        """Add a version, whose commit depends on its files and on the number of versions before."""
        told = repr((len(self.versions), sorted((path, held.oid) for path, held in files.items())))
        name = hashlib.sha1(told.encode()).hexdigest()
        self.versions[name] = files
        return name


def entry(path: str, held: Held) -> dict[str, object]:
    """A file as a tree lists it."""
    about: dict[str, object] = {"type": "file", "path": path, "size": len(held.content)}
    if not held.lfs:
        return {**about, "oid": held.oid}
    lfs = {"oid": held.oid, "size": len(held.content), "pointerSize": 130}
    return {**about, "oid": git_sha1(held.oid.encode()), "lfs": lfs}


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
