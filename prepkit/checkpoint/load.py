"""Reading checkpoints: any file of weights becomes names and CPU tensors, without running what is in it.

    checkpoint = load_checkpoint("model.pt")       # or .pth, .bin, .ckpt, .safetensors, *.index.json, a sharded folder
    checkpoint["fc.weight"].shape                  # a checkpoint is a read-only mapping of names to tensors
    checkpoint.key, checkpoint.prefix              # such as ('state_dict', 'module.'), unwrapped and stripped

`said` holds what the file says beside its tensors; the state of the optimizer and the like stay in the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.checkpoint._beside import beside, is_array, is_plain
from prepkit.checkpoint._inert import Inert
from prepkit.checkpoint._torch_files import HOLDS_DTENSORS, where_trusted
from prepkit.checkpoint.formats import Content, Format, read_content
from prepkit.checkpoint.opening import opened, quoted
from prepkit.checkpoint.sharded import check_not_a_part, is_index, model_file, shards_of
from prepkit.errors import CheckpointError, UnsafeCheckpoint, counted, listed, nearest
from prepkit.tensors import QUANTISED, module_versions

if TYPE_CHECKING:
    from torch import Tensor

# Training scripts keep state dicts under these keys. If one file has several, only its owner knows which one is meant.
ROLES = ("model", "net", "network", "module", "backbone", "encoder", "decoder", "classifier", "student", "teacher")
RIVALS = ("generator", "discriminator", "G", "D", "netG", "netD", "g", "d", "actor", "critic", "policy")
AVERAGES = ("ema", "swa", "state_dict_ema", "ema_state_dict", "swa_state_dict", "ema_model", "swa_model", "params_ema")
SUFFIXES = ("", "_state_dict", "_state", "_weights", "_params", "_ema")
WRAPPERS = frozenset(
    ("state_dict", "weights", "params", "parameters", *AVERAGES)
    + tuple(name + suffix for name in ROLES + RIVALS for suffix in SUFFIXES)
)
# DataParallel and DDP, torch.compile, FSDP and activation checkpointing put these before all names of a network.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# A LightningModule usually holds its network in one of these; elsewhere they may be the network's own names.
LIGHTNING_PREFIXES = ("model.", "net.", "network.")
AVERAGE_COUNT = "n_averaged"  # the counter that torch.optim.swa_utils.AveragedModel keeps beside `module.`


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, "Tensor"]):
    """A mapping from names to CPU tensors as one file holds them; tied tensors share memory, mapped files stay mapped.

    path:    the file
    format:  "torch zip", "torch legacy", "safetensors", "safetensors index" or "torch index"
    key:     dotted key of the state dict in the saved object; None if the state dict itself was saved
    prefix:  text that was stripped from the start of every name, often ""
    dropped: full names that were left out: the counter of an AveragedModel, or those without the prefix asked for
    versions: version of each module as its state dict notes it, which some modules ask for; empty where it does not
    said:    what the file says beside the state dict, by dotted name: {"epoch": 3, "config.lr": 0.1}; of a safetensors
             file the texts in its header
    others:  dotted names of all else in the file, such as the state of the optimizer
    """

    path: Path
    format: Format
    key: str | None
    prefix: str
    dropped: tuple[str, ...]
    _tensors: dict[str, Tensor] = field(repr=False)
    versions: Mapping[str, int] = field(default_factory=dict, repr=False)
    said: Mapping[str, Any] = field(default_factory=dict, repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def load_checkpoint(path: str | os.PathLike[str], key: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Read the state dict in a file that torch.save or safetensors wrote; its content tells the format, not its name.

    path: the file; for a sharded model its index, or the folder that holds the index
    key:  the key of the state dict, needed only if there are several; dotted for nested ones ("ema.model")
    prefix: take only names that begin with this, such as "model.", without it, and leave the others out; "" takes all
            as they are. If it is missing, the prefixes of usual wrappers are taken off.
    raises UnsafeCheckpoint if reading would run code or take more memory than the file holds
    raises CheckpointError for every other file that is not one readable state dict

    The tensors may be mapped from the file, so do not write into the file while they are in use.

    >>> torch.save({"epoch": 3, "model": torch.nn.Linear(2, 1).state_dict()}, "run.pt")
    >>> checkpoint = prepkit.load_checkpoint("run.pt")
    >>> checkpoint.key, list(checkpoint)
    ('model', ['weight', 'bias'])
    """
    path = model_file(Path(path))
    return checkpoint_of(path, read_content(path), key, prefix)


def checkpoint_of(path: Path, content: Content, key: str | None, prefix: str | None) -> Checkpoint:
    """Return the checkpoint in what was read of a file.

    raises as `load_checkpoint` does
    """
    check_not_a_part(path)
    found_key, state = find_state_dict(path, content.value, key)
    check_entries(path, found_key, state)
    versions, state = module_versions(state), only_tensors(state)
    check_no_shard(path, state)
    if content.data_bytes is not None:
        check_memory(path, state, content.data_bytes)
    if prefix is None:
        prefix, dropped = wrapping(state, from_lightning=is_lightning(content.value))
    else:
        prefix, dropped = chosen(path, state, prefix)
    tensors = {name.removeprefix(prefix): tensor.detach() for name, tensor in state.items() if name not in dropped}
    versions = without_prefix(versions, prefix)
    said, others = beside(content.value, found_key)
    said |= {name: text for name, text in content.metadata.items() if name != "format" and name not in state}
    return Checkpoint(path, content.format, found_key or None, prefix, dropped, tensors, versions, said, others)


def check_no_shard(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a shard of a zoo, which holds many networks in one array `prep` `[rows, H, W]`."""
    if set(state) == {"prep"} and state["prep"].ndim == 3:
        raise CheckpointError(
            f"'{path}' is a shard of a zoo with {counted(len(state['prep']), 'network')}. Take one out of its zoo with "
            "`prepkit zoo export DIR ID -o MODEL.pt`."
        )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes, in hex.

    For an index of shards, the bytes are its own and then the 32-byte sha256 of every shard, by ascending shard name.
    raises CheckpointError if the file, or a shard, is missing or cannot be read
    """
    path = model_file(Path(path))
    if not is_index(path):
        return digest_of(path).hex()
    shards = [path.parent / shard for shard in shards_of(path)]
    with opened(path) as file:
        return hashlib.sha256(b"".join((file.read(), *map(digest_of, shards)))).hexdigest()


def digest_of(path: Path) -> bytes:
    """Return the sha256 of one file, which is read in pieces."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


# Finding the state dict


def find_state_dict(path: Path, value: object, key: str | None) -> tuple[str, Mapping[str, Tensor]]:
    """Return the dotted key of the one state dict in a saved object, "" for the object itself, and the state dict.

    raises CheckpointError if there is no state dict, if there are several, or if the key leads nowhere
    """
    start = value if key is None else descend(path, value, key)
    states = dict(state_dicts(start, key or "", depth=0))
    if len(states) > 1:
        raise CheckpointError(f"{path} holds {len(states)} state dicts: {sizes(states)}; choose one with key='NAME'.")
    if not states:
        raise no_state_dict(path, start, key or "")
    return next(iter(states.items()))


def state_dicts(value: object, key: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state dict under a usual key, at most two levels down, with its dotted key.

    A mapping with tensors is a state dict itself unless usual keys inside it lead to state dicts: then it is a wrapper
    that also keeps, say, a loss. In a list or tuple, such as `(state_dict, accuracy)`, the position is the key.
    """
    inside: list[tuple[str, Mapping[str, Tensor]]] = []
    for name, child in children(value).items() if depth < 2 and not all_tensors(value) else ():
        known = name in WRAPPERS or (depth == 0 and not isinstance(value, Mapping))
        below = state_dicts(child, joined(key, name), depth + 1)
        inside += [(where, state) for where, state in below if known or where != joined(key, name)]
    if not inside and isinstance(value, Mapping) and num_tensors(value):
        inside = [(key, value)]
    yield from inside


def no_state_dict(path: Path, value: object, key: str) -> CheckpointError:
    """Return the error for an object without a state dict under a usual key; it names those under unusual keys."""
    if isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys():
        return CheckpointError(
            f"{path} holds the state of an optimizer, not a network; pass the file of the weights, which training "
            "scripts often save beside it."
        )
    others = {
        joined(key, *names): child
        for names, child in descendants(value)
        if isinstance(child, Mapping) and num_tensors(child)
    }
    if others:
        return CheckpointError(
            f"{path} holds no state dict under a usual key, but {sizes(others)}; choose one with key='NAME'."
        )
    where = f"{path}, key '{key}'," if key else f"{path}"
    trusting = f" {where_trusted(path)}" if isinstance(value, Inert) else ""
    return CheckpointError(
        f"{where} holds no named tensors but {described(value)}; save torch.save(model.state_dict(), path).{trusting}"
    )


def descend(path: Path, value: object, key: str) -> object:
    """Return what a dotted key leads to; names may contain dots themselves."""
    names = children(value)
    if key in names:
        return names[key]
    for name in names:
        if key.startswith(f"{name}."):
            return descend(path, names[name], key.removeprefix(f"{name}."))
    if all_tensors(value):
        raise CheckpointError(f"{path} has no key '{key}': it holds {described(value)}; leave the key out.")
    raise CheckpointError(f"{path} has no key '{key}' among {quoted(names)}.{nearest(key, names)}")


def children(value: object) -> dict[str, object]:
    """Return the entries of a mapping, list or tuple by name or position; any other object has none."""
    if isinstance(value, Mapping):
        return {str(name): child for name, child in value.items()}
    if isinstance(value, list | tuple):
        return {str(position): child for position, child in enumerate(value)}
    return {}


def descendants(value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield children and their children, with their names."""
    for name, child in children(value).items():
        yield (name,), child
        yield from (((name, inner), grandchild) for inner, grandchild in children(child).items())


def joined(*names: str) -> str:
    """Return a dotted key."""
    return ".".join(name for name in names if name)


def num_tensors(value: object) -> int:
    """Return how many of the direct entries are tensors."""
    from torch import Tensor

    return sum(isinstance(child, Tensor) for child in children(value).values())


def all_tensors(value: object) -> bool:
    """Whether an object is plainly a state dict: names and tensors, nothing else."""
    return isinstance(value, Mapping) and 0 < num_tensors(value) == len(value)


def sizes(states: Mapping[str, object]) -> str:
    """Return `'model' (12 tensors), 'ema' (12 tensors)`."""
    return listed([f"{key!r} ({counted(num_tensors(state), 'tensor')})" for key, state in states.items()])


def described(value: object) -> str:
    """Describe an object in a few words."""
    from torch import Tensor

    if isinstance(value, Tensor):
        return f"a single tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {quoted(value)}" if value else f"an empty {type(value).__name__}"
    kinds = listed(sorted({type(child).__name__ for child in children(value).values()}))
    return f"a {type(value).__name__} of {kinds}" if kinds else f"an object of type {type(value).__name__}"


# Checking the state dict


def check_entries(path: Path, key: str, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless every name is a string and every value a tensor, or a plain one beside tensors."""
    from torch import Tensor

    where = f"{path}, key '{key}'" if key else f"{path}"
    unnamed = [name for name in state if not isinstance(name, str)]
    if unnamed:
        raise CheckpointError(f"{where}: tensors need names, found {quoted(unnamed)}; save model.state_dict().")
    spread = [name for name, value in state.items() if type(value).__name__ == "DTensor"]
    if spread:
        raise CheckpointError(f"{where}: {HOLDS_DTENSORS}.")
    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    has_axes = any(value.dim() for value in state.values() if isinstance(value, Tensor))
    foreign = [
        f"{name!r} ({'an array of numpy' if is_array(value) else type(value).__name__})"
        for name, value in others.items()
        if not (has_axes and is_plain(value))  # numbers alone are what a training logs, and no network
    ]
    if foreign and any("_packed_params" in name for name in state):
        raise CheckpointError(f"{where}: {foreign[0]} {QUANTISED}.")
    if foreign:
        raise CheckpointError(
            f"{where}: among the tensors stand {listed(foreign)}, which are none; save the tensors alone: "
            "{name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}."
        )


def only_tensors(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a state dict that may hold plain values too."""
    from torch import Tensor

    if all_tensors(state):
        return state
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def check_memory(path: Path, state: Mapping[str, Tensor], data_bytes: int) -> None:
    """Raise UnsafeCheckpoint if a tensor is larger than its storage, or all storages larger than the file's data.

    Sparse, quantised and meta tensors lay their values out in other ways or have none, so they are not checked here.
    """
    import torch

    storages: dict[int, int] = {}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            continue
        storage, needed = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
        if needed > storage.nbytes():
            raise UnsafeCheckpoint(
                f"{path}: {name!r} of shape {list(tensor.shape)} takes {counted(needed, 'byte')} but only "
                f"{storage.nbytes():,} are stored (an expanded tensor); save it as tensor.contiguous()."
            )
    if sum(storages.values()) > data_bytes:
        raise UnsafeCheckpoint(
            f"{path} claims {counted(sum(storages.values()), 'byte')} of tensors but stores {data_bytes}."
        )


# Names


def wrapping(names: Iterable[str], *, from_lightning: bool) -> tuple[str, tuple[str, ...]]:
    """Return the prefix that wrappers put before every name, and the full names to leave out.

    A prefix counts only if all names start with it, so stripping it cannot make two names equal. A network whose only
    child is called `module` looks like a wrapped one and is stripped too; `Checkpoint.prefix` says so.
    """
    left, prefix = list(names), ""
    dropped: list[str] = []
    usual = WRAPPER_PREFIXES + (LIGHTNING_PREFIXES if from_lightning else ())
    while True:
        counter = prefix + AVERAGE_COUNT
        others = [name for name in left if name != counter]
        step = carried_by_all(others, prefix, usual)
        if not step or (len(others) < len(left) and step != "module."):
            return prefix, tuple(dropped)
        dropped += [counter] if len(others) < len(left) else []
        left, prefix, usual = others, prefix + step, WRAPPER_PREFIXES


def chosen(path: Path, names: Iterable[str], prefix: str) -> tuple[str, tuple[str, ...]]:
    """Return the prefix that was asked for, with its dot, and the full names that do not begin with it.

    raises CheckpointError if no name does
    """
    names = list(names)
    start = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if not any(name.startswith(start) and name != start for name in names):
        first_parts = sorted({name.partition(".")[0] + "." for name in names})
        raise CheckpointError(
            f"{path} has no names that begin with '{start}'; they begin with {listed(first_parts)}."
            f"{nearest(start, first_parts)}"
        )
    return start, tuple(name for name in names if not name.startswith(start) or (name == start and start))


def carried_by_all(names: list[str], prefix: str, steps: Iterable[str]) -> str:
    """Return the step that follows the prefix in all names, "" if there is none or it would leave a name empty."""
    for step in steps:
        start = prefix + step
        if names and all(name.startswith(start) and name != start for name in names):
            return step
    return ""


def versions_of(state: Mapping[str, Tensor]) -> Mapping[str, int]:
    """Return the versions of modules that a checkpoint or a network's state dict notes; empty where it does not."""
    return state.versions if isinstance(state, Checkpoint) else module_versions(state)


def without_prefix(versions: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Return the versions of the modules under a prefix, named as the tensors are without it."""
    return {name[len(prefix) :]: version for name, version in versions.items() if f"{name}.".startswith(prefix)}


def is_lightning(value: object) -> bool:
    """Whether an object is a checkpoint of PyTorch Lightning."""
    return isinstance(value, Mapping) and "pytorch-lightning_version" in value
