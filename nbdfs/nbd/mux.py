"""Many requests over one connection: cookies, the order of sending, and the receiving of replies.

Invariants
* A cookie is in `_in_flight` from before its header leaves until its last reply came, and is never used again.
* A request that its caller gave up (an *orphan*) stays there; what still comes for it goes to scratch memory, and what
  of it has not left yet is copied, so after `give_up` nobody touches the caller's buffers.
* Sending and receiving are code without an await: whoever wants to may do either.  What the socket does not take stays
  in `_unsent`, in order, and the writer task goes on with it; while it waits for room, `_blocked` is set.
* A protocol error and the end of the stream end the connection: `lost` is set, and every request in flight fails.
"""

from __future__ import annotations

import contextlib
import errno
import time

import trio

from nbdfs import eager
from nbdfs.eager import Wake
from nbdfs.errors import SourceError
from nbdfs.nbd.channel import WOULD_BLOCK, Channel
from nbdfs.nbd.output import drop_sent
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.replies import Replies
from nbdfs.nbd.request import Request

_STAGE = 64 << 10  # bytes received at once where headers may be
_DIRECT = 8 << 10  # bytes of payload left that are worth a receive of their own, straight into place
_PROMPT = 0.001  # seconds: requests to a server that answers sooner cost more to send than to carry out
_TURN = 16  # receives in a row, after which other tasks have their turn
_BATCH = 16  # buffers that gather in one call; nbdkit has as many threads for a connection


class ConnectionLostError(ConnectionError):
    """The connection ended before the reply came: the request may be sent again on another one."""


class Mux:
    """The transmission phase of one connection, from a channel that has finished its handshake.

    `run` must be running.  `load` is a measure of what is in flight, for who chooses between connections.
    """

    def __init__(self, channel: Channel, *, structured: bool, extended: bool) -> None:
        self._channel = channel
        self._replies: Replies[Request] = Replies(Input(_STAGE), structured=structured, extended=extended)
        self._extended = extended
        self._in_flight = self._replies.in_flight
        self._next_cookie = 1
        self._unsent: list[bytes | memoryview] = []
        self._blocked = False
        self._writer_wanted = trio.Event()
        self.lost: ConnectionLostError | None = None
        self.load = 0
        self.answered = False  # whether any request was carried out
        self._prompt = False  # whether the reply that came last was a fast one

    async def run(self) -> None:
        """The reader and the writer task, until the connection is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            came = 0
            with contextlib.suppress(trio.ClosedResourceError):
                while not self.lost:
                    if not self.poll():
                        await self._channel.readable()
                        continue
                    came += 1
                    if came % _TURN == 0:  # a server may say more, and faster, than we can hear
                        await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def perform(self, request: Request) -> None:
        """Send a request and wait for its reply.  Raises its error, or ConnectionLostError."""
        self._send(request)
        if not request.done:

            def place(wake: Wake) -> None:
                request.wake = wake

            def abort() -> None:
                request.wake = None
                self.give_up(request)

            await eager.park(place, abort)
        if request.error is not None:
            raise request.error

    def give_up(self, request: Request) -> None:
        """Nobody waits for this request any more; its buffers are the caller's again."""
        self._replies.give_up(request)
        self._unsent = [bytes(buffer) for buffer in self._unsent]
        self._channel.own()

    def fail(self, error: OSError) -> None:
        """End the connection; every request in flight gets `error`."""
        if self.lost is None:
            self.lost = (
                error if isinstance(error, ConnectionLostError) else ConnectionLostError(errno.ECONNRESET, str(error))
            )
            self._channel.close()
            self._unsent = []
            failed = list(self._in_flight.values())
            self._in_flight.clear()
            with eager.held():
                for request in failed:
                    self._finish(request, error)

    def disconnect(self) -> None:
        """Say goodbye, if the server still listens, and close."""
        if self.lost is None:
            if not self._unsent:
                with contextlib.suppress(OSError):
                    self._channel.send_now([Request(nbd.CMD_DISC).message(self._extended)])
            self.fail(ConnectionLostError(errno.ESHUTDOWN, "the connection was closed"))

    def overdue(self, before: float) -> list[Request]:
        """The requests in flight that were sent before then.

        Those that were given up are among them: others wait for what a change does.
        """
        return [request for request in self._in_flight.values() if request.sent < before]

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._in_flight)

    @property
    def gathering(self) -> bool:
        """Whether requests wait here to leave together: another one costs less here than on a connection of its own."""
        return self._prompt and 0 < len(self._unsent) < _BATCH and not self._blocked and eager.corked()

    def poll(self) -> bool:
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
                with eager.held():
                    if (request := replies.next_event()) is not None:
                        self._prompt = time.monotonic() - request.sent < _PROMPT
                    while request is not None:
                        self._finish(request, request.error)
                        request = replies.next_event()
            if received == 0:
                raise ConnectionLostError(errno.ECONNRESET, f"{self._channel.peer} closed the connection")
        except ProtocolError as error:  # the stream is of no use any more
            self.fail(SourceError(errno.EIO, f"the server broke the protocol: {error}"))
        except OSError as error:
            self.fail(ConnectionLostError(error.errno or errno.ECONNRESET, error.strerror or str(error)))
        return received != WOULD_BLOCK

    def _finish(self, request: Request, error: OSError | None) -> None:
        self.load -= request.weight
        self.answered = self.answered or error is None
        request.finish(error)

    def _send(self, request: Request) -> None:
        if self.lost:
            raise self.lost
        request.cookie = self._next_cookie
        self._next_cookie += 1
        self._in_flight[request.cookie] = request
        self.load += request.weight
        request.sent = time.monotonic()
        unsent = self._unsent
        idle = not unsent
        unsent.append(request.message(self._extended))
        if request.payload is not None:
            unsent.append(request.payload)
        if idle:
            eager.later(self._flush)

    def _flush(self) -> None:
        """Send what the socket takes."""
        while self._unsent and not self._blocked:
            try:
                sent = self._channel.send_now(self._unsent)
            except OSError as error:
                self.fail(ConnectionLostError(error.errno or errno.ECONNRESET, error.strerror or str(error)))
                return
            if sent:
                drop_sent(self._unsent, sent)
            else:
                self._blocked = True
                self._writer_wanted.set()

    async def _write(self) -> None:
        """The writer task: go on sending when there is room."""
        while True:
            await self._writer_wanted.wait()
            self._writer_wanted = trio.Event()
            with contextlib.suppress(trio.ClosedResourceError):
                await self._channel.writable()
                self._blocked = False
                self._flush()
