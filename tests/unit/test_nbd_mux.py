"""One connection of the client, over a pair of sockets or none."""

from __future__ import annotations

import socket
import ssl
import struct

import trio
import trio.testing
import trustme

from nbdfs.nbd.channel import Channel
from nbdfs.nbd.mux import Mux
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.request import Request

HEADER = 28  # bytes of a request
LENGTH = 16 << 20  # bytes: more than sockets hold


class Talkative(Channel):
    """A server that has always something to say: one more error, and never the last."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, "server")
        self.said = 0

    def recv_now(self, buffer: memoryview) -> int:
        self.said += 1
        assert self.said < 10_000, "nobody else has had a turn"
        chunk = struct.pack(">IHHQIIH", nbd.STRUCTURED_REPLY_MAGIC, 0, nbd.REPLY_TYPE_ERROR, 1, 6, 5, 0)
        buffer[: len(chunk)] = chunk
        return len(chunk)


async def test_a_server_that_never_stops_talking_stops_nobody_else() -> None:
    ours, theirs = socket.socketpair()
    mux = Mux(Talkative(ours), structured=True, extended=False)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.perform, Request(nbd.CMD_TRIM, 0, 512))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(mux.run)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    mux.disconnect()


async def test_a_write_given_up_under_tls_is_sent_as_it_was() -> None:
    """What OpenSSL has taken a part of is asked for again: it must not be the caller's memory by then."""
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(theirs)
    authority.configure_trust(ours)
    near, far = socket.socketpair()
    far.setblocking(False)
    channel = Channel(near, "server")
    server = trio.SSLStream(trio.SocketStream(trio.socket.from_stdlib_socket(far)), theirs, server_side=True)
    data = bytearray(b"o") * LENGTH
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            await channel.start_tls(ours, "localhost")
        mux = Mux(channel, structured=False, extended=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.run)
            async with trio.open_nursery() as writing:
                writing.start_soon(mux.perform, Request(nbd.CMD_WRITE, 0, LENGTH, payload=memoryview(data)))
                await trio.testing.wait_all_tasks_blocked()
                writing.cancel_scope.cancel()
            data[:] = b"n" * LENGTH
            sent = bytearray()
            while len(sent) < HEADER + LENGTH:
                sent += await server.receive_some(1 << 20)
            nursery.cancel_scope.cancel()
        mux.disconnect()
        await trio.aclose_forcefully(server)
    assert sent[HEADER:].count(b"o") == LENGTH
