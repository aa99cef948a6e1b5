"""Symbolic links among models: a file that links lead to under several names is one model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from prepkit.errors import ZooError, counted, listed


def without_links(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leave out files that are others under the name of a link, of a file or of a folder.

    returns the files, of which that without a link is kept, else the first; and a sentence on the others
    """
    seen: set[tuple[int, int] | None] = set()
    twice = set()
    for place in map(_place, files):
        if place in seen:
            twice.add(place)
        seen.add(place)
    twice.discard(None)
    if not twice:
        return list(files), []
    named: dict[tuple[int, int] | None, list[str]] = {}
    for file in files:
        place = _place(file)
        if place in twice:
            named.setdefault(place, []).append(file)
    left_out: dict[str, str] = {}
    for same in named.values():
        left_out |= _others(same)
    if not left_out:
        return list(files), []
    pairs = listed(f"{file} ({kept})" for file, kept in left_out.items())
    noun = counted(len(left_out), "file is another", "files are others")
    note = f"{noun} by a link, and left out: {pairs}."
    return [file for file in files if file not in left_out], [note]


def _place(file: str) -> tuple[int, int] | None:
    """Return what tells a file from others; that of hard links, which are files of their own, is the same."""
    try:
        status = os.stat(file)
    except OSError:  # it is told when the file is read
        return None
    return status.st_dev, status.st_ino


def _others(same: Sequence[str]) -> dict[str, str]:
    """Return the names of a file but the one with the fewest links, each with that."""
    by_place: dict[str, list[str]] = {}
    for file in same:
        by_place.setdefault(os.path.realpath(file), []).append(file)
    kept = [min(names, key=_num_links) for names in by_place.values()]  # of equal ones the first
    return {name: best for best, names in zip(kept, by_place.values(), strict=True) for name in names if name != best}


def _num_links(file: str) -> int:
    """Return how many of a path's parts are links."""
    parts = os.path.abspath(file).split(os.sep)
    return sum(os.path.islink(os.sep.join(parts[:count])) for count in range(1, len(parts) + 1))


def walk_once(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as os.walk does, also into folders that are links, but into no folder twice: links may make loops.

    Folders that are reached without a link come first.
    raises ZooError for a folder that cannot be read, which os.walk leaves out without a word
    """
    seen: set[str] = set()
    waiting = [os.fspath(folder)]
    while waiting:
        links: list[str] = []
        for start in waiting:
            for place, folders, names in os.walk(start, onerror=_refuse):
                real = os.path.realpath(place)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                yield place, folders, names
                links += [path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path)]
        waiting = [link for link in links if os.path.realpath(link) not in seen]


def _refuse(error: OSError) -> None:
    raise ZooError(f"'{error.filename}' cannot be read: {error.strerror}. Make it readable, or move it elsewhere.")
