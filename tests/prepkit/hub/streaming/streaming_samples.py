"""What is in the cache, and who fetches into it."""

import threading

from prepkit.hub import _shard_cache as shard_cache
from prepkit.support.cache import cache_folder


def in_cache():
    return {file.name: file for file in cache_folder().glob(shard_cache.SHARDS)}


def nobody_fetches():
    return not any(thread.name.startswith("prepkit-") for thread in threading.enumerate())


def num_bytes():
    return sum(file.stat().st_size for file in in_cache().values())
