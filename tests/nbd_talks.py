"""A client of the NBD server that says all it has to say and then listens, over a pair of sockets."""

from __future__ import annotations

import socket
import struct

import trio
import trio.testing

from nbdfs.export import Export
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import SocketStream

ENTER = struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0)
_ASK = struct.Struct(">IHHQQI")


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    return _ASK.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


async def talk(export: Export, data: bytes, step: int = 1 << 30, limits: Limits | None = None) -> bytes:
    """Send this after the handshake, `step` bytes at a time, and hang up; all that the server says."""
    exports = ServedExports()
    await exports.show(export)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    said = bytearray()
    with trio.fail_after(30), trio.socket.from_stdlib_socket(ours) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server(exports, limits=limits).handle, SocketStream(theirs, "client"))

            async def send() -> None:
                stream = trio.SocketStream(client)
                await stream.send_all(ENTER)
                for at in range(0, len(data), step):
                    await stream.send_all(data[at : at + step])
                    if step < len(data):
                        await trio.testing.wait_all_tasks_blocked()
                await stream.send_eof()

            nursery.start_soon(send)
            while part := await client.recv(1 << 20):
                said += part
    return bytes(said[18 + 10 :])


def replies(said: bytes, lengths: dict[int, int]) -> dict[int, tuple[int, bytes]]:
    """(error, data) by cookie of the simple replies that were said; `lengths` are those of the reads."""
    found: dict[int, tuple[int, bytes]] = {}
    at = 0
    while at < len(said):
        magic, error, cookie = struct.unpack_from(">IIQ", said, at)
        assert magic == nbd.SIMPLE_REPLY_MAGIC
        assert cookie not in found
        length = 0 if error else lengths.get(cookie, 0)
        found[cookie] = error, said[at + 16 : at + 16 + length]
        at += 16 + length
    return found
