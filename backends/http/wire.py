"""A way to a web server: one request, one response whose body is received into the caller's memory.

`direct` goes over connections of our own, `pooled` over those of an HTTP library, for HTTP/2 and proxies.  What neither
does, redirects, login, retries and checking what was asked against what came, is done by the modules above.
"""

from __future__ import annotations

import abc
import urllib.parse
from collections.abc import AsyncGenerator, Iterable, Sequence
from types import TracebackType
from typing import Self

from nbdfs.records import Record

_CHUNK = 64 << 10  # bytes received at once where nobody has said how much is wanted

Headers = Sequence[tuple[str, str]]


class WireError(Exception):
    """The request failed on its way; the same one may succeed later."""


class UnreachableError(WireError):
    """There is no connection to the server at all."""


class UntrustedError(Exception):
    """The server's certificate is not accepted."""


class Proxy(Record):
    """An HTTP proxy: its URL without user and password, and these."""

    url: str
    user: str = ""
    password: str = ""


def carried(text: str) -> str:
    """Text as a header carries it: a letter for each byte of its UTF-8, or of what was no UTF-8 when we got it."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def target_of(url: str) -> str:
    """What the line of a request for a URL asks the server for."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))


class _Closed(abc.ABC):
    """An async context manager whose end is `aclose`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Be done with it."""


class Response(_Closed):
    """The head of a response, and its body as it comes.

    An async context manager; leaving it before the end of the body closes the connection.  `delimited` says whether an
    early end of the body would be seen (RFC 9112, 6.3).
    """

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, delimited: bool = False) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        for name, value in headers:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())
        self.delimited = delimited or "content-length" in self.headers or "transfer-encoding" in self.headers

    @abc.abstractmethod
    async def receive_into(self, buffer: memoryview) -> int:
        """Receive what comes next of the body, no content coding undone; 0 at its end.

        Raises WireError if it breaks off.
        """

    async def body(self) -> AsyncGenerator[bytes]:
        """The body as it comes; to be closed (`aclosing`).  Raises WireError if it breaks off."""
        buffer = memoryview(bytearray(_CHUNK))
        while count := await self.receive_into(buffer):
            yield bytes(buffer[:count])


class Wire(_Closed):
    """Connections to servers, used as an async context manager; `aclose` closes them all."""

    @abc.abstractmethod
    async def send(self, method: str, url: str, headers: Headers, content: bytes | None = None) -> Response:
        """Send one request and receive the head of its response, whatever its status.

        Raises WireError, UnreachableError or UntrustedError.
        """
