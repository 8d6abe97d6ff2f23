"""Replies to reads of memory: copied before anybody else can change it, or take it away, and with holes left out."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from nbdfs.checked import Checked
from nbdfs.export import Export
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import Buffer, SocketStream
from nbdfs.stack import open_stack

LENGTH = 64 << 10  # bytes
GREETING, STRUCTURED, ENTERED = 18, 20, 10  # bytes of what a server says in the handshake
ENTER = struct.pack(
    ">IQIIQII", 3, nbd.OPTION_MAGIC, nbd.OPT_STRUCTURED_REPLY, 0, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0
)


_ASK = struct.Struct(">IHHQQI")


class Slow(SocketStream):
    """Takes a few bytes of the replies, and the rest once it is `open`."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, "client")
        self.open = trio.Event()
        self.full = trio.Event()
        self._left = GREETING + STRUCTURED + ENTERED + 100  # and a part of the first reply

    def send_now(self, buffers: list[Buffer]) -> int:  # type: ignore[override]
        if self.open.is_set():
            return super().send_now(buffers)
        part = b"".join(buffers)[: self._left]
        self._left -= len(part)
        return self.socket.send(part) if part else 0

    async def writable(self) -> None:
        self.full.set()
        await self.open.wait()


def _data(cookie: int, content: bytes, done: bool) -> bytes:
    """A chunk with the first bytes of the disk."""
    header = (nbd.STRUCTURED_REPLY_MAGIC, done, nbd.REPLY_TYPE_OFFSET_DATA, cookie, len(content) + 8, 0)
    return struct.pack(">IHHQIQ", *header) + content


def _hole(cookie: int, offset: int, length: int) -> bytes:
    """The last chunk, one of zeroes."""
    header = (nbd.STRUCTURED_REPLY_MAGIC, nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_OFFSET_HOLE, cookie, 12)
    return struct.pack(">IHHQIQI", *header, offset, length)


@asynccontextmanager
async def _client(
    source: Checked, kind: Callable[[socket.socket], SocketStream]
) -> AsyncIterator[trio.socket.SocketType]:
    """A client that has entered the export, with structured replies."""
    export = Export("", source)
    exports = ServedExports()
    await exports.show(export)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(exports).handle, kind(theirs))
        with trio.socket.from_stdlib_socket(ours) as client, trio.fail_after(30):
            await _receive(client, GREETING)
            await client.send(ENTER)
            await _receive(client, STRUCTURED + ENTERED)
            yield client


@pytest.mark.parametrize("size", [4 << 10, LENGTH, LENGTH * 2])
async def test_what_waits_for_room_is_a_copy(size: int) -> None:
    """Also one with a hole in it, of which only the other part is sent."""
    made: list[Slow] = []

    def slow(sock: socket.socket) -> Slow:
        made.append(Slow(sock))
        return made[0]

    async with open_stack("memory:1M") as source:
        content = bytes(range(1, 129)) * (LENGTH // 128)
        await source.pwrite(memoryview(content), 0)
        async with _client(source, slow) as client:
            requests = [_ASK.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, number, 0, size) for number in range(2)]
            await client.send(b"".join(requests))
            await made[0].full.wait()
            await source.trim(0, LENGTH)
            await source.pwrite(memoryview(b"\xff" * 512), 1024)
            made[0].open.set()
            for number in range(2):
                expected = _data(number, content[:size], size <= LENGTH)
                if size > LENGTH:
                    expected += _hole(number, LENGTH, size - LENGTH)
                assert await _receive(client, len(expected)) == expected


async def _receive(client: trio.socket.SocketType, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        received = await client.recv(length - len(data))
        assert received
        data += received
    return bytes(data)


class Near(SocketStream):
    """A client on this machine."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, "client")


class Far(SocketStream):
    """A client to whom a byte takes longer than to find out that it is zero."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, "client")
        self.near = False


@pytest.mark.parametrize(("kind", "data"), [(Far, LENGTH // 2), (Near, LENGTH)])
async def test_short_runs_of_zeroes_are_left_out_only_of_what_goes_far(
    kind: Callable[[socket.socket], SocketStream], data: int
) -> None:
    """Every second page of the disk is a hole."""
    async with open_stack("memory:1M") as source:
        for page in range(0, LENGTH, 8192):
            await source.pwrite(memoryview(b"\x55" * 4096), page)
        async with _client(source, kind) as client:
            await client.send(_ASK.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, 1, 0, LENGTH))
            sent, done = 0, False
            while not done:
                magic, done, chunk, cookie, length = struct.unpack(">IHHQI", await _receive(client, 20))
                assert (magic, cookie) == (nbd.STRUCTURED_REPLY_MAGIC, 1)
                await _receive(client, length)
                if chunk == nbd.REPLY_TYPE_OFFSET_DATA:
                    sent += length - 8
            assert sent == data
