"""The `cache` layer: blocks that were read or written once are kept in memory or on a local disk."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from nbdfs.records import Record
from nbdfs.registry import PATH, SIZE, LayerDriver, OpenContext, choice, option
from nbdfs.source import Source


class CacheOptions(Record):
    cache: str = option(
        "", PATH, "directory on a local disk that keeps the blocks, also between runs; else memory does"
    )
    size: int = option(0, SIZE, "most to keep; 0 stands for 256M in memory and 8G on disk")
    block: int = option(64 << 10, SIZE, "bytes that are fetched and kept at once, a power of two")
    mode: str = option(
        "read", choice("read", "writethrough", "writeback"), "whether writes are kept too, and when they go below"
    )


def _open(below: Source, options: CacheOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    from nbdfs.backends.cache.layer import open_cache

    return open_cache(below, options)


DRIVER = LayerDriver("cache", "keep blocks in memory or on a local disk", CacheOptions, open=_open)
