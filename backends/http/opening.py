"""Open the `http` source: URL and TLS, the probe, and the fallback for servers without ranges."""

from __future__ import annotations

import logging
import ssl
import tempfile
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import BinaryIO

import trio

from nbdfs.backends.http.access import Access, is_url, parse_login, read_text
from nbdfs.backends.http.direct import Direct
from nbdfs.backends.http.options import HttpOptions
from nbdfs.backends.http.remote import BusyError, Remote
from nbdfs.backends.http.resource import Resource, probe, refuse_coding
from nbdfs.backends.http.wire import Proxy, Wire, WireError
from nbdfs.errors import UsageError, UserError
from nbdfs.plans import without_secrets
from nbdfs.registry import OpenContext
from nbdfs.scratch import temporary_directory
from nbdfs.source import Source

log = logging.getLogger(__name__)

_DOWNLOADS = 3
_STALL = 3  # an attempt may be silent for this part of the time a request has


@asynccontextmanager
async def open_http(argument: str, options: HttpOptions, context: OpenContext) -> AsyncIterator[Source]:
    """Open a URL: http, https or http+unix (the socket's path percent-encoded in the host's place)."""
    if options.connections < 1 or options.timeout <= 0:
        raise UsageError("http: connections and timeout must be more than nothing")
    url, unix = _location(argument, options)
    async with _wire(options, None if unix else _proxy(url, options), unix) as wire:
        access = Access(url, options)
        await access.prepare()
        remote = Remote(wire, access, options.timeout, options.connections)
        facts = await remote.persist("opening", lambda: probe(remote), patient=False)
        writable = options.writable and not context.readonly
        if facts.ranges:
            yield Resource(remote, facts, writable=writable)
        elif options.fallback == "download":
            with tempfile.TemporaryFile(dir=temporary_directory()) as file:
                await _download(remote, file)
                async with context.open(f"readonly::file:/proc/self/fd/{file.fileno()}") as source:
                    yield source
        else:
            raise remote.failure("the server cannot send parts of a file; fallback=download fetches it whole")


def _location(argument: str, options: HttpOptions) -> tuple[str, str]:
    """The URL to ask for and the socket that takes the network's place."""
    if not argument:
        if options.url_script:
            return "", ""
        raise UsageError("http: a URL is missing: http://HOST/PATH")
    if not is_url(argument, "http+unix"):
        raise UsageError(
            f"'{without_secrets(argument)}' is not a URL: write http://HOST/PATH with special characters as %XX"
        )
    parts = urllib.parse.urlsplit(argument)
    if parts.scheme == "http+unix":
        socket = urllib.parse.unquote(parts.netloc)
        if not socket.startswith("/"):
            raise UsageError("http+unix: write the socket's path in the host's place: http+unix://%2Frun%2Fsock/PATH")
        return urllib.parse.urlunsplit(("http", "localhost", parts.path or "/", parts.query, "")), socket
    return urllib.parse.urldefrag(argument).url, ""


def _wire(options: HttpOptions, proxy: Proxy | None, unix: str) -> Wire:
    context, stall = _tls(options), options.timeout / _STALL
    if not (proxy or options.http2):
        return Direct(context=context, connections=options.connections, stall=stall, unix=unix)
    from nbdfs.backends.http.pooled import Pooled

    return Pooled(
        context=context, connections=options.connections, stall=stall, http2=options.http2, proxy=proxy, unix=unix
    )


def _tls(options: HttpOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"ca: no certificates in {options.ca}: {error.strerror or error}") from error
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _proxy(url: str, options: HttpOptions) -> Proxy | None:
    parts = urllib.parse.urlsplit(url)
    proxy = options.proxy
    if not proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy in ("", "none"):
        return None
    whole = proxy if "://" in proxy else f"http://{proxy}"
    if not is_url(whole):
        raise UsageError("http: what proxy= names is no HTTP proxy: write http://HOST:PORT")
    split = urllib.parse.urlsplit(whole)
    login, _, host = split.netloc.rpartition("@")
    user, password = parse_login(login)
    if options.proxy_password:
        password = read_text(options.proxy_password, "Password at the proxy")
    return Proxy(f"{split.scheme}://{host}", options.proxy_user or user, password)


async def _download(remote: Remote, file: BinaryIO) -> None:
    """Fetch the whole file; begin anew, a few times, where the connection breaks."""
    problem: Exception | None = None
    for _ in range(_DOWNLOADS):
        try:
            await _download_once(remote, file)
        except (WireError, BusyError) as error:
            problem = error
            log.warning("%s: the download broke off: %s", remote.shown, error)
        else:
            return
    raise remote.failure(f"the download broke off {_DOWNLOADS} times: {problem}")


async def _download_once(remote: Remote, file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()
    async with await remote.exchange("GET", []) as response:
        if response.status != 200:
            raise remote.failure(f"the server answers with {response.status}")
        refuse_coding(remote, response)
        if not response.delimited:
            raise remote.failure("the server does not tell where the file ends, so nobody could know if all came")
        log.info("%s: fetching all of it (%s bytes)", remote.shown, response.headers.get("content-length", "unknown"))
        async with aclosing(response.body()) as body:
            async for chunk in body:
                await trio.to_thread.run_sync(file.write, chunk)
    await trio.to_thread.run_sync(file.flush)
