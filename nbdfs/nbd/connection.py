"""One client of the server, from the greeting to the end.

One task reads.  Requests to a source that never waits are carried out by that task (`immediate.py`), small ones to a
source that does several at once too (`batches.py`).  Any other request is a flight: begun on the spot where the source
can do that, else a task; a slow one delays no other.  The replies to requests that came in one piece, and are carried
out at once, go out in one piece.  Memory in flight is bounded by reservations, and who may not reserve is not read
from.

Invariants
* A buffer of the pool belongs to one request from before its payload is received until its reply is sent.
* Replies that borrow memory (views, rooms) are flushed before the reading task's next checkpoint, or their
  bytes are copied; only the reading task queues such replies.
* What was reserved is released exactly once, with the buffer.
* Every request is answered exactly once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from nbdfs import eager
from nbdfs.export import Export
from nbdfs.flights import Flight, Flights
from nbdfs.nbd.batches import Batches
from nbdfs.nbd.exports import facts_of
from nbdfs.nbd.immediate import Immediate
from nbdfs.nbd.limits import OVERHEAD
from nbdfs.nbd.operations import Operations
from nbdfs.nbd.output import Output
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Disconnect, ExportFacts, ProtocolError, Refused, Request
from nbdfs.nbd.proto.handshake import ServerHandshake, State
from nbdfs.nbd.proto.transmission import ServerTransmission
from nbdfs.nbd.reception import HungUpError, Reception
from nbdfs.nbd.stream import SocketStream, Stream, TlsStream
from nbdfs.source import Caps, Source
from nbdfs.undo import unless_done

if TYPE_CHECKING:
    from nbdfs.nbd.server import Server

log = logging.getLogger(__name__)

_READING = frozenset([nbd.CMD_READ, nbd.CMD_CACHE, nbd.CMD_BLOCK_STATUS])
_FAREWELL = 1.0  # seconds in which a client that still shakes hands may hear that the server stops


class Connection:
    """A client."""

    def __init__(self, server: Server, stream: Stream) -> None:
        self._server = server
        self._limits = server.limits
        self._reception = Reception(
            stream,
            server.limits,
            alone=lambda: server.alone(self),
            awaited=self._awaited,
            forward=self._forward,
            rest=self._rest,
        )
        self._input = self._reception.input
        self._output = Output(stream, self._limits.stall)
        self._greeting = trio.move_on_after(self._limits.handshake)
        self._reading = trio.CancelScope()
        self._handshake = ServerHandshake(server.exports, server.policy)
        self._in_transmission = False
        self._flights: Flights[_Flight] = Flights()
        self._push_is_due = False
        self._immediate: Immediate | None = None  # of a source that never waits
        self._batches: Batches | None = None  # of a source that has a use for them
        self._poller: Callable[[], bool] | None = None  # of the source

    async def run(self) -> None:
        """Serve until the client leaves or breaks the protocol, in one line of the log."""
        peer = self._reception.stream.peer
        try:
            with self._greeting:
                await self._shake_hands()
            if self._greeting.cancelled_caught and not self._handshake.stopping:
                raise ProtocolError(f"no handshake within {self._limits.handshake:g} s")
            if self._handshake.state is State.TRANSMISSION:
                await self._transmit()
            log.info("%s: disconnected", peer)
        except HungUpError:
            log.info("%s: hung up", peer)
        except ProtocolError as error:
            log.warning("%s: dropped: %s", peer, error)
        except OSError as error:
            log.info("%s: lost: %s", peer, error.strerror or error)
        finally:
            self._output.close()
            self._reception.stream.close()
            # They name this connection: neither shall keep the other alive, and all that a client has.
            del self._reception
            self._immediate = self._batches = None

    def stop(self) -> None:
        """Take no more requests; `run` ends when what is in flight is answered."""
        self._handshake.stopping = True
        if self._in_transmission:
            self._reading.cancel()
        else:
            self._greeting.deadline = min(self._greeting.deadline, trio.current_time() + _FAREWELL)

    # Handshake

    async def _shake_hands(self) -> None:
        handshake = self._handshake
        self._output.put(handshake.greeting())
        await self._output.flush()
        while handshake.state not in (State.TRANSMISSION, State.CLOSED):
            if handshake.state is State.STARTING_TLS:
                await self._start_tls()
            await self._reception.some()
            while said := handshake.advance(self._input):
                self._output.put(said)
                await self._output.flush()

    async def _start_tls(self) -> None:
        if len(self._input):
            raise ProtocolError("data sent in the clear after TLS was agreed on")
        plain = self._reception.stream
        if not isinstance(plain, SocketStream) or self._server.tls is None:
            raise ProtocolError("TLS over a stream that is no socket")
        self._reception.stream = stream = TlsStream(plain, self._server.tls)
        self._output = Output(stream, self._limits.stall)
        await stream.handshake()
        self._handshake.tls_started()

    # Transmission

    async def _transmit(self) -> None:
        handshake = self._handshake
        facts = handshake.export
        assert facts is not None
        export = self._server.exports.export(facts.name)
        if export is None:
            raise ProtocolError(f"the export '{facts.name}' was removed during the handshake")
        async with export.client():
            if export.removed or facts_of(export, facts.name) != facts:
                raise ProtocolError(f"the export '{facts.name}' was changed during the handshake")
            log.info("%s: export '%s', %d bytes", self._reception.stream.peer, facts.name, facts.size)
            await self._answer_requests(export, facts)

    async def _answer_requests(self, export: Export, facts: ExportFacts) -> None:
        handshake = self._handshake
        self._machine = ServerTransmission(facts, handshake.agreed, handshake.transmission_flags(facts), self._input)
        self._reception.machine = self._machine
        self._output.failed = self._reading.cancel
        self._memory = self._server.memory_of(export)
        self._output.wanted = self._reception.wanted = self._memory.wanted
        self._source = export.source
        immediate = Caps.IMMEDIATE in export.source.info.caps and not export.before_access
        borrows = immediate and facts.maximum <= self._limits.client_memory
        self.operations = Operations(export, self._machine, self._output, borrows=borrows)
        self._eager = export.source.eager and not export.before_access
        if immediate:
            self._immediate = Immediate(
                self._server.buffers,
                self._memory,
                export.source,
                self._machine,
                self.operations,
                self._output,
                self._reception,
                self._flush,
            )
        if export.source.batches and not export.before_access:
            self._batches = Batches(
                export.source, self._machine, self._output, self._reception, self._flush, self._singly
            )
        self._poller = export.source.poller()
        self._in_transmission = True
        ended: Exception | None = None
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self._flights.watch, self._limits.request, self._overdue)
            try:
                with self._reading:
                    if not handshake.stopping:
                        await self._read_requests()
            except (HungUpError, ProtocolError, OSError) as error:
                ended = error  # what is in flight is carried out all the same
            try:
                await self._settle()
                eager.uncork()
                await self._flights.fewer_than(1)
                if not ended:
                    with trio.move_on_after(self._limits.stop):
                        await self._output.flush()
            except OSError as error:  # nobody takes replies any more
                ended = ended or error
            finally:
                self._flights.cancel()
            self.nursery.cancel_scope.cancel()
        try:
            if ended:
                raise ended
        finally:
            ended = None  # else it and this frame, and all that a client has, would keep each other alive

    async def _read_requests(self) -> None:
        machine, immediate = self._machine, self._immediate
        together = self._batches or immediate
        while True:
            if together and (run := machine.next_run()):
                await together.run(run)
            elif (event := machine.next_event()) is None:
                await self._flush()
                await self._reception.some()
            elif isinstance(event, Request):
                if self._batches is None or not await self._batches.request(event):
                    await self._carry_out(event)
            elif isinstance(event, Refused):
                self.operations.refuse(event.request, event.error, event.message)
            elif isinstance(event, Disconnect):
                return
            if immediate is not None and immediate.crowded:
                await self._flush()

    async def _carry_out(self, request: Request) -> None:
        if self._immediate is None or not await self._immediate.request(request):
            await self._begin(request)

    async def _singly(self, request: Request, payload: memoryview | None) -> None:
        """Carry out a small request that was put off by itself after all."""
        if self._immediate is None:
            await self._begin(request, payload)
        elif payload is None:
            await self._carry_out(request)
        else:
            await self.operations.perform(request, payload)

    # Requests that may wait

    async def _begin(self, request: Request, received: memoryview | None = None) -> None:
        """Begin a flight; `received` is the payload of a WRITE if it is here already."""
        payload = request.length if request.command in (nbd.CMD_READ, nbd.CMD_WRITE) else 0
        weight = payload + OVERHEAD
        if not self._memory.reserve_now(weight):
            eager.uncork()
            await self._output.flush()
            await self._memory.reserve(weight)
        buffer = self._server.buffers.take(payload) if payload else None
        if buffer is not None and request.command == nbd.CMD_WRITE:
            with unless_done(lambda: self.give_back(weight, buffer)):
                if received is None:
                    await self._reception.payload(buffer[:payload])
                else:
                    buffer[:payload] = received
        flight = _Flight(self, request, weight, buffer)
        if self._immediate is None:  # else it may wait before the next flush
            eager.cork()  # others may follow: what they send can go together
        self._flights.add(flight, flight)
        if self._eager:
            flight.start()
        else:
            flight.start_task()

    def changed_by(self, request: Request) -> Source | None:
        """The source, if the request may wait for what it writes back."""
        return None if request.command in _READING else self._source

    def _overdue(self, flight: _Flight) -> None:
        log.error("no answer to command %d within %g s", flight.request.command, self._limits.request)

    def land(self, flight: _Flight) -> None:
        """A flight has ended: answer it if nobody has."""
        self._flights.remove(flight)
        if not flight.answered:
            late = f"the source has not answered within {self._limits.request:g} s"
            self.operations.refuse(flight.request, nbd.EIO, late)
        self._output.owe(flight.give_back)
        if not self._push_is_due:
            self._push_is_due = True
            eager.later(self._push)

    def _push(self) -> None:
        self._push_is_due = False
        self._output.push(self.nursery)

    def give_back(self, weight: int, buffer: memoryview | None) -> None:
        """Release what a request had reserved."""
        if buffer is not None:
            self._server.buffers.give(buffer)
        self._memory.release(weight)

    # Sending

    async def _flush(self) -> None:
        """Carry out what was put off, and send all replies; what they borrow is free then."""
        await self._settle()
        eager.uncork()
        await self._output.flush()

    async def _settle(self) -> None:
        """Carry out what was put off, and leave no reply that borrows memory."""
        borrowed = 0
        if self._batches is not None:
            await self._batches.settle()
            borrowed = self._batches.release()
        if self._immediate is not None:
            borrowed += self._immediate.release()
        if borrowed:
            self._output.own()

    # What the reception asks for

    def _awaited(self) -> bool:
        """Whether the client still waits for replies."""
        return bool(self._flights) or self._output.busy

    def _forward(self) -> None:
        """Bring forward what is in flight."""
        if self._poller and self._flights:
            self._poller()

    def _rest(self) -> None:
        """The client asks for nothing: give back its memory."""
        for way in (self._batches, self._immediate):
            if way is not None:
                way.rest()
        self._server.buffers.drop()


class _Flight(Flight):
    """A request that may wait for its source."""

    __slots__ = ("_buffer", "_connection", "_weight", "answered", "request")

    def __init__(self, connection: Connection, request: Request, weight: int, buffer: memoryview | None) -> None:
        super().__init__(self._perform(), connection.nursery, self._land, connection.changed_by(request))
        self._connection = connection
        self._weight = weight
        self._buffer = buffer
        self.request = request
        self.answered = False

    async def _perform(self) -> None:
        await self._connection.operations.perform(self.request, self._buffer)
        self.answered = True

    def _land(self) -> None:
        self._connection.land(self)

    def give_back(self) -> None:
        self._connection.give_back(self._weight, self._buffer)
