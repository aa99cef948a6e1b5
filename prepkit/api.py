"""open_zoo, create_zoo and verify, which take zoos and models from the disk, the Hub, and zoos from other stores."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prepkit.address import HUB_SCHEME, HubAddress, UrlAddress, check_served, is_remote, parse, parse_remote
from prepkit.errors import ZooError, counted

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture
    from prepkit.support.progress import Advance
    from prepkit.zoo.change.verify import Verification
    from prepkit.zoo.opened import Zoo
    from prepkit.zoo.write.adding import Source
    from prepkit.zoo.write.model_files import LocalModel
    from prepkit.zoo.write.written import WrittenZoo


def open_zoo(
    path: str | os.PathLike[str],
    *,
    width: int | None = None,
    height: int | None = None,
    trust_code: bool = False,
    token: str | None = None,
    cache_bytes: int | None = None,
    verify: bool | None = None,
    mmap: bool | None = None,
    unfinished: bool = False,
) -> Zoo:
    """Open a zoo for reading. Its manifest and table are checked now, each shard's header when it is first touched.

    path:          a local folder; hf://user/zoo or hf://user/zoo@revision; or a folder in a store that fsspec reads,
                   such as s3://bucket/zoo, gs://bucket/zoo or https://host/zoo, with keys from the environment and from
                   fsspec's configuration. Of a zoo that is not local, manifest and table are fetched now, and each
                   shard when it is first touched, into a cache on the disk (see prepkit.hub._shard_cache).
    width, height: shape that PReps are read in; the zoo's own if both are missing, and the least height that holds
                   every architecture if only a width is given
    trust_code:    whether `network` may import a builder that the zoo names and that is not registered here
    token:         token for the Hub; HF_TOKEN or that of `hf auth login` if missing
    cache_bytes:   largest size of that cache; PREPKIT_CACHE_BYTES or 64 GiB if missing
    verify:        whether each shard is compared with its sha256 when it is first touched, which reads it once more;
                   PREPKIT_VERIFY (0 or 1) if missing, else yes for shards in that cache and no for a local folder
    mmap:          whether shards are mapped into memory (PREPKIT_MMAP, 0 or 1, if missing, else yes); False reads them
                   from their files each time, for a network disk: there a truncated file raises ZooError, while a
                   mapped one ends the process (SIGBUS)
    unfinished:    open a local zoo that is being written, or whose writing was interrupted, too: it holds the instances
                   that are finished now, and stays as it is while the writer goes on. Without a registry, the ClassIds
                   are those that the zoo would have if it ended now
    raises ZooError if it is not a whole zoo, HubError if the Hub or the store does not give it
    raises InvalidShape if an architecture does not fit the width and height

    >>> zoo = open_zoo("my-zoo")
    >>> zoo.preps([0, 1, 2]).shape    # [3, H, W]
    """
    from prepkit.support.logs import logger
    from prepkit.zoo.opened import Zoo
    from prepkit.zoo.read.shapes import common_shape
    from prepkit.zoo.read.store import LocalStore, Store

    address = zoo_address(path)
    if not isinstance(address, Path):
        from prepkit.hub.store import open_store

        if unfinished:
            raise ZooError(f"unfinished=True is for a local folder; found '{address}', whose zoo is finished.")
        store: Store = open_store(address, token=token, cache_bytes=cache_bytes, verify=verify, mmap=mmap)
    elif unfinished:
        from prepkit.zoo.write.unfinished import open_unfinished

        store = open_unfinished(address, verify=verify, mmap=mmap)
    else:
        store = LocalStore(address, verify=verify, mmap=mmap)
    shape = store.manifest.shape
    if width is not None or height is not None:
        shape = common_shape(store.manifest, shape.width if width is None else width, height)
    rows, shards = counted(store.manifest.table.rows, "instance"), counted(len(store.manifest.shards), "shard")
    logger(__name__).info("opened '%s': %s in %s, read as PReps %s", address, rows, shards, shape)
    return Zoo(store, None, shape, trust_code=trust_code)


def verify(
    path: str | os.PathLike[str] | HubAddress | UrlAddress,
    *,
    jobs: int | None = None,
    rerun: int = 0,
    data: str | os.PathLike[str] | None = None,
    token: str | None = None,
    progress: Advance | None = None,
) -> Verification:
    """Compare every file of a zoo with its manifest, in parallel and in constant memory, but for 9 bytes a row.

    Of a zoo on the Hub, shards in the cache are hashed, damaged ones are removed from it, and the sums that the Hub
    lists are compared with the manifest; shards are not fetched for it. Other stores list no such sums, so all files
    are fetched from there, a few at a time, and not kept.

    path:     a local folder, hf://user/zoo or hf://user/zoo@revision, or an address such as s3://bucket/zoo
    jobs:     number of threads that read and hash a local zoo; up to 8 if missing
    rerun:    number of instances, spread evenly over the zoo, that are also run on the test data of the zoo's task, or
              on the pictures that they are; an imported zoo notes in zoo.json that its function is verified then
    data:     folder of the task's data or of the pictures, for `rerun`
    token:    token for the Hub; HF_TOKEN or that of `hf auth login` if missing
    progress: called with a number of bytes each time that many more were compared
    raises ZooError if it is no zoo at all, or instances cannot be run again; HubError if the Hub or the store does not
           give it

    >>> verify("my-zoo").ok
    True
    """
    if data is not None and not rerun:
        raise ZooError("data is the folder for running instances again; give rerun=N too.")
    address = zoo_address(path)
    if isinstance(address, Path):
        from prepkit.zoo.change.verify import verify_folder

        return verify_folder(address, jobs=jobs, rerun=rerun, data=data, progress=progress)
    if jobs is not None:
        raise ZooError(f"jobs is the number of threads that hash a local zoo; leave it out for '{address}'.")
    from prepkit.hub.verify import verify_at

    return verify_at(address, rerun=rerun, data=data, token=token, progress=progress)


def create_zoo(
    path: str | os.PathLike[str],
    models: Iterable[str | os.PathLike[str] | HubAddress],
    *,
    table: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    types: Mapping[str, str | type] | None = None,
    pattern: str | None = None,
    on: Mapping[str, str] | None = None,
    width: int | None = None,
    format: str | None = None,
    name: str | None = None,
    license: str | None = None,
    task: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    architecture: Architecture | str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    dtype: str | None = None,
    keep_batch_norm: bool = False,
    keep_unfoldable: Literal["affine"] | None = None,
    resume: bool = False,
    append: bool = False,
    keep_going: bool = False,
    drop_nan: bool = False,
    token: str | None = None,
    progress: Advance | None = None,
) -> WrittenZoo:
    """Make a zoo of checkpoints and PRep files, and write its card; BatchNorm is folded.

    path:         the zoo's folder, missing or empty; with `append` a finished zoo
    models:       files, folders of them, or models of the Hub such as hf://user/model or
                  hf://user/model@revision/file.safetensors
    table:        CSV, TSV, JSON or JSONL file whose column `file` names the models by path, from the table's folder or
                  one that holds all models; `id` and `split` are the zoo's, and all other columns are kept with the
                  instances. Of several, the earlier keeps its values. With a pattern also columns for its fields.
    types:        types of columns, such as {"accuracy": "float", "code": "text"} ("int", "bool", "date", "timestamp"
                  and "list" too); the narrowest that fits all cells if missing. A float may be written 0,81 or 81%.
    pattern:      path of each model below a folder, "{run}/checkpoint_{epoch:int}/checkpoints", whose fields become
                  columns and ids; a table "{run}/result.json" is then one for each run
    on:           columns of tables for fields that have other names there, {"epoch": "training_iteration"}
    width:        columns of the PReps, a multiple of 8; 512 if missing
    format:       format of the shards, "safetensors" or "hdf5"; the first if missing
    name:         the zoo's name; its folder's if missing
    license:      the zoo's licence, an identifier such as "mit"
    task:         record of the task that the models were trained on, or a JSON file that holds it
    architecture: architecture of all models; each is recognised if missing
    key:          where the state dict is inside the files, such as "ema.model", if several fit
    prefix:       take only names that begin with this, such as "model.", and leave the others out
    dtype:        dtype of the zoo, which must hold all values exactly; the first model's if missing
    keep_batch_norm: keep BatchNorm with its running statistics instead of folding it
    keep_unfoldable: "affine" makes a BatchNorm that has no layer to go into a scale and a shift of each channel
    resume:       go on with a zoo whose writing was interrupted, or with `append` to which appending was
    append:       add the models to a finished zoo; settings that are missing are its own, and its ClassIds stay
    keep_going:   add the other models too before an error is raised whose notes tell of each that failed
    drop_nan:     leave out models that hold NaN or infinity, and count them
    token:        token for the Hub; HF_TOKEN or that of `hf auth login` if missing
    progress:     is called with a number of models each time that many more were added
    raises what `ZooWriter.add` and `load_checkpoint` raise, ZooError for a wrong table or task, HubError. Models that
           were added before an error are kept for `resume`; if there are none, nothing is left.

    >>> create_zoo("my-zoo", ["run0.pt", "run1.pt"], table="runs.csv").manifest.table.rows
    2
    """
    from prepkit.zoo.write.model_files import read_task

    task = read_task(Path(task)) if isinstance(task, str | os.PathLike) else task
    source = source_of_models(
        models, table=table, types=types, pattern=pattern, on=on, key=key, prefix=prefix, token=token
    )

    from prepkit.zoo.importers.making import make_zoo
    from prepkit.zoo.write.adding import Packing

    return make_zoo(
        path,
        source,
        Packing(architecture, keep_batch_norm, keep_unfoldable),
        command="zoo create",
        resume=resume,
        append=append,
        keep_going=keep_going,
        drop_nan=drop_nan,
        progress=progress,
        how_to_go_on="go on with append=True, resume=True" if append else "go on with resume=True",
        width=width,
        format=format,
        dtype=dtype,
        name=name,
        license=license,
        task=task,
    )


def source_of_models(
    models: Iterable[str | os.PathLike[str] | HubAddress],
    *,
    table: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    types: Mapping[str, str | type] | None = None,
    pattern: str | None = None,
    on: Mapping[str, str] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    token: str | None = None,
) -> Source:
    """Find the models that `create_zoo` makes a zoo of, with what their paths and tables say.

    raises ZooError before any model is read
    """
    from prepkit.zoo.importers.tree import source_of

    return source_of(
        [model_address(model) for model in models],
        pattern=pattern,
        table=table,
        on=on,
        types=types,
        key=key,
        prefix=prefix,
        fetched=partial(local_model, token=token),
    )


def zoo_address(path: object) -> Path | HubAddress | UrlAddress:
    """Return the folder of a zoo, or its address on the Hub or in another store.

    raises ZooError for what is no path, HubError for an address that cannot be read
    """
    if isinstance(path, HubAddress | UrlAddress):
        return path
    if not isinstance(path, str | os.PathLike):
        kind = type(path).__name__
        raise ZooError(f"path: expected the folder of a zoo or hf://user/zoo; found a {kind}.")
    text = os.fspath(path)
    return parse_remote(text) if is_remote(text) else Path(text)


def model_address(model: str | os.PathLike[str] | HubAddress) -> Path | HubAddress:
    """Return the address of a model on the Hub, or the path of a file.

    raises HubError for an address that cannot be read
    """
    if isinstance(model, HubAddress):
        return model
    text = os.fspath(model)
    check_served(text)
    return parse(text) if text.startswith(HUB_SCHEME) else Path(text)


@contextmanager
def local_model(model: Path | HubAddress, *, token: str | None = None) -> Iterator[LocalModel]:
    """Give a model as a file; a model on the Hub is fetched, and errors inside name its address.

    raises HubError and CheckpointError, as `fetch_checkpoint` does
    """
    from prepkit.zoo.write.model_files import LocalModel

    if isinstance(model, Path):
        yield LocalModel(model, str(model))
        return
    from prepkit.hub.checkpoints import fetch_checkpoint, naming_address

    fetched = fetch_checkpoint(model, token=token)
    with naming_address(fetched):
        yield LocalModel(fetched.file, str(fetched.address))
