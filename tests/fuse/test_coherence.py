"""A mount and its NBD server over the same source: each sees what the other has completed."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from nbdfs.source import Source, read
from nbdfs.stack import open_stack
from tests.mounts import Mounter

SIZE = 4 << 20
PAGE = 4096

Result = TypeVar("Result")


@pytest.fixture(params=["", "writeback"])
def shared(request: pytest.FixtureRequest, mount: Mounter) -> tuple[Path, str]:
    """A mounted file, and the URI of the same source."""
    uri = f"nbd+unix:///?socket={mount.folder}/sock"
    words = ["-o", request.param] if request.param else []
    return mount(f"memory:{SIZE}", *words, "--listen", uri).file, uri


async def by(mount: Mounter, action: Callable[[], Result]) -> Result:
    """Do something with the file as the mounting user, while our own NBD client goes on."""
    return await trio.to_thread.run_sync(mount.do, action)


def put(descriptor: int, data: bytes, offset: int) -> None:
    assert os.pwrite(descriptor, data, offset) == len(data)


async def write(source: Source, data: bytes, offset: int) -> None:
    await source.pwrite(memoryview(data), offset)


async def test_completed_writes_are_seen(mount: Mounter, shared: tuple[Path, str]) -> None:
    file, uri = shared
    dice = random.Random(5)
    async with open_stack(uri) as remote:
        descriptor = await by(mount, partial(os.open, file, os.O_RDWR))
        try:
            for number in range(60):
                offset, data = dice.randrange(SIZE - 9000), dice.randbytes(dice.choice((1, 700, 4096, 9000)))
                if number % 2:
                    await by(mount, partial(put, descriptor, data, offset))
                    assert await read(remote, offset, len(data)) == data
                else:
                    await by(mount, partial(os.pread, descriptor, len(data), offset))  # now it is cached
                    await write(remote, data, offset)
                    assert await by(mount, partial(os.pread, descriptor, len(data), offset)) == data
            await by(mount, partial(put, descriptor, b"x" * PAGE, 0))
            await remote.zero(0, PAGE)
            assert await by(mount, partial(os.pread, descriptor, PAGE, 0)) == bytes(PAGE)
        finally:
            await by(mount, partial(os.close, descriptor))


async def test_stores_through_a_mapping_are_seen(mount: Mounter, shared: tuple[Path, str]) -> None:
    file, uri = shared

    def mapped() -> mmap.mmap:
        with file.open("r+b") as disk:
            return mmap.mmap(disk.fileno(), SIZE)

    async with open_stack(uri) as remote:
        memory = await by(mount, mapped)
        try:
            for number in range(30):
                stamp, offset = b"store %5d" % number, number * 3 * PAGE + 100
                await by(mount, partial(memory.__setitem__, slice(offset, offset + len(stamp)), stamp))
                assert await read(remote, offset, len(stamp)) == stamp
                stamp = b"write %5d" % number
                await write(remote, stamp, offset)
                assert await by(mount, partial(memory.__getitem__, slice(offset, offset + len(stamp)))) == stamp
        finally:
            await by(mount, memory.close)


async def test_both_at_once_under_load(mount: Mounter, shared: tuple[Path, str]) -> None:
    """Even pages are written through a mapping, odd ones over NBD, at the same time; none loses anything."""
    file, uri = shared
    pages = SIZE // PAGE

    def store() -> None:
        with file.open("r+b") as disk, mmap.mmap(disk.fileno(), SIZE) as memory:
            for turn in range(4):
                for page in range(0, pages, 2):
                    memory[page * PAGE : (page + 1) * PAGE] = bytes([turn + 1]) * PAGE
            memory.flush()

    async def send(remote: Source) -> None:
        for turn in range(2):
            for page in range(1, pages, 2):
                await write(remote, bytes([turn + 101]) * PAGE, page * PAGE)

    async with open_stack(uri) as remote:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(by, mount, store)
            nursery.start_soon(send, remote)
        expected = (bytes([4]) * PAGE + bytes([102]) * PAGE) * (pages // 2)
        assert await read(remote, 0, SIZE) == expected
        assert await by(mount, file.read_bytes) == expected
