"""The control socket of a process: a few clients at a time, each with bounded requests, memory and time."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import trio
from trio.socket import SocketType

from nbdfs.control import place, protocol
from nbdfs.control.protocol import LONGEST_REQUEST, Code, Request, RequestError
from nbdfs.errors import UserError, reason
from nbdfs.nursery import serving_nursery
from nbdfs.records import Record, field

log = logging.getLogger(__name__)

_MOST_CLIENTS = 32
_PAUSE = 0.2  # seconds without accepting when descriptors have run out
_IDLE = 120.0  # seconds between two requests of a client
_REST = 10.0  # seconds for the rest of a request, or to take a reply
_REQUEST = 120.0  # seconds to carry one out
_ALSO: Mapping[type, tuple[type, ...]] = {float: (float, int)}  # types of JSON that a type of a parameter takes
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class Method(Record):
    """What a client can call.  `parameters` are the types of those it must give, `options` of those it may."""

    call: Callable[..., Awaitable[object]]
    parameters: Mapping[str, type] = field(default_factory=dict)
    options: Mapping[str, type] = field(default_factory=dict)

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise RequestError for parameters that are missing, unknown or of the wrong type."""
        known = {**self.parameters, **self.options}
        for name, value in params.items():
            if name not in known:
                raise RequestError(Code.INVALID_PARAMS, f"there is no parameter {name!r}")
            if type(value) not in _ALSO.get(known[name], (known[name],)):
                raise RequestError(Code.INVALID_PARAMS, f"{name} is not of type {known[name].__name__}")
        for name in self.parameters:
            if name not in params:
                raise RequestError(Code.INVALID_PARAMS, f"the parameter {name} is missing")


@asynccontextmanager
async def controlled(methods: Mapping[str, Method]) -> AsyncIterator[None]:
    """Let the user's other processes call `methods` while the block runs.

    Where no socket can be made, that is logged and the block runs without.
    """
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(place.listening())
        except UserError as error:
            log.warning("%s; list, top, add and remove do not reach this process", error)
            yield
            return
        async with serving_nursery() as nursery:
            nursery.start_soon(_accept, trio.socket.from_stdlib_socket(listener), methods)
            yield


async def _accept(listener: SocketType, methods: Mapping[str, Method]) -> None:
    room = trio.Semaphore(_MOST_CLIENTS)
    async with trio.open_nursery() as nursery:
        while True:
            await room.acquire()  # whoever comes while it is full waits in the kernel
            nursery.start_soon(_serve, await _next_client(listener), methods, room)


async def _next_client(listener: SocketType) -> SocketType:
    told = False
    while True:
        await trio.lowlevel.wait_readable(listener)  # accept fails without descriptors, also when nobody waits
        try:
            connection, _ = await listener.accept()
        except OSError as error:
            if not told:
                log.warning("control socket: cannot accept clients: %s", error.strerror)
            told = True
            await trio.sleep(_PAUSE)
        else:
            if told:
                log.warning("control socket: clients can be accepted again")
            return connection


async def _serve(connection: SocketType, methods: Mapping[str, Method], room: trio.Semaphore) -> None:
    """A client from its first request to its last."""
    try:
        with connection:
            try:
                _check_user(connection)
                lines = _Lines(connection)
                while line := await lines.next():
                    await _send(connection, await _reply(line, methods))
            except RequestError as error:  # it is not listened to any more
                log.info("control socket: %s", error)
                await _send(connection, protocol.failure(None, error))
    except (OSError, trio.TooSlowError) as error:
        log.info("control socket: lost a client: %s", reason(error))
    finally:
        room.release()


def _check_user(connection: SocketType) -> None:
    """Raise RequestError unless the other end is a process of our user, or of root."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(credentials)
    if user not in (0, os.geteuid()):
        log.warning("control socket: process %d of user %d is refused", pid, user)
        raise RequestError(Code.FAILURE, f"only user {os.geteuid()} and root may control this process")


async def _reply(line: bytes, methods: Mapping[str, Method]) -> bytes:
    """The reply to a request, if there is to be one: the barrier of this socket, whatever the request is and does."""
    request = None
    try:
        request = protocol.parse_request(line)
        return protocol.result(request, await _call(request, methods))
    except RequestError as error:
        return protocol.failure(request, error)
    except UserError as error:
        return protocol.failure(request, RequestError(error.exit_status, str(error)))
    except Exception:
        log.exception("control socket: %s failed", request.method if request else "a request")
        return protocol.failure(request, RequestError(Code.INTERNAL_ERROR, "internal error: see its log"))


async def _call(request: Request, methods: Mapping[str, Method]) -> object:
    method = methods.get(request.method)
    if method is None:
        raise RequestError(Code.METHOD_NOT_FOUND, f"there is no method {request.method[:40]!r}")
    method.check(request.params)
    with trio.move_on_after(_REQUEST):
        return await method.call(**request.params)
    raise RequestError(Code.FAILURE, f"{request.method} was not done within {_REQUEST:g} s")


async def _send(connection: SocketType, message: bytes) -> None:
    """Send a reply; a client that does not take it in time is lost."""
    rest = memoryview(message)
    while rest:
        with trio.fail_after(_REST):
            rest = rest[await connection.send(rest) :]


class _Lines:
    """The lines that a client sends."""

    def __init__(self, connection: SocketType) -> None:
        self._connection = connection
        self._received = bytearray()

    async def next(self) -> bytes:
        """The next line; empty if the client is done.  Raises RequestError if it is too long or too slow."""
        deadline = trio.current_time() + _IDLE
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > LONGEST_REQUEST:
                raise RequestError(Code.INVALID_REQUEST, f"a request has at most {LONGEST_REQUEST} bytes")
            if self._received:
                deadline = min(deadline, trio.current_time() + _REST)
            with trio.CancelScope(deadline=deadline) as scope:
                data = await self._connection.recv(LONGEST_REQUEST)
            if scope.cancelled_caught:
                raise RequestError(Code.INVALID_REQUEST, "no request came in time")
            if not data:
                return b""
            self._received += data
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line
