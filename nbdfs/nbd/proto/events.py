"""What the protocol's machines hand out: the facts of an export, options, requests, and what ends a connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nbdfs.records import Record

LEAST_IN_RUN = 3  # requests; fewer are carried out as fast one by one
LONGEST_IN_RUN = 32 << 10  # bytes of a request
MOST_IN_RUN = 256 << 10  # bytes of all requests


class ProtocolError(Exception):
    """The peer broke the protocol in a way that leaves the two ends out of step: the connection must end."""


class ExportFacts(Record):
    """What a server tells about an export: sizes in bytes, and the transmission flags that hold for every client."""

    name: str
    size: int
    flags: int
    description: str = ""
    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 << 20
    contexts: tuple[str, ...] = ()


class Agreed:
    """What a handshake has agreed on so far.  `contexts` names the chosen metadata contexts by id."""

    def __init__(
        self,
        *,
        fixed: bool = False,
        no_zeroes: bool = False,
        tls: bool = False,
        structured: bool = False,
        extended: bool = False,
        contexts: dict[int, str] | None = None,
    ) -> None:
        self.fixed = fixed
        self.no_zeroes = no_zeroes
        self.tls = tls
        self.structured = structured
        self.extended = extended
        self.contexts = contexts or {}
        self.contexts_export: str | None = None

    def forget(self) -> None:
        """TLS begins: what was agreed on in the clear counts no more."""
        self.structured = self.extended = False
        self.contexts = {}
        self.contexts_export = None


class Option(NamedTuple):
    """One option of the haggling, its data not looked at yet."""

    number: int
    data: bytes


class Request(NamedTuple):
    """A request that may be carried out.  `length` bytes of payload follow if it is a WRITE.

    `contexts` are the ids that a BLOCK_STATUS asks for.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    contexts: Sequence[int] = ()


class Run(NamedTuple):
    """READs or WRITEs of one length, without flags, that were received one behind the other.

    `payloads` are those of WRITEs, where they were received.
    """

    command: int
    length: int
    cookies: list[int]
    offsets: list[int]
    payloads: list[memoryview]

    def extend(self, other: Run) -> None:
        """Append another of the same command and length."""
        self.cookies.extend(other.cookies)
        self.offsets.extend(other.offsets)
        self.payloads.extend(other.payloads)

    def request(self, index: int) -> Request:
        """One of them."""
        return Request(self.command, 0, self.cookies[index], self.offsets[index], self.length)

    def some(self, indices: Iterable[int]) -> Run:
        """Some of them."""
        cookies, offsets, payloads = self.cookies, self.offsets, self.payloads
        chosen = list(indices)
        return self._replace(
            cookies=[cookies[index] for index in chosen],
            offsets=[offsets[index] for index in chosen],
            payloads=[payloads[index] for index in chosen] if payloads else [],
        )


class Refused(NamedTuple):
    """A request that the protocol forbids: answer it with `error` (an NBD error value)."""

    request: Request
    error: int
    message: str


class Disconnect(NamedTuple):
    """The client is done; what is in flight is still to be answered."""
