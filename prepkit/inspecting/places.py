"""Tensors by the place where they are kept, in one notation for files, zoos and the Hub.

model.pt, model.prep.safetensors       a checkpoint or a PRep file
run.ckpt#ema.model                     the state dict under a key of a checkpoint
my-zoo#resnet8-17                      an instance of a zoo, by its id
hf://user/model, hf://user/model/model.safetensors, hf://user/zoo#resnet8-17    the same on the Hub
s3://bucket/zoo#resnet8-17, https://host/zoo#resnet8-17    an instance of a zoo in another store
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.address import HubAddress, UrlAddress, is_remote
from prepkit.api import local_model, open_zoo, zoo_address
from prepkit.checkpoint.load import Checkpoint, load_checkpoint
from prepkit.errors import CheckpointError, LayoutMismatch, ZooError, counted, listed
from prepkit.prep.file import is_prep_file, load_prep
from prepkit.support.files import is_zoo

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.zoo.read.zoo import Zoo


@contextmanager
def tensors_at(place: str) -> Iterator[Mapping[str, Tensor]]:
    """Give the tensors that are kept in a place, in its order; they may be mapped from the file.

    raises CheckpointError, PRepFileError, ZooError or HubError, also where the place names no single network
    """
    base, mark, part = _parted(place)
    address = zoo_address(base)
    if isinstance(address, UrlAddress) or _names_zoo(address, mark):
        yield _of_instance(open_zoo(base), part, place)
        return
    with local_model(address) as local:
        if is_prep_file(local.file):
            if mark:
                raise LayoutMismatch(f"'{place}': a PRep file holds one network; leave '#{part}' out.")
            yield load_prep(local.file).tensors()
        else:
            yield _of_checkpoint(local.file, part if mark else None, base)


def _parted(place: str) -> tuple[str, str, str]:
    """Return the file, folder or address, `#` or nothing, and the id or key behind it.

    A file whose own name has a `#` is taken as it is.
    """
    if not is_remote(place) and Path(place).exists():
        return place, "", ""
    return place.partition("#")


def _names_zoo(address: Path | HubAddress, mark: str) -> bool:
    """Whether an address is that of a zoo: on the Hub only a zoo has something behind `#` but no path."""
    return is_zoo(address) if isinstance(address, Path) else bool(mark) and address.path is None


def _of_checkpoint(file: Path, key: str | None, base: str) -> Checkpoint:
    try:
        return load_checkpoint(file, key)
    except CheckpointError as error:
        raise type(error)(str(error).replace("key='NAME'", f"{base}#NAME")) from None


def _of_instance(zoo: Zoo, id: str, place: str) -> Mapping[str, Tensor]:
    if not id:
        ids = zoo.table["id"].slice(0, 3).to_pylist()
        raise ZooError(
            f"'{place}' is a zoo of {counted(len(zoo), 'network')}; name one by its id as '{place.rstrip('#')}#ID'. "
            f"The first ids are {listed(ids)}."
        )
    prep, _ = zoo[id]
    return prep.tensors()
