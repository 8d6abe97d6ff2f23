"""A reply that cannot be sent to its end: the client hears no more, and never other bytes in its place."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from nbdfs.export import Export
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import SocketStream
from nbdfs.stack import open_stack

LENGTH = 32 << 20  # bytes, more than fits into a socket
CONTENT = 0xAB
ENTER = struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0)


def read_request(cookie: int) -> bytes:
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, nbd.CMD_READ, cookie, 0, LENGTH)


async def _nothing(offset: int, length: int) -> None:
    await trio.lowlevel.checkpoint()


async def receive(client: trio.socket.SocketType, length: int) -> bytes:
    """So many bytes, or as many as come before the end."""
    data = bytearray()
    while len(data) < length:
        try:
            received = await client.recv(length - len(data))
        except ConnectionResetError:
            break
        if not received:
            break
        data += received
    return bytes(data)


@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("ending", ["stall", "request", "stop"])
async def test_nothing_follows_a_cut_reply(ending: str, mounted: bool) -> None:
    """Whatever ends it: a client that stalls, the deadline of a request, the end of the server."""
    short = {} if ending == "stop" else {ending: 0.2}
    async with open_stack(f"memory:{LENGTH}") as source:
        await source.pwrite(memoryview(bytearray([CONTENT]) * LENGTH), 0)
        export = Export("", source, before_access=_nothing if mounted else None)
        exports = ServedExports()
        await exports.show(export)
        server = Server(exports, limits=Limits(**short))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.handle, SocketStream(theirs, "client"))
                with trio.socket.from_stdlib_socket(ours) as client:
                    await receive(client, 18)
                    await client.send(ENTER)
                    await receive(client, 10)
                    await client.send(read_request(7) + read_request(8))
                    header, data = await receive(client, 16), await receive(client, 1 << 20)
                    assert struct.unpack(">IIQ", header)[:2] == (nbd.SIMPLE_REPLY_MAGIC, 0)
                    if ending == "stop":
                        for connection in server._connections:
                            connection.stop()
                    while server._connections and ending == "stall":
                        await trio.sleep(0.01)  # a client that stalls for as long as it takes to be given up
                    if ending == "request":
                        await trio.sleep(3 * short["request"])  # the reply waits for the client, not for the source
                    data += await receive(client, LENGTH - len(data))
                    assert data.count(CONTENT) == len(data)
                    assert len(data) == LENGTH or ending != "request"
