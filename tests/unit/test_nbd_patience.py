"""How long the server waits for a client, by a clock of the test's own."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from nbdfs.export import Export
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import SocketStream
from nbdfs.stack import open_stack
from tests.nbd_talks import request

LARGE = 8 << 20  # bytes, more than a socket holds
SIMPLE_REPLY = 16  # bytes of a header


@asynccontextmanager
async def serving(limits: Limits, *specs: str) -> AsyncIterator[Server]:
    """A server of these sources, called by their numbers."""
    exports = ServedExports()
    async with trio.open_nursery() as nursery:
        for number, spec in enumerate(specs):
            source = await nursery.start(_opened, spec)
            await exports.show(Export(str(number), source))
        yield Server(exports, limits=limits)
        nursery.cancel_scope.cancel()


async def _opened(spec: str, *, task_status: trio.TaskStatus[object]) -> None:
    async with open_stack(spec) as source:
        task_status.started(source)
        await trio.sleep_forever()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[trio.SocketStream]:
    """A client that has heard the greeting."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(server.handle, SocketStream(theirs, "client"))
        await receive(client, 18)
        yield client


@asynccontextmanager
async def entered(server: Server, export: str) -> AsyncIterator[trio.SocketStream]:
    """A client in the transmission phase."""
    async with connected(server) as client:
        name = export.encode()
        await client.send_all(struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, len(name)) + name)
        await receive(client, 10)
        yield client


async def receive(client: trio.SocketStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await client.receive_some(count - len(data))
        assert part, "the server hung up"
        data += part
    return bytes(data)


async def read(client: trio.SocketStream, length: int) -> None:
    await client.send_all(request(nbd.CMD_READ, 1, 0, length))
    await receive(client, SIMPLE_REPLY + length)


async def hung_up(client: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await client.receive_some():
            pass


@pytest.mark.parametrize("idle", [0.5, 3.0])
async def test_who_waits_for_a_reply_is_not_idle(autojump_clock: trio.testing.MockClock, idle: float) -> None:
    limits = Limits(idle=idle)
    async with serving(limits, f"delay,read={idle * 2.9}::memory:1M") as server, entered(server, "0") as client:
        await read(client, 512)
        await trio.sleep(idle * 0.9)  # counted from the reply
        await read(client, 512)
        await hung_up(client)


async def test_a_stop_does_not_wait_for_who_does_not_shake_hands(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Limits()) as server, connected(server) as silent, connected(server) as client:
        began = trio.current_time()
        server.finish()
        await client.send_all(struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_LIST, 0))
        _, _, kind, length = struct.unpack(">QIII", await receive(client, 20))
        assert kind == nbd.REP_ERR_SHUTDOWN
        await receive(client, length)
        await hung_up(client)
        await hung_up(silent)
        assert trio.current_time() - began < server.limits.stop


@pytest.mark.parametrize("command", [nbd.CMD_READ, nbd.CMD_WRITE])
async def test_who_stalls_is_dropped_sooner_where_others_wait_for_memory(
    autojump_clock: trio.testing.MockClock, command: int
) -> None:
    """A client that takes no replies, and one whose payload does not come."""
    limits = Limits(export_memory=LARGE)
    async with serving(limits, f"delay,read=1ms::memory:{LARGE}") as server, entered(server, "0") as stalled:
        await stalled.send_all(request(command, 1, 0, LARGE))
        await trio.sleep(limits.stall / 2)  # alone it is waited for
        async with entered(server, "0") as other:
            began = trio.current_time()
            await read(other, 512)
            assert trio.current_time() - began < limits.stall / 4
        await hung_up(stalled)


async def test_clients_of_an_export_leave_memory_to_others_where_the_source_never_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = Limits(memory=2 * LARGE, export_memory=LARGE)
    async with serving(limits, f"pattern:{LARGE}", f"pattern:{LARGE}") as server:
        async with entered(server, "0") as one, entered(server, "0") as another:
            for client in one, another:
                await client.send_all(request(nbd.CMD_READ, 1, 0, LARGE))
            async with entered(server, "1") as other:
                await trio.testing.wait_all_tasks_blocked()
                began = trio.current_time()
                await read(other, LARGE)
                assert trio.current_time() == began
            for client in one, another:
                await client.aclose()


async def test_replies_do_not_wait_for_the_memory_of_the_next_request(autojump_clock: trio.testing.MockClock) -> None:
    limits = Limits(export_memory=LARGE)
    async with serving(limits, f"pattern:{LARGE}") as server, entered(server, "0") as stalled:
        await stalled.send_all(request(nbd.CMD_READ, 1, 0, LARGE))
        async with entered(server, "0") as other:
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            await other.send_all(request(nbd.CMD_READ, 1, 0, 512) + request(nbd.CMD_READ, 2, 0, LARGE))
            await receive(other, SIMPLE_REPLY + 512)
            assert trio.current_time() == began
            await receive(other, SIMPLE_REPLY + LARGE)
        await stalled.aclose()
