"""Checkpoints on the Hub: `hf://user/model`, or one file of it, becomes local files that prepkit reads.

    checkpoint = fetch_checkpoint("hf://user/model")
    checkpoint.file, str(checkpoint.address)   # .../model.safetensors, hf://user/model@<commit>/model.safetensors

The files lie in the Hub's own cache, and each is compared with the sum that the Hub lists. A sharded model is fetched
by its index, with all of its shards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from huggingface_hub.hf_api import RepoFile

from prepkit.address import HubAddress, parse
from prepkit.checkpoint.sharded import is_index, shards_of
from prepkit.errors import CheckpointError, HubError, PrepkitError, listed, nearest
from prepkit.hub._failures import explained
from prepkit.hub.client import api, pinned
from prepkit.hub.snapshot import fetch_files, files_of

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
INDEXES = (".safetensors.index.json", ".bin.index.json")
ORDER = (INDEXES[0], SUFFIXES[0], INDEXES[1], *SUFFIXES[1:])  # an earlier kind is preferred
PREP = ".prep.safetensors"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# Trainers keep these files beside the weights; none of them is a network.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[^/]*", re.IGNORECASE)
USUAL_NAMES = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "open_clip_model")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint that was fetched.

    address: address with the commit and the path of the file, which names these weights for ever
    file:    file on the disk; for a sharded model its index, beside its shards
    """

    address: HubAddress
    file: Path


def fetch_checkpoint(address: HubAddress | str, *, token: str | None = None) -> HubCheckpoint:
    """Fetch a checkpoint of a model repository, or take it from the Hub's cache.

    address: hf://user/model, hf://user/model@revision or either with /path; without a path the repository must hold
             the weights of one network, of which safetensors are preferred
    raises HubError if there is no such repository, revision or file, it comes damaged, or the Hub cannot be reached
    raises CheckpointError if it is not clear which file is meant, or an index is not sound
    """
    asked = parse(address) if isinstance(address, str) else address
    client = api(token)
    with explained(asked.repo_id, "model", asked.revision):
        address = pinned(client, asked, "model")
        files = files_of(client, address, "model")
        path = asked.path or _only_network(asked, files)
        if path not in files:
            raise HubError(_no_such_file(asked, path, files), repo=asked.repo_id)
        address = replace(address, path=path)
        (file,) = fetch_files(client, address, "model", [files[path]])
        if is_index(file):
            fetch_files(client, address, "model", _shards(address, file, files))
    return HubCheckpoint(address, file)


@contextmanager
def naming_address(checkpoint: HubCheckpoint) -> Iterator[None]:
    """Let prepkit's errors name the address in place of the file in the cache."""
    try:
        yield
    except PrepkitError as error:
        error.args = (str(error).replace(str(checkpoint.file), str(checkpoint.address)),)
        raise


# Which file ---------------------------------------------------------------------------------------------------


def _only_network(address: HubAddress, files: Iterable[str]) -> str:
    """Return the one file of weights in a repository, or the index that stands for its shards.

    raises CheckpointError with a list of the files
    """
    files = sorted(files)
    weights = [path for path in files if _holds_weights(path)]
    at_the_top = [path for path in weights if "/" not in path]
    for suffix in ORDER:
        fitting = [path for path in at_the_top if path.endswith(suffix)]
        usual = [path for name in USUAL_NAMES for path in fitting if path == name + suffix]
        if usual or len(fitting) == 1:
            return (usual or fitting)[0]
        if fitting:
            break
    if weights:
        choices = listed([f"hf://{address.repo_id}/{path}" for path in weights])
        raise CheckpointError(f"{address} has no one file of weights at its top; choose one: {choices}.")
    raise CheckpointError(
        f"{address} has no weights that prepkit reads ({', '.join(SUFFIXES)}): it has {listed(files) or 'no files'}."
    )


def _holds_weights(path: str) -> bool:
    """Return whether a file's name says that it holds the weights of a whole network, or indexes them."""
    name = PurePosixPath(path).name
    if NO_WEIGHTS.fullmatch(name):
        return False
    return name.endswith(INDEXES) or (name.endswith(SUFFIXES) and not SHARD.search(name) and not name.endswith(PREP))


def _no_such_file(address: HubAddress, path: str, known: Iterable[str]) -> str:
    near = nearest(path, known)
    return f"{address}: '{address.repo_id}' has no file '{path}'; it has {listed(known) or 'no files'}.{near}"


def _shards(address: HubAddress, index: Path, files: Mapping[str, RepoFile]) -> list[RepoFile]:
    """Return the files that an index names; they lie beside it.

    raises CheckpointError if the repository does not have one of them
    """
    folder = PurePosixPath(address.path or "").parent
    paths = [str(folder / name) for name in shards_of(index)]
    missing = [path for path in paths if path not in files]
    if missing:
        raise CheckpointError(f"{address} names shards that '{address.repo_id}' does not have: {listed(missing)}.")
    return [files[path] for path in paths]
