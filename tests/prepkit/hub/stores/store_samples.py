"""What is in the cache, and what comes into it."""

from prepkit.hub import _shard_cache as shard_cache
from prepkit.support.cache import cache_folder


def in_cache():
    return sorted(path.relative_to(cache_folder()).as_posix() for path in cache_folder().glob(shard_cache.SHARDS))


def parts():
    return list(cache_folder().rglob("*.part"))


def coming():
    """Whether the first bytes of a shard are there; the table, which comes before, does not count."""
    return any(part.stat().st_size for part in parts() if part.parent.name == "shards")
