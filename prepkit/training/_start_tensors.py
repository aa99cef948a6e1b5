"""The tensors of starts that instances share: drawn from a seed, or read from a file; and their sums.

A start holds the tensors of the network that is trained, with BatchNorm, as `tensors_of` gives them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prepkit.casting import check_finite
from prepkit.checkpoint.load import load_checkpoint, sha256_of
from prepkit.errors import LayoutMismatch, PrepkitError, ZooError
from prepkit.families.loading import network_with_copies
from prepkit.families.registry import Architecture, architecture
from prepkit.packing import recognised
from prepkit.prep.file import is_prep_file, load_prep
from prepkit.training._initialisation import Initialisation, initialise
from prepkit.training._plan import start_seed
from prepkit.training._stack import tensors_of
from prepkit.training._start import FILE, OWN, Start
from prepkit.training._step import Tensors
from prepkit.training.spec import Spec

Starts = Mapping[str, Mapping[str, Tensors]]  # architecture -> name of the start -> its tensors
Facts = dict[str, dict[str, dict[str, Any]]]


def starts_of(spec: Spec) -> dict[str, dict[str, Tensors]]:
    """All starts of a spec that need no training, by architecture and name.

    raises ZooError with the place in the spec of a file that is missing, damaged or of another architecture
    """
    found: dict[str, dict[str, Tensors]] = {}
    for name, training in spec.training.items():
        start, known = training.start, architecture(name)
        if start.kind == "shared":
            seeds = {each: start_seed(spec, each, name) for each in start.names}
            found[name] = {each: drawn_start(known, seed, training.initialisation) for each, seed in seeds.items()}
        elif start.kind == "file":
            found[name] = {FILE: start_of_file(start, known)}
    return found


def drawn_start(known: Architecture, seed: int, how: Initialisation = "builder") -> Tensors:
    """The tensors of a network that is drawn from a seed; random generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = known.build()
        initialise(network, how)
        return tensors_of(network)


def start_of_file(start: Start, known: Architecture) -> Tensors:
    """The tensors of an architecture's network that a checkpoint or a PRep holds.

    raises ZooError with the start's place
    """
    place = f"{start.place}: '{start.file}'"
    try:
        given, _, is_folded = recognised(_read(Path(start.file)), known, place)
    except LayoutMismatch as error:
        raise ZooError(str(error)) from None  # it begins with the place
    except PrepkitError as error:
        raise ZooError(f"{start.place}: {error}") from None
    if is_folded:
        raise ZooError(
            f"{place} holds {known.name} with its BatchNorms folded, but the network is trained with them. Give a "
            "checkpoint, or a PRep that was packed with its BatchNorms (`prepkit pack --keep-bn`)."
        )
    try:
        check_finite(given, place, remedy="no training can begin there")
    except PrepkitError as error:
        raise ZooError(str(error)) from None
    return tensors_of(network_with_copies(given, known, folded=False).float())


def _read(file: Path) -> Mapping[str, Tensor]:
    if not is_prep_file(file):
        return load_checkpoint(file)
    prep = load_prep(file)
    return {**prep.tensors(), **prep.buffers}


# Facts --------------------------------------------------------------------------------------------------------


def facts_of(spec: Spec, starts: Starts) -> Facts:
    """What provenance says of starts, by architecture and name: the sha256 of their values, and where they are from.

    The facts of starts that are still to be fitted have no sha256.
    """
    facts: Facts = {}
    for name, training in spec.training.items():
        start = training.start
        if start.kind == OWN:
            continue
        about: dict[str, Any] = {}
        if start.kind == "file":
            about = {"file": Path(start.file).name, "file_sha256": sha256_of(start.file)}
        elif start.kind == "fitted":
            about = {"steps": start.steps, "items": spec.instances[name]["train"]}
        own = starts.get(name, {})
        facts[name] = {
            each: {**about, **({"sha256": sha256_of_tensors(own[each])} if each in own else {})} for each in start.names
        }
    return facts


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors' names, dtypes, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
