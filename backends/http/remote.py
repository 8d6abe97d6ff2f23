"""Requests that survive the web: redirects, expired logins, busy servers, broken connections.

`exchange` is one request that may take several messages; `persist` repeats an attempt until it succeeds or its time is
over.  What a repetition cannot cure fails at once.
"""

from __future__ import annotations

import email.utils
import errno
import logging
import random
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from nbdfs.backends.http.access import Access, is_url
from nbdfs.backends.http.digest import ChallengeError
from nbdfs.backends.http.wire import Response, UnreachableError, UntrustedError, Wire, WireError
from nbdfs.errors import SourceError, UserError

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_HOPS = 10
_URL_CHARACTERS = "".join(map(chr, range(0x21, 0x7F)))  # what `quote` leaves as it is
_REDIRECTS = (301, 302, 303, 307, 308)
_KEEPING_METHOD = (307, 308)
_REFUSALS = (400, 401, 403, 404, 410)  # how servers say that a signed URL, a login or a redirect's target has expired
_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_FIRST_DELAY = 0.05  # seconds, doubled each time
_LONGEST_DELAY = 5.0
_UNSATISFIABLE = 416  # passed to the caller: it tells the size


class BusyError(Exception):
    """The server asks to be left alone for a while: `after` is in seconds, 0 if it did not say how long."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.after = after


class Remote:
    """A resource on a web server.

    `timeout` is the seconds that `persist` may take, from when one of `slots` is free: a long read cut into many
    requests waits in line for the connections, and that is no fault of the server.
    """

    def __init__(self, wire: Wire, access: Access, timeout: float, slots: int) -> None:
        self._slots = trio.Semaphore(slots)
        self._wire = wire
        self._access = access
        self._timeout = timeout
        self._troubled: set[object] = set()  # what has failed and is tried again
        self.retries = 0

    @property
    def in_trouble(self) -> bool:
        """Whether something that failed is being tried again."""
        return bool(self._troubled)

    @property
    def shown(self) -> str:
        """The URL as it may be logged."""
        return self._access.shown

    @property
    def identity(self) -> str:
        """What tells it from every other resource."""
        identity = self._access.identity
        return f"{self.shown}?{identity}" if identity else self.shown

    async def persist(self, what: str, attempt: Callable[[], Awaitable[T]], *, patient: bool = True) -> T:
        """Make `attempt`s until one succeeds.  Raises SourceError when the time is over, or for good.

        Not `patient` means that a server out of reach is a failure at once.
        """
        key = object()
        async with self._slots:
            try:
                return await self._persist(what, attempt, patient, lambda: self._troubled.add(key))
            finally:
                self._troubled.discard(key)

    async def _persist(
        self, what: str, attempt: Callable[[], Awaitable[T]], patient: bool, troubled: Callable[[], None]
    ) -> T:
        delay = _FIRST_DELAY
        problem: Exception | None = None
        with trio.move_on_after(self._timeout) as scope:
            while True:
                after = 0.0
                try:
                    return await attempt()
                except (WireError, BusyError) as error:
                    problem = error
                    troubled()
                    if isinstance(error, UnreachableError) and not patient:
                        raise self.failure(f"cannot reach the server: {error}") from error
                    after = error.after if isinstance(error, BusyError) else 0.0
                pause = after or delay * (0.5 + random.random() / 2)  # noqa: S311 - only jitter
                if trio.current_time() + pause > scope.deadline:
                    break
                log.info("%s: %s: %s; trying again in %.1f s", self.shown, what, problem, pause)
                await trio.sleep(pause)
                self.retries += 1
                delay = min(delay * 2, _LONGEST_DELAY)
        reason = f": {problem}" if problem else ""
        raise self.failure(f"{what} failed, given up within {self._timeout:g} s{reason}", retryable=True)

    async def exchange(self, method: str, extra: Sequence[tuple[str, str]], content: bytes | None = None) -> Response:
        """Send a request; give the response that is a success or says 416.

        Raises WireError or BusyError if repeating may help, SourceError if not.
        """
        access = self._access
        url = access.final
        renewed = False
        for _ in range(_MOST_HOPS):
            seen = access.renewals
            response = await self._send(method, url, extra, content)
            if response.status < 300 or response.status == _UNSATISFIABLE:
                if access.renewals == seen:
                    access.final = url
                return response
            async with response:
                if response.status in _REDIRECTS:
                    url = self._target(method, url, response)
                elif response.status == 401 and self._challenge(url, response):
                    log.debug("%s: answering a digest challenge", self.shown)
                elif response.status in _REFUSALS and not renewed and await self._renew(seen):
                    url, renewed = access.final, True
                else:
                    raise self._refusal(response)
        raise self.failure("the server redirects in a circle")

    def failure(self, message: str, *, retryable: bool = False) -> SourceError:
        """An EIO that names the resource."""
        return SourceError(errno.EIO, message, where=self.shown, retryable=retryable)

    async def _send(self, method: str, url: str, extra: Sequence[tuple[str, str]], content: bytes | None) -> Response:
        try:
            return await self._wire.send(method, url, self._access.headers(method, url, extra), content)
        except UntrustedError as error:
            raise self.failure(
                f"the certificate is not accepted: {error}; give the authority's with ca=FILE"
            ) from error

    async def _renew(self, seen: int) -> bool:
        try:
            return await self._access.renew(seen)
        except UserError as error:
            raise self.failure(str(error)) from error

    def _challenge(self, url: str, response: Response) -> bool:
        try:
            return self._access.challenge(url, response.headers)
        except ChallengeError as error:
            raise self.failure(f"the server wants a login that is not possible here: {error}") from error

    def _target(self, method: str, url: str, response: Response) -> str:
        try:
            # Servers send blanks and UTF-8 as they are; browsers write them as a URL has them.
            location = urllib.parse.quote(response.headers["location"].encode("latin-1"), safe=_URL_CHARACTERS)
            target = urllib.parse.urldefrag(urllib.parse.urljoin(url, location)).url
        except (KeyError, ValueError):
            target = ""
        if not is_url(target):
            raise self.failure(f"a redirect ({response.status}) leads to no http or https URL")
        if url.startswith("https:") and target.startswith("http:"):
            raise self.failure("a redirect leads from https to http, where anyone can change the content")
        if method == "PUT" and response.status not in _KEEPING_METHOD:
            raise self.failure(f"a write is redirected with {response.status}, which means it was not done")
        log.debug("%s: redirected (%d)", self.shown, response.status)
        return target

    def _refusal(self, response: Response) -> Exception:
        if response.status in _RETRYABLE:
            return BusyError(
                f"the server says {response.status}", _retry_after(response.headers.get("retry-after", ""))
            )
        return self.failure(f"the server says {response.status}{_MEANINGS.get(response.status, '')}")


_MEANINGS = {
    401: ": a login is needed, or the one given is wrong (user=, password=)",
    403: ": forbidden",
    404: ": there is no such file",
    405: ": it does not allow that",
    407: ": the proxy wants a login (proxy-user=, proxy-password=)",
    410: ": the file is gone",
    501: ": it cannot do that",
}


def _retry_after(text: str) -> float:
    """Seconds from a Retry-After header: a number or a date (RFC 9110, 10.2.3); 0 if it has none."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
