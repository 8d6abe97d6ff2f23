"""A small HTTP server for scrapes: GET /metrics, and nothing else.

Each connection is good for one request.  Their number, the time of each and the size of a request are bounded, so that
whoever reaches the port can at worst keep others from the figures.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus
from itertools import chain

import h11
import trio

from nbdfs.barrier import Barrier
from nbdfs.export import Export
from nbdfs.metrics.families import families
from nbdfs.metrics.text import CONTENT_TYPE
from nbdfs.nbd.listen import Listener, is_public, listening
from nbdfs.nbd.stream import WOULD_BLOCK, SocketStream
from nbdfs.nbd.uri import Address, Tcp, Unix, Uri
from nbdfs.nursery import serving_nursery

log = logging.getLogger(__name__)

_CLIENTS = 16  # served at once; further ones wait
_TIMEOUT = 10.0  # seconds for a request and its answer
_MOST_HEAD = 16 << 10  # bytes
_LINES = 256  # made before others get a turn
_ACCEPT_PAUSE = 0.1  # seconds, after descriptors have run out
_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)  # RFC 9112, 3.2.2: a server takes a whole URL too
_POINTER = "nbdfs: figures for Prometheus are at /metrics\n"


@asynccontextmanager
async def serving_metrics(address: Address, exports: Iterable[Export]) -> AsyncIterator[list[str]]:
    """Answer scrapes while the block runs: where, as URLs.  `exports` is looked through anew for each.

    Raises UserError if it cannot listen there.
    """
    with ExitStack() as stack:
        listeners = [listener for listener, _ in stack.enter_context(listening([Uri(address)]))]
        urls = [_url(listener.address) for listener in listeners]
        for listener in listeners:
            if is_public(listener.address):
                log.warning("metrics on %s: anybody who reaches it may read names and figures of exports", listener)
        room = trio.Semaphore(_CLIENTS)
        async with serving_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_accept, listener, exports, room, nursery)
            log.info("metrics at %s", " and ".join(urls))
            yield urls


def _url(address: Address) -> str:
    if isinstance(address, Unix):
        return f"unix:{address.path}"
    assert isinstance(address, Tcp)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}/metrics"


async def _accept(listener: Listener, exports: Iterable[Export], room: trio.Semaphore, nursery: trio.Nursery) -> None:
    while True:
        await room.acquire()
        nursery.start_soon(_serve, await _next_client(listener), exports, room)


async def _next_client(listener: Listener) -> SocketStream:
    told = False
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if not told:
                log.warning("metrics on %s: cannot accept clients: %s", listener, error.strerror or error)
            told = True
            await trio.sleep(_ACCEPT_PAUSE)
            continue
        if told:
            log.warning("metrics on %s: clients can be accepted again", listener)
        told = False
        if stream is not None:
            return stream


async def _serve(stream: SocketStream, exports: Iterable[Export], room: trio.Semaphore) -> None:
    """Answer one client and give its place in `room` free.  A fault of ours is logged and ends only this answer."""
    try:
        with Barrier("metrics", lambda _: None), trio.move_on_after(_TIMEOUT):
            await _answer(stream, exports)
            await _hang_up(stream)
    finally:
        stream.close()
        room.release()


async def _hang_up(stream: SocketStream) -> None:
    """Let the client read to the end: to close while something of its own is unread would throw the answer away."""
    stream.socket.shutdown(socket.SHUT_WR)
    rest = memoryview(bytearray(_MOST_HEAD))
    while (count := stream.recv_now(rest)) != 0:
        if count == WOULD_BLOCK:
            await stream.readable()


async def _answer(stream: SocketStream, exports: Iterable[Export]) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD)
    try:
        request = await _request(connection, stream)
    except h11.RemoteProtocolError as error:
        await _reply(connection, stream, error.error_status_hint, f"{error}\n")
        return
    if request is None:
        return
    origin = _ORIGIN.match(request.target)
    path = request.target[origin.end() if origin else 0 :].partition(b"?")[0]
    if request.method not in (b"GET", b"HEAD"):
        await _reply(connection, stream, 405, "only GET\n", [("Allow", "GET, HEAD")])
    elif path == b"/metrics":
        await _reply(connection, stream, 200, await _page(exports), head=request.method == b"HEAD")
    elif path == b"/":
        await _reply(connection, stream, 200, _POINTER, head=request.method == b"HEAD")
    else:
        await _reply(connection, stream, 404, _POINTER)


async def _request(connection: h11.Connection, stream: SocketStream) -> h11.Request | None:
    """The head of the request, None if the client leaves before it has sent any."""
    buffer = memoryview(bytearray(_MOST_HEAD))
    while (event := connection.next_event()) is h11.NEED_DATA:
        count = stream.recv_now(buffer)
        if count == WOULD_BLOCK:
            await stream.readable()
        else:
            connection.receive_data(bytes(buffer[:count]))
    return event if isinstance(event, h11.Request) else None


async def _page(exports: Iterable[Export]) -> str:
    lines: list[str] = []
    for line in chain.from_iterable(family.lines() for family in families(exports)):
        lines.append(line)
        if not len(lines) % _LINES:
            await trio.lowlevel.checkpoint()
    return "\n".join([*lines, ""])


async def _reply(
    connection: h11.Connection,
    stream: SocketStream,
    status: int,
    text: str,
    extra: list[tuple[str, str]] | None = None,
    *,
    head: bool = False,
) -> None:
    body = text.encode()
    headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body))), ("Connection", "close")]
    response = h11.Response(
        status_code=status, reason=HTTPStatus(status).phrase.encode(), headers=headers + (extra or [])
    )
    await _send(stream, connection.send(response) or b"")
    if not head:
        await _send(stream, body)


async def _send(stream: SocketStream, data: bytes) -> None:
    left = memoryview(data)
    while left:
        sent = stream.send_now([left])
        if not sent:
            await stream.writable()
        left = left[sent:]
