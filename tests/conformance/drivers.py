"""The table of specs the conformance suite runs on: every driver has at least one row.

A row prepares what its spec needs (a file, a server) and gives a `Subject`.  Add rows for every shape of a driver that
could behave differently: a size that is no multiple of anything, a read-only form, a layer over limits.
"""

from __future__ import annotations

import enum
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


class Writes(enum.Enum):
    """What becomes of a write."""

    KEPT = "read back"
    FORGOTTEN = "reads stay as they were"
    SAME_ONLY = "accepted only where it changes nothing"


@dataclass(frozen=True)
class Subject:
    """A spec that can be opened now, and the whole content it must show (a few MiB at most)."""

    spec: str
    content: bytes


Prepare = Callable[[Path], AbstractAsyncContextManager[Subject]]


@dataclass(frozen=True)
class Row:
    """One row.  `prepare` gets an empty folder."""

    driver: str
    name: str
    prepare: Prepare
    writes: Writes = Writes.KEPT

    def __str__(self) -> str:
        return f"{self.driver}-{self.name}"


def plain(spec: str, content: bytes) -> Prepare:
    """A spec that needs nothing prepared."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        yield Subject(spec, content)

    return prepare


def over_file(spec: str, content: bytes) -> Prepare:
    """A spec with `{}` for the path of a file that holds `content`."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        path = folder / "image"
        path.write_bytes(content)
        yield Subject(spec.format(path), content)

    return prepare


@asynccontextmanager
async def huge_pages(folder: Path) -> AsyncIterator[Subject]:
    """A disk of huge pages, which root adds to the pool for the while."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    if not os.access(pool, os.W_OK):
        pytest.skip("only root may reserve huge pages")
    before = int(pool.read_text())
    pool.write_text(str(before + 2))
    try:
        yield Subject(f"memory,hugepages:{SIZE}", bytes(SIZE))
    finally:
        pool.write_text(str(before))


SIZE = 1 << 20
SHORT = 70_001
NOISE = bytes((index * 167 + (index >> 8) * 89 + (index >> 15)) & 0xFF for index in range(SIZE))

ROWS = [
    Row("null", "1M", plain(f"null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
    Row("null", "short", plain(f"null:{SHORT}", bytes(SHORT)), Writes.FORGOTTEN),
    Row("readahead", "null", plain(f"readahead::null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
    Row("memory", "1M", plain(f"memory:{SIZE}", bytes(SIZE))),
    Row("memory", "short", plain(f"memory:{SHORT}", bytes(SHORT))),
    Row("memory", "mlock", plain(f"memory,mlock:{SIZE}", bytes(SIZE))),
    Row("memory", "hugepages", huge_pages),
    Row("blocksize", "memory", plain(f"blocksize::memory:{SHORT}", bytes(SHORT))),
    Row("blocksize", "null", plain(f"blocksize::null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
]
