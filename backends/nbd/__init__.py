"""The `nbd` source: an export of an NBD server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from nbdfs.errors import UsageError, UserError
from nbdfs.nbd.uri import SCHEMES, TlsOptions, Uri, parse_uri
from nbdfs.records import Record, fields
from nbdfs.registry import BOOLEAN, DURATION, INTEGER, PATH, SIZE, TEXT, OpenContext, SourceDriver, option
from nbdfs.source import Source

_MOST_CONNECTIONS = 1024


class NbdOptions(Record):
    connections: int = option(4, INTEGER, "how many connections to use, if the server can share an export between them")
    timeout: float = option(30.0, DURATION, "how long a request waits for its answer, also while reconnecting")
    reconnect: bool = option(True, BOOLEAN, "connect again when the server goes away")
    readahead: int = option(16 << 20, SIZE, "the most bytes to fetch ahead of a sequential reader; 0: none")
    discard: bool = option(False, BOOLEAN, "trim before zeroing: frees space where a server's zeroing alone does not")
    extended: bool = option(True, BOOLEAN, "use extended headers if the server has them")
    context: str = option("", TEXT, "further metadata contexts to ask for, with + between them")
    export: str = option("", TEXT, "the name of the export, where there is no URI")
    stdio: bool = option(False, BOOLEAN, "the captive server speaks on its standard input and output")
    fd: int = option(-1, INTEGER, "a connected socket that was inherited, instead of a URI")
    tls_certificates: str = option("", PATH, "folder with ca-cert.pem, and client-cert.pem and client-key.pem")
    tls_psk_file: str = option("", PATH, "file of pre-shared keys, lines of USERNAME:HEX")
    tls_hostname: str = option("", TEXT, "the name that the server's certificate must have")
    tls_username: str = option("", TEXT, "which pre-shared key to use")
    tls_verify_peer: bool = option(True, BOOLEAN, "check the server's certificate")


def uri_of(argument: str, options: NbdOptions) -> Uri:
    """The URI, with what the options say about TLS put over it.  Raises UsageError."""
    uri = parse_uri(argument)
    given = TlsOptions(
        options.tls_certificates,
        options.tls_psk_file,
        options.tls_hostname,
        options.tls_username,
        options.tls_verify_peer,
    )
    if given == TlsOptions():
        return uri
    if not uri.tls:
        raise UsageError(f"{argument}: the tls- options go with TLS only: write nbds instead of nbd at its beginning")
    own, usual = uri.tls_options, TlsOptions()
    merged = {
        name: value if (value := getattr(given, name)) != getattr(usual, name) else getattr(own, name)
        for name in fields(TlsOptions)
    }
    return Uri(uri.address, uri.export, True, TlsOptions(**merged))


@asynccontextmanager
async def _open(argument: str, options: NbdOptions, context: OpenContext) -> AsyncIterator[Source]:
    from nbdfs.backends.nbd.remote import Remote
    from nbdfs.backends.readahead import readahead
    from nbdfs.captive import captive
    from nbdfs.nbd.client import connected
    from nbdfs.nbd.links import ClientOptions
    from nbdfs.nbd.target import target_of_captive, target_of_descriptor, target_of_uri
    from nbdfs.source import ALLOCATION, RESIDENT

    if not 1 <= options.connections <= _MOST_CONNECTIONS:
        raise UsageError(f"nbd: connections must be from 1 to {_MOST_CONNECTIONS}")
    if options.timeout <= 0:
        raise UsageError("nbd: timeout must be more than 0")
    contexts = dict.fromkeys((ALLOCATION, RESIDENT, *filter(None, options.context.split("+"))))
    async with AsyncExitStack() as stack:
        if context.argv:
            server = await stack.enter_async_context(captive(context.argv, stdio=options.stdio))
            target = target_of_captive(server, options.export)
        elif options.fd >= 0:
            target = target_of_descriptor(options.fd, options.export)
        else:
            target = target_of_uri(uri_of(argument, options))
        client_options = ClientOptions(
            options.connections, options.timeout, options.reconnect, context.readonly, options.extended, tuple(contexts)
        )
        try:
            client = await stack.enter_async_context(connected(target, client_options))
        except OSError as error:
            raise UserError(str(error.strerror or error)) from error
        source: Source = Remote(client, target.name, discard=options.discard)
        if options.readahead:
            source = await stack.enter_async_context(readahead(source, options.readahead, 4 * options.readahead))
        yield source


DRIVER = SourceDriver("nbd", "an export of an NBD server", NbdOptions, open=_open, argument="URI", schemes=SCHEMES)
