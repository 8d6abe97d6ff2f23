"""Many requests over one connection: cookies, the order of sending, and who does the receiving.

The task that waits for the only request in flight receives for itself (it *leads*), which saves waking it up.  Once it
leaves with other requests in flight, the connection's reader task takes over until none is.

Invariants
* A cookie is in `_in_flight` from before its header leaves until its last reply came, and is never used again.
* A request that its caller gave up (an *orphan*) stays there; what still comes for it goes to scratch memory, so after
  `give_up` nobody touches the caller's buffer.
* At most one task receives: the one that set `_led`.  At most one sends: code without an await, or the holder of
  `_sending`.
* A message that left in part only, a protocol error and the end of the stream end the connection: `lost` is set, and
  every request in flight fails.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable

import trio

from nbdfs.errors import SourceError
from nbdfs.nbd.channel import WOULD_BLOCK, Channel
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.replies import Replies
from nbdfs.nbd.request import Request

_STAGE = 64 << 10  # bytes received at once where headers may be
_DIRECT = 8 << 10  # bytes of payload left that are worth a receive of their own, straight into place
_POLL_NS = 60_000  # how long a lone small request is polled for before its task sleeps
_POLLED = 64 << 10  # bytes; larger requests take longer than that anyway
_TRUST = 16  # how far polls that were answered are remembered
_DOUBT = 4  # how many of them one in vain undoes
_PROBE = 256  # without trust, one request of so many is polled for all the same


class ConnectionLostError(ConnectionError):
    """The connection ended before the reply came: the request may be sent again on another one."""


class Polling:
    """Whether a lone request is polled for: what all connections of a client share.

    Invariant: `in_flight` is the number of requests in flight on all of them; while there are several, the time is
    better spent on the others.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self._trust = _TRUST  # that a poll is answered in time

    def worth_while(self, request: Request) -> bool:
        if self.in_flight > 1 or request.weight > _POLLED:
            return False
        return self._trust > 0 or request.cookie % _PROBE == 0

    def told(self, answered: bool) -> None:
        """A poll was answered, or in vain."""
        self._trust = min(self._trust + 1, _TRUST) if answered else max(self._trust - _DOUBT, 0)


class Mux:
    """The transmission phase of one connection, from a channel that has finished its handshake.

    `run` must be running.  `load` is a measure of what is in flight, for who chooses between connections.
    """

    def __init__(self, channel: Channel, polling: Polling, *, structured: bool, extended: bool) -> None:
        self._channel = channel
        self._replies: Replies[Request] = Replies(Input(_STAGE), structured=structured, extended=extended)
        self._extended = extended
        self._in_flight = self._replies.in_flight
        self._next_cookie = 1
        self._sending = trio.Lock()
        self._led = False
        self._reader_wanted = trio.Event()
        self._polling = polling
        self.lost: ConnectionLostError | None = None
        self.ended = trio.Event()
        self.load = 0
        self.answered = False  # whether any request was carried out

    async def run(self) -> None:
        """The reader task, until the connection is lost."""
        while not self.lost:
            await self._reader_wanted.wait()
            self._reader_wanted = trio.Event()
            if self._led:
                continue
            self._led = True
            try:
                while self._in_flight:
                    if not self._receive_now():
                        await self._readable()
            finally:
                self._led = False

    async def perform(self, request: Request) -> None:
        """Send a request and wait for its reply.  Raises its error, or ConnectionLostError."""
        await self._send(request)
        if not request.done:
            if self._led or len(self._in_flight) > 1:
                await self._park(request)
            else:
                await self._lead(request)
        if request.error is not None:
            raise request.error

    def give_up(self, request: Request) -> None:
        """Nobody waits for this request any more; its buffer is the caller's again."""
        self._replies.give_up(request)

    def fail(self, error: OSError) -> None:
        """End the connection; every request in flight gets `error`."""
        if self.lost is None:
            self.lost = (
                error if isinstance(error, ConnectionLostError) else ConnectionLostError(errno.ECONNRESET, str(error))
            )
            self._channel.close()
            failed = list(self._in_flight.values())
            self._in_flight.clear()
            for request in failed:
                self._finish(request, error)
            self._reader_wanted.set()
            self.ended.set()

    def disconnect(self) -> None:
        """Say goodbye, if the server still listens, and close."""
        if self.lost is None:
            if not self._sending.locked():
                with contextlib.suppress(OSError):
                    self._channel.send_now(Request(nbd.CMD_DISC).message(self._extended))
            self.fail(ConnectionLostError(errno.ESHUTDOWN, "the connection was closed"))

    def overdue(self, before: float) -> list[Request]:
        """The requests in flight that were sent before then and that somebody waits for."""
        return [request for request in self._in_flight.values() if request.sent < before and not request.orphan]

    def _finish(self, request: Request, error: OSError | None) -> None:
        self.load -= request.weight
        self._polling.in_flight -= 1
        self.answered = self.answered or error is None
        request.finish(error)

    async def _send(self, request: Request) -> None:
        if self.lost:
            raise self.lost
        request.cookie = self._next_cookie
        self._next_cookie += 1
        message, payload = request.message(self._extended), request.payload
        if self._sending.locked():
            await self._sending.acquire()
            try:
                if self.lost:
                    raise self.lost
                await self._send_message(request, message, payload)
            finally:
                self._sending.release()
        else:
            await self._send_message(request, message, payload)

    async def _send_message(self, request: Request, message: bytes, payload: memoryview | None) -> None:
        """Send while nobody else can: whatever does not go at once goes under `_sending`."""
        self._in_flight[request.cookie] = request
        self.load += request.weight
        self._polling.in_flight += 1
        request.sent = trio.current_time()
        total = len(message) + (len(payload) if payload is not None else 0)
        try:
            sent = self._channel.send_now(message, payload)
            if sent < total:
                await self._send_rest(message, payload, sent)
        except trio.ClosedResourceError:
            self.fail(ConnectionLostError(errno.ECONNRESET, "the connection was closed"))
        except OSError as error:
            self.fail(ConnectionLostError(error.errno or errno.ECONNRESET, error.strerror or str(error)))

    async def _send_rest(self, message: bytes, payload: memoryview | None, sent: int) -> None:
        held = self._sending.locked()
        if not held:
            self._sending.acquire_nowait()
        self._want_reader()  # a server that cannot get rid of its replies reads no requests
        complete = False
        try:
            if sent < len(message):
                await self._channel.send_rest(memoryview(message)[sent:])
            if payload is not None:
                await self._channel.send_rest(payload[max(sent - len(message), 0) :])
            complete = True
        finally:
            if not held:
                self._sending.release()
            if not complete:
                self.fail(ConnectionLostError(errno.ECONNRESET, "a request was cancelled half-sent"))

    def _want_reader(self) -> None:
        if not self._led:
            self._reader_wanted.set()

    async def _park(self, request: Request) -> None:
        """Wait until whoever receives has found the reply."""
        self._want_reader()
        request.task = trio.lowlevel.current_task()

        def abort(_: Callable[[], object]) -> trio.lowlevel.Abort:
            request.task = None
            self.give_up(request)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _lead(self, request: Request) -> None:
        """Receive until the reply is here."""
        self._led = True
        try:
            if self._polling.worth_while(request):
                self._poll(request)
            while not request.done:
                if not self._receive_now():
                    await self._readable()
        finally:
            self._led = False
            if not request.done:
                self.give_up(request)
            if self._in_flight:
                self._reader_wanted.set()

    def _poll(self, request: Request) -> None:
        """Look for the reply for a moment."""
        until = time.perf_counter_ns() + _POLL_NS
        while not request.done:
            if not self._receive_now() and time.perf_counter_ns() > until:
                break
        self._polling.told(request.done)

    async def _readable(self) -> None:
        try:
            await self._channel.readable()
        except trio.ClosedResourceError:
            self.fail(ConnectionLostError(errno.ECONNRESET, "the connection was closed"))

    def _receive_now(self) -> bool:
        """Take what has arrived; False if nothing had."""
        if self.lost:
            return True
        replies, received = self._replies, 0
        direct = replies.payload_left > _DIRECT
        try:
            received = self._channel.recv_now(replies.place() if direct else replies.received.space())
            if received > 0:
                told = replies.payload_received if direct else replies.received.received
                told(received)
                while (request := replies.next_event()) is not None:
                    self._finish(request, request.error)
            if received == 0:
                raise ConnectionLostError(errno.ECONNRESET, f"{self._channel.peer} closed the connection")
        except ProtocolError as error:  # the stream is of no use any more
            self.fail(SourceError(errno.EIO, f"the server broke the protocol: {error}"))
        except OSError as error:
            self.fail(ConnectionLostError(error.errno or errno.ECONNRESET, error.strerror or str(error)))
        return received != WOULD_BLOCK
