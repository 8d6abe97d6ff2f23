"""A proxy of a few lines that speaks SOCKS 4, SOCKS 5 (RFC 1928, 1929) and HTTP's CONNECT, and remembers where to."""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

USER, PASSWORD = b"user", b"secret"


class RefusedError(Exception):
    """The client is told that it may not."""


class Proxy:
    """Passes connections on.  With `login` it wants USER and PASSWORD."""

    def __init__(self, login: bool) -> None:
        self.port = 0
        self.login = login
        self.passed: list[tuple[str, int]] = []  # where connections went

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one client to its end."""
        reader = _Reader(client)
        try:
            async with client:
                kind = await reader.take(1)
                speak = {b"\4": self._socks4, b"\5": self._socks5, b"C": self._http}[kind]
                host, port, yes = await speak(reader)
                self.passed.append((host, port))
                async with await trio.open_tcp_stream(host, port) as server:
                    await client.send_all(yes)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pass_on, client, server, nursery)
                        nursery.start_soon(_pass_on, server, client, nursery)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError, RefusedError):
            pass  # either side hung up, or may not

    async def _socks4(self, reader: _Reader) -> tuple[str, int, bytes]:
        _, port, address = await reader.take(1), await reader.number(), await reader.take(4)
        await reader.until(b"\0")
        return socket.inet_ntoa(address), port, b"\0\x5a" + bytes(6)

    async def _socks5(self, reader: _Reader) -> tuple[str, int, bytes]:
        methods = await reader.take((await reader.take(1))[0])
        method = b"\2" if self.login else b"\0"
        if method not in methods:
            await reader.stream.send_all(b"\5\xff")
            raise RefusedError
        await reader.stream.send_all(b"\5" + method)
        if self.login:
            await reader.take(1)
            given = [await reader.take((await reader.take(1))[0]) for _ in range(2)]
            await reader.stream.send_all(b"\1" + (b"\0" if given == [USER, PASSWORD] else b"\1"))
        command = (await reader.take(3))[1:2]
        if command != b"\1" or await reader.take(1) != b"\1":  # CONNECT to an IPv4 address, or whatever else
            raise RefusedError
        address, port = socket.inet_ntoa(await reader.take(4)), await reader.number()
        return address, port, b"\5\0\0\1" + bytes(6)

    async def _http(self, reader: _Reader) -> tuple[str, int, bytes]:
        head = b"C" + await reader.until(b"\r\n\r\n")
        token = b"Basic " + base64.b64encode(USER + b":" + PASSWORD)
        if self.login and token not in head:
            await reader.stream.send_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            raise RefusedError
        host, _, port = head.split()[1].decode().rpartition(":")
        return host, int(port), b"HTTP/1.1 200 OK\r\n\r\n"


class _Reader:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = await self.stream.receive_some(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    async def number(self) -> int:
        return int.from_bytes(await self.take(2), "big")

    async def until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            data += await self.take(1)
        return data


async def _pass_on(source: trio.SocketStream, target: trio.SocketStream, nursery: trio.Nursery) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in source:
            await target.send_all(data)
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxying(*, login: bool = False) -> AsyncIterator[Proxy]:
    """A proxy on loopback for the block."""
    proxy = Proxy(login)
    serve: Callable[[trio.SocketStream], Awaitable[object]] = proxy.serve
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
