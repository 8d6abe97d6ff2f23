"""What `serve`, `mount --listen` and nbdkit's command line share: where to listen, with what TLS, and the server."""

from __future__ import annotations

import argparse
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

from nbdfs.errors import UsageError
from nbdfs.live import Exports
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits
from nbdfs.nbd.listen import (
    Listener,
    activated,
    close_connections,
    inherited,
    is_public,
    listening,
    private_socket,
    reachable,
)
from nbdfs.nbd.proto.handshake import Policy, Tls
from nbdfs.nbd.server import Server, serving
from nbdfs.nbd.tls import server_context
from nbdfs.nbd.uri import (
    PORT,
    Address,
    Tcp,
    TlsOptions,
    Unix,
    Uri,
    Vsock,
    host_name,
    parse_port,
    parse_uri,
    parse_vsock_number,
    socket_path,
)
from nbdfs.records import Record, replace
from nbdfs.units import parse_duration

log = logging.getLogger(__name__)

DEFAULTS = Limits()


class Place(Record):
    """Where to serve: NBD URIs, sockets from systemd, a descriptor that listens, standard input and output."""

    uris: tuple[Uri, ...] = ()
    private: bool = False
    fd: int | None = None
    stdio: bool = False


class Service(Record):
    """How to serve."""

    place: Place
    tls: ssl.SSLContext | None = None
    require_tls: bool = False
    limits: Limits = DEFAULTS
    structured: bool = True
    any_name: bool = False


def add_listen_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `serve` and `mount` have both."""
    group = parser.add_argument_group("serving over NBD")
    group.add_argument("--listen", action="append", default=[], metavar="NBD-URI", help="serve there; repeatable")
    add_tls_arguments(group)
    group.add_argument("--max-clients", type=int, default=DEFAULTS.clients, metavar="N",
                       help="connections at once; one more is turned away (default %(default)s)")  # fmt: skip
    group.add_argument("--handshake-timeout", type=_positive_duration, default=DEFAULTS.handshake, metavar="SECONDS",
                       help=f"for a client to enter an export (default {DEFAULTS.handshake:g} s)")  # fmt: skip
    group.add_argument("--idle-timeout", type=parse_duration, default=DEFAULTS.idle, metavar="SECONDS",
                       help="drop a client that asks for nothing (0: never)")  # fmt: skip


def _positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError("--handshake-timeout must be more than 0: no client could come in")
    return seconds


def add_port_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-p", "--port", type=_port, metavar="PORT", help="the TCP or vsock port, 0 for a free one")


def _port(text: str) -> int:
    return parse_vsock_number(text, "port")


def add_tls_arguments(group: argparse._ActionsContainer) -> None:
    group.add_argument("--tls", choices=("off", "on", "require"), help="offer TLS, or talk under TLS only")
    group.add_argument(
        "--tls-certificates", default="", metavar="DIR", help="a folder with server-cert.pem, server-key.pem..."
    )
    group.add_argument("--tls-psk", default="", metavar="FILE", help="pre-shared keys, USERNAME:HEX a line")
    group.add_argument("--tls-verify-peer", action="store_true", help="clients need a certificate that the CA signed")


def service(
    arguments: argparse.Namespace, place: Place | None = None, *, structured: bool = True, any_name: bool = False
) -> Service:
    """What the options ask for.  Raises UsageError and UserError."""
    uris = tuple(parse_uri(text) for text in arguments.listen)
    place = replace(place, uris=(*place.uris, *uris)) if place else Place(uris)
    if arguments.max_clients < 1:
        raise UsageError("--max-clients must be at least 1")
    limits = replace(
        DEFAULTS, clients=arguments.max_clients, handshake=arguments.handshake_timeout, idle=arguments.idle_timeout
    )
    wanted = [uri.tls_options for uri in place.uris if uri.tls]
    folder = arguments.tls_certificates or next(
        (options.certificates for options in wanted if options.certificates), ""
    )
    psk = arguments.tls_psk or next((options.psk_file for options in wanted if options.psk_file), "")
    mode = arguments.tls or ("require" if wanted else "on" if folder or psk else "off")
    if mode == "off":
        if wanted or folder or psk:
            raise UsageError("--tls=off goes neither with nbds:// nor with certificates or keys")
        if arguments.tls_verify_peer:
            raise UsageError("--tls-verify-peer is about TLS: give --tls-certificates too")
        return Service(place, None, False, limits, structured, any_name)
    if place.stdio:
        raise UsageError("standard input and output have no TLS")
    context = server_context(folder, psk, verify_peer=arguments.tls_verify_peer)
    place = replace(place, uris=tuple(_with_tls(uri, mode) for uri in place.uris))
    return Service(place, context, mode == "require", limits, structured, any_name)


def _with_tls(uri: Uri, mode: str) -> Uri:
    if mode == "require" and not uri.tls:
        return replace(uri, tls=True, tls_options=TlsOptions())
    return uri


def address_uris(
    unix: Sequence[str], host: str | None, port: int | None, vsock: bool, export: str = ""
) -> tuple[tuple[Uri, ...], bool]:
    """The URIs of -U, -i, -p and --vsock, and whether a private socket (`-U -`) is wanted."""
    addresses: list[Address] = [Unix(socket_path(path)) for path in unix if path != "-"]
    number = PORT if port is None else port if vsock else parse_port(str(port))
    if vsock:
        addresses.append(Vsock(None, number))
    elif host is not None or port is not None:
        addresses.append(Tcp(host_name(host or "") or "localhost", number))
    return tuple(Uri(address, export) for address in addresses), "-" in unix


@asynccontextmanager
async def live_server(what: Service, exports: Exports) -> AsyncIterator[tuple[Server, list[Uri]]]:
    """Serve for the block: the server, and the URIs at which it is reached.  Standard input is the caller's to serve.

    Raises UserError for a place that cannot be had.
    """
    called = next(filter(None, (uri.export for uri in what.place.uris)), "")
    _check_names(what, [export.name or called for export in exports])
    served = ServedExports(called=called, any_name=what.any_name)
    tls = Tls.OFF if what.tls is None else Tls.REQUIRE if what.require_tls else Tls.ON
    server = Server(served, Policy(tls, what.structured), tls=what.tls, limits=what.limits)
    with ExitStack() as stack:
        listeners, uris = _listeners(what, stack)
        for listener in listeners:
            if is_public(listener.address) and not what.require_tls:
                log.warning("listening on %s without TLS: anybody who reaches it may use it", listener)
        async with exports.offered_by(served), serving(server, listeners):
            yield server, [each for uri in uris for each in _one_for_each(uri, [name for name, _ in served.names()])]


def _one_for_each(uri: Uri, names: Sequence[str]) -> list[Uri]:
    """The URI of each export, first that of the one it names."""
    return [uri.with_export(name) for name in sorted(names, key=lambda name: name != uri.export)]


def _check_names(what: Service, names: Sequence[str]) -> None:
    """Refuse a URI with the name of an export that is not there.  Without any, they are still to come."""
    for uri in what.place.uris:
        if uri.export and names and uri.export not in names:
            known = ", ".join(f"'{name}'" for name in names)
            raise UsageError(f"{uri}: there is no export '{uri.export}', but {known}")


def _listeners(what: Service, stack: ExitStack) -> tuple[list[Listener], list[Uri]]:
    place = what.place
    if place.stdio:
        close_connections()
        return [], []
    made = list(place.uris)
    if place.private:
        made.append(Uri(stack.enter_context(private_socket()), tls=what.require_tls))
    opened = stack.enter_context(listening(made))
    listeners, uris = [listener for listener, _ in opened], [uri for _, uri in opened]
    given = [inherited(place.fd)] if place.fd is not None else activated()
    for listener in given:
        stack.callback(listener.close)
        listeners.append(listener)
        uris.append(Uri(reachable(listener.address), tls=what.require_tls))
    return listeners, list(dict.fromkeys(uris))
