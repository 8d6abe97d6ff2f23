"""The other end of control sockets, for commands: blocking, and for a bounded time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbdfs.control import place, protocol
from nbdfs.control.protocol import LONGEST_REQUEST, Request, RequestError
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.mountpoint import mountpoint
from nbdfs.records import Record

_CONNECT = 2.0  # seconds
_REPLY = 150.0  # seconds: a little more than the other end takes at most
_LOOK = 3.0  # seconds that a process gets to tell about itself
_SHORTEST = 0.001  # seconds: 0 would not wait at all
_LONGEST_REPLY = 64 << 20  # bytes
_MOST_THREADS = 32


class Client:
    """A connection to the control socket of one process."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if nobody answers there."""
        self.path = path
        try:
            connection = place.connect(path, _CONNECT)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        if connection is None:
            raise UserError(f"{path}: its process is gone")
        self._socket = connection
        self._received = bytearray()
        self._trouble = ""  # why it is not asked any more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(self, method: str, seconds: float = _REPLY, /, **params: object) -> Any:
        """The result of a method.  Raises what the other end does: UserError, UsageError."""
        request = Request(method, params, 1).encode()
        if len(request) > LONGEST_REQUEST:
            raise UserError(f"{method}: this is too long, a request has at most {LONGEST_REQUEST} bytes")
        if self._trouble:
            raise UserError(self._trouble)
        end = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(request)
            return protocol.parse_reply(self._line(end))
        except RequestError as error:
            raise (UsageError if error.code == protocol.Code.USAGE else UserError)(str(error)) from None
        except (OSError, ValueError) as error:
            self._trouble = f"{self.path} does not answer: {reason(error)}"  # a late reply is none to another request
            raise UserError(self._trouble) from error

    def _line(self, until: float) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            self._socket.settimeout(max(until - time.monotonic(), _SHORTEST))
            data = self._socket.recv(1 << 20)
            if not data or len(self._received) > _LONGEST_REPLY:
                raise ConnectionError("it hung up" if not data else "its reply is too long")
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


class Process(Record):
    """What a process tells about itself, or why it does not: `facts` is then empty."""

    path: Path
    facts: dict[str, Any]
    trouble: str = ""


def processes(method: str = "about") -> list[Process]:
    """Ask all processes of the user at once; dead ones are left out."""
    paths = list(place.sockets())
    with ThreadPoolExecutor(_MOST_THREADS) as threads:
        return [found for found in threads.map(lambda path: _ask(path, method), paths) if found]


def _ask(path: Path, method: str) -> Process | None:
    try:
        with Client(path) as client:
            return Process(path, client.call(method, _LOOK))
    except UserError as error:
        return Process(path, {}, str(error)) if path.exists() else None


def find(place: str) -> Client:
    """A connection to the process of a mounted path, an NBD URI, a name of the configuration or a process id.

    Raises UserError.
    """
    return Client(find_process(place).path)


def find_process(place: str, method: str = "about") -> Process:
    """What that process tells about itself.  Raises UserError."""
    found = processes(method)
    names = _names(place)
    for process in found:
        facts = process.facts
        if facts and names & {facts["target"], facts.get("name"), str(facts["pid"]), *facts["uris"]}:
            return process
    troubles = [process.trouble for process in found if process.trouble]
    hint = f" ({troubles[0]})" if troubles else ": `nbdfs list` shows what there is"
    raise UserError(f"no mount or server of yours is {place}{hint}")


def _names(place: str) -> set[str]:
    """What a process may call itself that the user calls `place`.  Looks at no mount, which might not answer."""
    return {place, mountpoint(place)}
