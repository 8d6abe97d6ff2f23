"""The nbd source and servers that lie, stall or break the protocol: an errno or one line, in time, never wrong data."""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import nbdfs.nbd.entering
from nbdfs.errors import UserError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.source import read
from nbdfs.stack import open_stack

SIZE = 1 << 20
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def server(folder: Path, serve: Serve) -> AsyncIterator[str]:
    """A server on a Unix socket that handles each connection with `serve`; gives the URI."""
    path = folder / "socket"

    async def guarded(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await serve(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                return

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen(16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, guarded, [trio.SocketListener(listener)])
        yield f"nbd+unix:///?socket={path}"
        nursery.cancel_scope.cancel()


async def exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = await stream.receive_some(length - len(data))
        if not more:
            raise EOFError
        data += bytes(more)
    return data


async def greet(stream: trio.SocketStream, size: int = SIZE, *, more_flags: int = 0) -> None:
    """A handshake without structured replies, up to the transmission phase."""
    flags = nbd.FLAG_HAS_FLAGS | nbd.FLAG_SEND_FLUSH | more_flags
    await stream.send_all(struct.pack(">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3))
    await exactly(stream, 4)
    while True:
        _, option, length = struct.unpack(">QII", await exactly(stream, 16))
        await exactly(stream, length)
        if option == nbd.OPT_GO:
            info = struct.pack(">HQH", nbd.INFO_EXPORT, size, flags)
            await reply(stream, option, nbd.REP_INFO, info)
            await reply(stream, option, nbd.REP_ACK)
            return
        await reply(stream, option, nbd.REP_ERR_UNSUP)


async def reply(stream: trio.SocketStream, option: int, kind: int, data: bytes = b"") -> None:
    await stream.send_all(struct.pack(">QIII", nbd.REPLY_MAGIC, option, kind, len(data)) + data)


async def request(stream: trio.SocketStream) -> tuple[int, int, int, int]:
    """(command, cookie, offset, length) of the next request."""
    _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", await exactly(stream, 28))
    if command == nbd.CMD_WRITE:
        await exactly(stream, length)
    return command, cookie, offset, length


def simple(error: int, cookie: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IIQ", nbd.SIMPLE_REPLY_MAGIC, error, cookie) + payload


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def web(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200))


async def hang_up(stream: trio.SocketStream) -> None:
    return


async def reset(stream: trio.SocketStream) -> None:
    """As `hang_up`, but with what the client said unread, which the kernel tells it as a reset."""
    await stream.send_all(struct.pack(">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3))
    await stream.socket.recv(1, trio.socket.MSG_PEEK)


async def lying_about_size(stream: trio.SocketStream) -> None:
    await greet(stream, (1 << 63) + 5)


async def huge_option_reply(stream: trio.SocketStream) -> None:
    await stream.send_all(struct.pack(">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3))
    await exactly(stream, 20)
    await stream.send_all(struct.pack(">QIII", nbd.REPLY_MAGIC, nbd.OPT_EXTENDED_HEADERS, nbd.REP_ACK, 1 << 31))
    await trio.sleep_forever()


async def endless_replies(stream: trio.SocketStream) -> None:
    await stream.send_all(struct.pack(">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3))
    await exactly(stream, 20)
    while True:
        await stream.send_all(struct.pack(">QIII", nbd.REPLY_MAGIC, nbd.OPT_EXTENDED_HEADERS, nbd.REP_INFO, 0) * 1000)


@pytest.mark.parametrize(
    ("serve", "complaint"),
    [
        (silent, "does not answer"),
        (web, "not an NBD server"),
        (hang_up, "closed the connection|reset"),
        (reset, "reset"),
        (lying_about_size, "a file can have"),
        (huge_option_reply, "broke the protocol"),
        (endless_replies, "never ends its replies"),
    ],
)
async def test_refused_at_the_start_in_one_line(
    serve: Serve, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdfs.nbd.entering, "_HANDSHAKE_TIMEOUT", 1.0 if serve is silent else 30.0)
    async with server(tmp_path, serve) as uri:
        with trio.fail_after(60), pytest.raises(UserError, match=complaint) as caught:
            async with open_stack(uri):
                pass
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "socket") in str(caught.value)


@pytest.mark.parametrize("wrong", ["cookie", "magic", "twice"])
async def test_a_broken_reply_fails_what_is_in_flight_and_the_next_connection_works(wrong: str, tmp_path: Path) -> None:
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        await greet(stream)
        while True:
            _, cookie, _, length = await request(stream)
            good = simple(0, cookie, bytes(length))
            bad = {"cookie": simple(0, cookie + 1, bytes(length)), "magic": bytes(64), "twice": good * 2}[wrong]
            await stream.send_all(bad if first else good)

    async with server(tmp_path, serve) as uri:
        async with open_stack(f"nbd,timeout=30,readahead=0::{uri}") as source:
            failed = 0
            for _ in range(3):
                try:
                    with trio.fail_after(30):
                        assert await read(source, 0, 4096) == bytes(4096)
                except OSError as error:
                    failed += 1
                    assert error.errno == errno.EIO
            assert failed == (0 if wrong == "twice" else 1)
    assert connections == 2


async def test_a_server_that_never_answers_costs_one_timeout(tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        await trio.sleep_forever()

    async with server(tmp_path, serve) as uri:
        async with open_stack(f"nbd,timeout=0.5::{uri}") as source:
            with trio.fail_after(30), pytest.raises(OSError) as caught:
                await read(source, 0, 4096)
            assert caught.value.errno == errno.EIO
            with trio.move_on_after(0.1) as scope:  # a killed reader is released at once
                await read(source, 0, 4096)
            assert scope.cancelled_caught


async def test_a_server_that_shuts_down_is_asked_again(tmp_path: Path) -> None:
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await greet(stream)
        while True:
            _, cookie, _, length = await request(stream)
            answer = simple(0, cookie, bytes(length)) if connections > 2 else simple(108, cookie)  # ESHUTDOWN
            await stream.send_all(answer)

    async with server(tmp_path, serve) as uri:
        async with open_stack(f"nbd,readahead=0::{uri}") as source:
            with trio.fail_after(30):
                assert await read(source, 0, 4096) == bytes(4096)
    assert connections == 3


async def test_a_write_given_up_cannot_undo_a_later_one(tmp_path: Path) -> None:
    """The first write is carried out late; the second, of the same bytes, must not be sent before."""
    log: list[str] = []
    first, slow = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await greet(stream)
        async with trio.open_nursery() as nursery:

            async def answer(command: int, cookie: int, delay: bool) -> None:
                if delay:
                    await slow.wait()
                log.append(f"{command} done")
                await stream.send_all(simple(0, cookie))

            count = 0
            while True:
                command, cookie, _, _ = await request(stream)
                log.append(f"{command} came")
                count += 1
                first.set()
                nursery.start_soon(answer, command, cookie, count == 1)

    async with server(tmp_path, serve) as uri:
        async with open_stack(uri) as source:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.pwrite, memoryview(b"old!"), 0)
                await first.wait()
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.pwrite, memoryview(b"new!"), 2)
                await source.pwrite(memoryview(b"else"), 100)  # other bytes are not held up
                slow.set()
    assert log[:6] == ["1 came", "1 came", "1 done", "1 done", "1 came", "1 done"]


async def test_a_write_given_up_holds_others_up_for_one_timeout_only(tmp_path: Path) -> None:
    connections = 0
    came = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        deaf = connections == 1
        await greet(stream)
        while True:
            _, cookie, _, _ = await request(stream)
            came.set()
            if not deaf:
                await stream.send_all(simple(0, cookie))

    async with server(tmp_path, serve) as uri:
        async with open_stack(f"nbd,timeout=0.5::{uri}") as source:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.pwrite, memoryview(b"old!"), 0)
                await came.wait()
                nursery.cancel_scope.cancel()
            with trio.fail_after(30):
                await source.pwrite(memoryview(b"new!"), 2)
    assert connections == 2


async def test_a_flush_beside_another_has_an_answer_of_its_own(tmp_path: Path) -> None:
    flushes = 0
    both = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal flushes
        await greet(stream)
        failed = []
        while True:
            command, cookie, _, _ = await request(stream)
            if command != nbd.CMD_FLUSH:
                await stream.send_all(simple(0, cookie))
                continue
            flushes += 1
            failed.append(simple(28, cookie))  # ENOSPC
            if flushes == 2:
                both.set()
                await stream.send_all(b"".join(failed))

    errors = []
    async with server(tmp_path, serve) as uri:
        async with open_stack(uri) as source:
            await source.pwrite(memoryview(b"data"), 0)

            async def flush() -> None:
                with pytest.raises(OSError) as caught:
                    await source.flush()
                assert both.is_set()
                errors.append(caught.value.errno)

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(flush)
                    nursery.start_soon(flush)
    assert errors == [errno.ENOSPC] * 2


async def test_connections_that_one_flush_no_longer_covers_are_not_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    streams: list[trio.SocketStream] = []
    flags = nbd.FLAG_CAN_MULTI_CONN

    async def serve(stream: trio.SocketStream) -> None:
        streams.append(stream)
        await greet(stream, more_flags=flags)
        while True:
            _, cookie, _, length = await request(stream)
            await stream.send_all(simple(0, cookie, bytes(length)))

    async with server(tmp_path, serve) as uri:
        async with open_stack(f"nbd,timeout=0.5,connections=2,readahead=0::{uri}") as source:
            with trio.fail_after(30):
                while len(streams) < 2:
                    await trio.sleep(0.01)
            flags = 0
            for stream in list(streams):
                await stream.aclose()
            with trio.fail_after(30), pytest.raises(OSError, match="no connection"):
                await read(source, 0, 4096)
    assert "it can do less than before" in caplog.text
