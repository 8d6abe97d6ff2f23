"""HTTP over httpcore2 on trio: HTTP/2 and proxies.  The only module that knows it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpcore2

from nbdfs.backends.http.wire import Headers, Proxy, Response, UnreachableError, UntrustedError, Wire, WireError

_KEEP_ALIVE = 30.0  # seconds an idle connection is kept

_FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.ProxyError,
    ssl.SSLError,
)


class PooledResponse(Response):
    """A response of the library."""

    def __init__(self, response: httpcore2.Response) -> None:
        http2 = response.extensions.get("http_version") == b"HTTP/2"
        super().__init__(response.status, response.headers, delimited=http2)
        self._response = response
        self._chunks: AsyncIterator[bytes] | None = None
        self._chunk = memoryview(b"")  # what has come and nobody took yet

    async def receive_into(self, buffer: memoryview) -> int:
        if self._chunks is None:
            self._chunks = aiter(self._response.aiter_stream())
        while not self._chunk:
            with _translated():
                try:
                    self._chunk = memoryview(await anext(self._chunks))
                except StopAsyncIteration:
                    return 0
        count = min(len(buffer), len(self._chunk))
        buffer[:count], self._chunk = self._chunk[:count], self._chunk[count:]
        return count

    async def aclose(self) -> None:
        with _translated():
            await self._response.aclose()


class Pooled(Wire):
    """A pool of connections.

    `connections` is the most there may be at once, `stall` the seconds without a byte after which an attempt has
    failed; `unix` is the path of a socket that takes the place of the network.
    """

    def __init__(
        self, *, context: ssl.SSLContext, connections: int, stall: float, http2: bool, proxy: Proxy | None, unix: str
    ) -> None:
        self._timeout = {"timeout": dict.fromkeys(("connect", "read", "write"), stall)}
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=connections,
            keepalive_expiry=_KEEP_ALIVE,
            http2=http2,
            uds=unix or None,
            proxy=_proxy(proxy) if proxy else None,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def send(self, method: str, url: str, headers: Headers, content: bytes | None = None) -> Response:
        request = httpcore2.Request(
            method,
            url,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            content=content,
            extensions=self._timeout,
        )
        with _translated():
            return PooledResponse(await self._pool.handle_async_request(request))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        causes = list(_causes(error))
        said = next((text for cause in causes if (text := str(cause))), type(error).__name__)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            raise UntrustedError(said) from error
        if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
            raise UnreachableError(said) from error
        if isinstance(error, httpcore2.TimeoutException):
            raise WireError("the server went silent") from error
        raise WireError(said) from error
    except UnicodeError as error:  # a server may send us anywhere
        raise UnreachableError("this is no name of a host") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what lies beneath it: the library hands the cause on as an argument."""
    while error is not None:
        yield error
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = error.__cause__ or inner


def _proxy(proxy: Proxy) -> httpcore2.Proxy:
    user, password = (text.encode("utf-8", "surrogateescape") for text in (proxy.user, proxy.password))
    return httpcore2.Proxy(proxy.url, auth=(user, password) if user else None)
