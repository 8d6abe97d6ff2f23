"""HTTP/1.1 over our own connections: what is kept, what is closed, and that no answer is taken for another's."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trustme

from nbdfs.backends.http import direct
from nbdfs.backends.http.direct import Direct
from nbdfs.backends.http.wire import Response, UnreachableError, UntrustedError, WireError
from nbdfs.nbd.channel import Channel

BODY = bytes(range(256)) * 100
HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n"
WHOLE = HEAD % len(BODY) + BODY
HOST = [("Host", "x")]

Answer = list[bytes] | None  # pieces, sent one by one; None hangs up


@dataclass
class Scripted:
    """A server that answers the requests of all connections in turn by a script."""

    path: str
    script: list[Answer]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    hang_up: Callable[[], None] = lambda: None

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        with trio.CancelScope() as scope, contextlib.suppress(trio.BrokenResourceError):  # the client may leave
            self.hang_up = scope.cancel
            waiting = b""
            while self.script:
                while b"\r\n\r\n" not in waiting:
                    received = await stream.receive_some()
                    if not received:
                        return
                    waiting += bytes(received)
                request, _, waiting = waiting.partition(b"\r\n\r\n")
                self.requests.append(request)
                answer = self.script.pop(0)
                if answer is None:
                    return
                for piece in answer:
                    await stream.send_all(piece)
                    await trio.lowlevel.checkpoint()
            await trio.sleep_forever()


@asynccontextmanager
async def scripted(tmp_path: Path, *script: Answer) -> AsyncIterator[tuple[Scripted, Direct]]:
    server = Scripted(str(tmp_path / "sock"), list(script))
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(server.path)
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, server.handle, [trio.SocketListener(sock)])
            context = ssl.create_default_context()
            async with Direct(context=context, connections=4, stall=10, unix=server.path) as wire:
                yield server, wire
            nursery.cancel_scope.cancel()


async def whole(response: Response) -> bytes:
    async with response:
        return b"".join([chunk async for chunk in response.body()])


async def ask(wire: Direct, method: str = "GET") -> bytes:
    return await whole(await wire.send(method, "http://x/a?b=c", HOST))


async def test_one_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    empty = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with scripted(tmp_path, [WHOLE], [chunked], [empty], [early, WHOLE], [WHOLE]) as (server, wire):
        assert await ask(wire) == BODY
        assert await ask(wire) == b"abc"
        assert await ask(wire) == b""
        assert await ask(wire) == BODY
        assert await ask(wire) == BODY
        assert server.connections == 1
        assert server.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: x")


async def test_a_head_without_a_body_keeps_the_connection_though_nobody_reads_on(tmp_path: Path) -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 5\r\n\r\nthere"
    async with scripted(tmp_path, [HEAD % 1000], [redirect], [WHOLE]) as (server, wire):
        async with await wire.send("HEAD", "http://x/", HOST) as response:
            assert response.headers["content-length"] == "1000"
        async with await wire.send("GET", "http://x/", HOST) as response:
            assert (response.status, response.headers["location"]) == (302, "/b")
        assert await ask(wire) == BODY
        assert server.connections == 1


@pytest.mark.parametrize("step", [1, 7, 50, 1000])
async def test_an_answer_may_come_in_any_pieces(tmp_path: Path, step: int) -> None:
    answer = HEAD % 200 + BODY[:200]
    pieces = [answer[at : at + step] for at in range(0, len(answer), step)]
    async with scripted(tmp_path, pieces, pieces) as (_, wire):
        assert await ask(wire) == BODY[:200]
        assert await ask(wire) == BODY[:200]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 P\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.0 206 P\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 206 P\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 206 P\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 206 P\r\nContent-Length: 4\r\n\r\nevil",
    ],
    ids=["closing", "old", "more than one answer", "more than one, parsed"],
)
async def test_a_connection_that_is_not_clean_is_not_used_again(tmp_path: Path, answer: bytes) -> None:
    async with scripted(tmp_path, [answer], [WHOLE]) as (server, wire):
        assert await ask(wire) == b"abc"
        assert await ask(wire) == BODY
        assert server.connections == 2


async def test_an_idle_connection_that_the_server_closed_is_noticed(tmp_path: Path) -> None:
    async with scripted(tmp_path, [WHOLE], [WHOLE]) as (server, wire):
        assert await ask(wire) == BODY
        server.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert await ask(wire) == BODY
        assert server.connections == 2


async def test_leaving_in_the_middle_of_a_body_closes(tmp_path: Path) -> None:
    async with scripted(tmp_path, [HEAD % len(BODY), BODY[:100]], [WHOLE]) as (server, wire):
        async with await wire.send("GET", "http://x/", HOST) as response:
            assert await response.receive_into(memoryview(bytearray(50))) > 0
        assert await ask(wire) == BODY
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "without an answer"),
        ([b"HTTP/1.1 206 P\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"], "conflicting"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], "illegal status line"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000], "too long|too much|Receive buffer"),
    ],
    ids=["nothing", "two lengths", "another protocol", "endless head"],
)
async def test_answers_that_are_none(tmp_path: Path, answer: Answer, says: str) -> None:
    async with scripted(tmp_path, answer) as (_, wire):
        with pytest.raises(WireError, match=f"(?i){says}"):
            await ask(wire)


async def test_a_body_that_breaks_off(tmp_path: Path) -> None:
    async with scripted(tmp_path, [HEAD % len(BODY) + BODY[:100]], None) as (server, wire):
        with pytest.raises(WireError, match=f"{len(BODY) - 100} bytes before"):
            async with await wire.send("GET", "http://x/", HOST) as response:
                buffer = memoryview(bytearray(len(BODY)))
                assert await response.receive_into(buffer) == 100
                server.hang_up()
                await response.receive_into(buffer[100:])


async def test_a_silent_server_is_left_after_a_while(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with scripted(tmp_path, [HEAD % 100]) as (_, wire):
        response = await wire.send("GET", "http://x/", HOST)
        with pytest.raises(WireError, match="silent"):
            await whole(response)


async def test_a_header_that_http_cannot_carry(tmp_path: Path) -> None:
    async with scripted(tmp_path, [WHOLE]) as (_, wire):
        with pytest.raises(WireError, match="Illegal header"):
            await wire.send("GET", "http://x/", [*HOST, ("X", "two\r\nlines")])


async def test_nobody_there(tmp_path: Path) -> None:
    async with Direct(context=ssl.create_default_context(), connections=1, stall=10, unix=str(tmp_path / "no")) as wire:
        with pytest.raises(UnreachableError, match="No such file"):
            await ask(wire)


async def test_under_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    theirs, ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(theirs)
    server = Scripted("", [[WHOLE], [WHOLE]])

    async def handle(stream: trio.SocketStream) -> None:
        await server.handle(trio.SSLStream(stream, theirs, server_side=True))  # type: ignore[arg-type]

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"https://localhost:{listener.socket.getsockname()[1]}/"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        async with Direct(context=ours, connections=1, stall=10, unix="") as wire:
            with pytest.raises(UntrustedError):
                await wire.send("GET", url, HOST)
            authority.configure_trust(ours)
            for _ in range(2):
                assert await whole(await wire.send("GET", url, HOST)) == BODY
        nursery.cancel_scope.cancel()


class _Talkative(Channel):
    """A server that promises a response, again and again."""

    said = 0

    def recv_now(self, buffer: memoryview) -> int:
        self.said += 1
        assert self.said < 10_000, "nobody else has had a turn"
        promise = b"HTTP/1.1 103 Early Hints\r\n\r\n"
        buffer[: len(promise)] = promise
        return len(promise)


async def test_a_server_that_never_stops_talking_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()

    async def dial(_: object) -> Channel:
        return _Talkative(ours, "server")

    monkeypatch.setattr(direct, "dial", dial)
    async with Direct(context=ssl.create_default_context(), connections=1, stall=10, unix="x") as wire:
        with theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, wire)
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


class _AllHere(Channel):
    """A server whose answer is here already, a byte at a time."""

    def __init__(self, sock: socket.socket, answer: bytes) -> None:
        super().__init__(sock, "server")
        self.answer = answer

    def recv_now(self, buffer: memoryview) -> int:
        buffer[:1], self.answer = self.answer[:1], self.answer[1:]
        return 1


async def test_answers_that_come_at_once_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n%b\r\n0\r\n\r\n" % (b"%d" % i * 100)
        for i in range(4)
    ]
    waiting = [_AllHere(ours, answer) for (ours, _), answer in zip(pairs, answers, strict=True)]
    got: set[bytes] = set()

    async def dial(_: object) -> Channel:
        return waiting.pop()

    async def ask_one() -> None:
        got.add(await ask(wire))

    monkeypatch.setattr(direct, "dial", dial)
    with contextlib.ExitStack() as stack:
        for _, theirs in pairs:
            stack.enter_context(theirs)
        async with Direct(context=ssl.create_default_context(), connections=4, stall=10, unix="x") as wire:
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(ask_one)
    assert got == {b"%d" % i * 100 for i in range(4)}
