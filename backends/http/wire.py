"""HTTP on the wire: one request, one response.  The only module that knows the HTTP library.

The library is httpcore2 (the transport of httpx2) on trio: connection pool with keep-alive, HTTP/1.1 and HTTP/2, TLS
and proxies.  What it does not do, redirects, login, retries and checking what was asked against what came, is done by
the modules above.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpcore2

_KEEP_ALIVE = 30.0  # seconds an idle connection is kept

_FAILURES = (
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.ProxyError,
    ssl.SSLError,
)


class WireError(Exception):
    """The request failed on its way; the same one may succeed later."""


class UnreachableError(WireError):
    """There is no connection to the server at all."""


class UntrustedError(Exception):
    """The server's certificate is not accepted."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy: its URL without user and password, and these."""

    url: str
    user: str = ""
    password: str = ""


class Response:
    """The head of a response, and its body as it comes.

    An async context manager; leaving it before the end of the body closes the connection.
    """

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response
        self.status = response.status
        self.headers: dict[str, str] = {}
        for name, value in response.headers:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())
        self.delimited = (  # whether an early end of the body would be seen (RFC 9112, 6.3)
            "content-length" in self.headers
            or "transfer-encoding" in self.headers
            or response.extensions.get("http_version") == b"HTTP/2"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _translated():
            await self._response.aclose()

    async def body(self) -> AsyncGenerator[bytes]:
        """The body as it comes, no content coding undone; to be closed (`aclosing`).

        Raises WireError if it breaks off.
        """
        with _translated():
            async with aclosing(self._response.aiter_stream()) as chunks:
                async for chunk in chunks:
                    yield chunk


class Wire:
    """A pool of connections, used as an async context manager.

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def send(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], content: bytes | None = None
    ) -> Response:
        """Send one request and receive the head of its response, whatever its status.

        Raises WireError, UnreachableError or UntrustedError.
        """
        request = httpcore2.Request(
            method,
            url,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            content=content,
            extensions=self._timeout,
        )
        with _translated():
            return Response(await self._pool.handle_async_request(request))


class Digest:
    """Digest authentication (RFC 7616): answers the server's last challenge."""

    def __init__(self, user: str, password: str) -> None:
        import httpx2

        self._auth = httpx2.DigestAuth(user, password)

    def challenged(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        """Take in the challenge of a 401 response.  Raises WireError if it makes no sense."""
        import httpx2

        flow = self._auth.auth_flow(httpx2.Request(method, url))
        try:
            next(flow)
            flow.send(httpx2.Response(401, headers={"www-authenticate": headers["www-authenticate"]}))
        except StopIteration:
            return
        except (httpx2.ProtocolError, NotImplementedError, ValueError) as error:
            raise WireError(f"cannot answer its digest challenge: {error}") from error

    def authorization(self, method: str, url: str) -> str:
        """The value of the Authorization header for a request, empty before any challenge."""
        import httpx2

        request = next(self._auth.auth_flow(httpx2.Request(method, url)))
        return request.headers.get("authorization", "")


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


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what lies beneath it: the library hands the cause on as an argument."""
    while error is not None:
        yield error
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = error.__cause__ or inner


def _proxy(proxy: Proxy) -> httpcore2.Proxy:
    return httpcore2.Proxy(proxy.url, auth=(proxy.user, proxy.password) if proxy.user else None)
