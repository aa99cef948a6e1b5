"""open_zoo: the one place that knows where a zoo can be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prepkit.address import HUB_SCHEME

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo


def open_zoo(
    path: str | os.PathLike[str],
    *,
    width: int | None = None,
    height: int | None = None,
    trust_code: bool = False,
    token: str | None = None,
    cache_bytes: int | None = None,
) -> Zoo:
    """Open a zoo for reading. Its manifest and table are checked now, each shard's header when it is first touched.

    path:          a local folder, or hf://user/zoo or hf://user/zoo@revision: its manifest and table are fetched now,
                   each shard when it is first touched, into a cache on the disk (see prepkit.hub.shard_cache)
    width, height: another way of reading; the zoo's own shape if both are missing, the least height that holds every
                   architecture if only a width is given
    trust_code:    whether `network` may import a builder that the zoo names and nothing here registers
    token:         of the Hub; HF_TOKEN or that of `hf auth login` if missing
    cache_bytes:   bound of that cache; PREPKIT_CACHE_BYTES or 64 GiB if missing
    raises ZooError if it is not a whole zoo, HubError if the Hub does not give it
    raises InvalidShape if an architecture does not fit the width and height

    >>> zoo = open_zoo("my-zoo")
    >>> zoo.preps([0, 1, 2]).shape    # [3, H, W]
    """
    from prepkit.zoo.read.store import LocalStore, Store
    from prepkit.zoo.read.zoo import Zoo, common_shape

    address = os.fspath(path)
    if address.startswith(HUB_SCHEME):
        from prepkit.hub.store import open_store

        store: Store = open_store(address, token=token, cache_bytes=cache_bytes)
    else:
        store = LocalStore(path)
    shape = store.manifest.shape
    if width is not None or height is not None:
        shape = common_shape(store.manifest, shape.width if width is None else width, height)
    return Zoo(store, None, shape, trust_code=trust_code)
