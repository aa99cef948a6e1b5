"""Checkpoints of the Hub: `hf://user/model`, or one file of it, becomes local files that prepkit reads.

    found = fetch_checkpoint("hf://user/model")
    found.file, str(found.address)        # .../model.safetensors, hf://user/model@<commit>/model.safetensors

The files lie in the Hub's own cache. Each is compared with the sum that the Hub keeps of it: its client compares sizes
only. A sharded model is fetched whole, by its index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from huggingface_hub.hf_api import RepoFile

from prepkit.address import HubAddress, parse
from prepkit.checkpoint.formats import is_index, shards_of
from prepkit.errors import CheckpointError, HubError, PrepkitError, listed, nearest
from prepkit.hub.client import api, explained, pinned
from prepkit.hub.version import fetched, files_of

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
INDEX = ".safetensors.index.json"
PREP = ".prep.safetensors"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
# What trainers keep beside the weights; none of it is a network.
BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[^/]*", re.IGNORECASE)
USUAL = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "open_clip_model")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint that was fetched.

    address: with the commit and the path of the file: it names these weights for ever
    file:    on the disk; for a sharded model its index, beside its shards
    """

    address: HubAddress
    file: Path


def fetch_checkpoint(address: HubAddress | str, *, token: str | None = None) -> HubCheckpoint:
    """Fetch a checkpoint of a model repository, or take it from the Hub's cache.

    address: hf://user/model, hf://user/model@revision or either with /path; without a path the repository must hold
             one network's weights, safetensors before others
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
            raise HubError(_no_file(asked, path, files))
        address = replace(address, path=path)
        (file,) = fetched(client, address, "model", [files[path]])
        if is_index(file):
            fetched(client, address, "model", _shards(address, file, files))
    return HubCheckpoint(address, file)


@contextmanager
def telling(found: HubCheckpoint) -> Iterator[None]:
    """Errors of ours name the address, not the file in the cache."""
    try:
        yield
    except PrepkitError as error:
        error.args = (str(error).replace(str(found.file), str(found.address)),)
        raise


# Which file ---------------------------------------------------------------------------------------------------


def _only_network(address: HubAddress, files: Iterable[str]) -> str:
    """The one file of weights in a repository, an index standing for its shards.

    raises CheckpointError with what there is
    """
    files = sorted(files)
    weights = [path for path in files if _holds_weights(path)]
    top = [path for path in weights if "/" not in path]
    for suffix in (INDEX, *SUFFIXES):
        fitting = [path for path in top if path.endswith(suffix)]
        usual = [path for name in USUAL for path in fitting if path == name + suffix]
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
    """Whether a file's name says that it holds a whole network's weights, or indexes them."""
    name = PurePosixPath(path).name
    if BESIDE.fullmatch(name):
        return False
    return name.endswith(INDEX) or (name.endswith(SUFFIXES) and not SHARD.search(name) and not name.endswith(PREP))


def _no_file(address: HubAddress, path: str, known: Iterable[str]) -> str:
    near = nearest(path, known)
    return f"{address}: '{address.repo_id}' has no file '{path}'; beside it are: {listed(known) or 'none'}.{near}"


def _shards(address: HubAddress, index: Path, files: Mapping[str, RepoFile]) -> list[RepoFile]:
    """The files that an index names; they lie beside it.

    raises CheckpointError if one is not there
    """
    folder = PurePosixPath(address.path or "").parent
    paths = [str(folder / name) for name in shards_of(index)]
    missing = [path for path in paths if path not in files]
    if missing:
        raise CheckpointError(f"{address} names shards that '{address.repo_id}' does not have: {listed(missing)}.")
    return [files[path] for path in paths]
