"""Where an export is: behind a URI, in a captive server, or at the other end of an inherited socket."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Awaitable, Callable

from nbdfs.captive import Captive
from nbdfs.errors import UserError
from nbdfs.nbd.channel import Channel, dial
from nbdfs.nbd.stream import inherited_socket
from nbdfs.nbd.tls import client_context
from nbdfs.nbd.uri import Tcp, Uri
from nbdfs.records import Record


async def _never() -> str:
    return ""


class Target(Record):
    """Where an export is: what opens a connection to it, and what it takes to be let in.

    `gone` gives the reason why there will never be another connection, if that is so.
    """

    name: str
    export: str
    connect: Callable[[], Awaitable[Channel]]
    tls: ssl.SSLContext | None = None
    hostname: str = ""
    single: bool = False
    gone: Callable[[], Awaitable[str]] = _never


def target_of_uri(uri: Uri) -> Target:
    """The export that a URI names.  Raises UserError if its certificates cannot be used."""
    hostname = uri.tls_options.hostname or (uri.address.host if isinstance(uri.address, Tcp) else "localhost")
    tls = client_context(uri.tls_options) if uri.tls else None
    return Target(str(uri), uri.export, lambda: dial(uri.address), tls, hostname)


def target_of_captive(server: Captive, export: str = "") -> Target:
    """An export of a captive server."""

    async def connect() -> Channel:
        return Channel(await server.connect(), server.name)

    return Target(server.name, export, connect, single=server.single, gone=server.epitaph)


def target_of_descriptor(descriptor: int, export: str = "") -> Target:
    """An export at the other end of a connected socket that was inherited.  Raises UserError if it is none."""
    name = f"descriptor {descriptor}"
    try:
        connected_socket: socket.socket | None = inherited_socket(descriptor)
    except OSError as error:
        raise UserError(f"{name} is no socket: {error.strerror}") from error

    async def connect() -> Channel:
        nonlocal connected_socket
        if connected_socket is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"{name} was one connection, and it is gone")
        taken, connected_socket = connected_socket, None
        return Channel(taken, name)

    return Target(name, export, connect, single=True)
