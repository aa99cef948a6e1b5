"""open_zoo: the one place that knows where a zoo can be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prepkit.errors import ZooError

if TYPE_CHECKING:
    from prepkit.zoo.zoo import Zoo

HUB_SCHEME = "hf://"


def open_zoo(
    path: str | os.PathLike[str], *, width: int | None = None, height: int | None = None, trust_code: bool = False
) -> Zoo:
    """Open a zoo for reading. Its manifest and table are checked now, each shard's header when it is first touched.

    path:          a local folder
    width, height: another way of reading; the zoo's own shape if both are missing, the least height that holds every
                   architecture if only a width is given
    trust_code:    whether `network` may import a builder that the zoo names and nothing here registers
    raises ZooError if it is not a whole zoo, InvalidShape if an architecture does not fit the width and height

    >>> zoo = open_zoo("my-zoo")
    >>> zoo.preps([0, 1, 2]).shape    # [3, H, W]
    """
    from prepkit.zoo.store import Store
    from prepkit.zoo.zoo import Zoo, common_shape

    if os.fspath(path).startswith(HUB_SCHEME):
        raise ZooError(f"'{path}': this version reads local folders only; download the zoo and give its folder.")
    store = Store(path)
    shape = store.manifest.shape
    if width is not None or height is not None:
        shape = common_shape(store.manifest, shape.width if width is None else width, height)
    return Zoo(store, None, shape, trust_code=trust_code)
