"""The server's machines, driven by bytes alone: a little server over a dictionary of facts."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import LEAST_IN_RUN, Agreed, ExportFacts, Refused, Request, Run
from nbdfs.nbd.proto.handshake import Policy, ServerHandshake, State, Tls
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.transmission import ServerTransmission

FLAGS = nbd.FLAG_HAS_FLAGS | nbd.FLAG_SEND_FLUSH | nbd.FLAG_SEND_FUA | nbd.FLAG_SEND_TRIM | nbd.FLAG_SEND_WRITE_ZEROES
DISK = ExportFacts("disk", 1 << 20, FLAGS, "a disk", 1, 4096, 32 << 20, ("base:allocation", "nbdfs:resident"))


class OneExport:
    """`disk`, also by the empty name."""

    def names(self) -> Iterable[tuple[str, str]]:
        return [(DISK.name, DISK.description)]

    def find(self, name: str) -> ExportFacts | None:
        return DISK if name in ("", DISK.name) else None


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", nbd.OPTION_MAGIC, number, len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", nbd.REPLY_MAGIC, number, kind, len(data)) + data


def string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def says(handshake: ServerHandshake, received: Input) -> list[bytes]:
    """What the server says to what it has received, in the portions in which it sends."""
    return list(iter(lambda: handshake.advance(received), b""))


def shake(data: bytes, *, step: int, tls: Tls = Tls.OFF) -> tuple[bytes, ServerHandshake]:
    """Give the server these bytes, `step` at a time; what it says after its greeting."""
    handshake = ServerHandshake(OneExport(), Policy(tls))
    received = Input()
    said = []
    for at in range(0, len(data), step):
        received.feed(data[at : at + step])
        said += says(handshake, received)
        if handshake.state is State.STARTING_TLS:
            handshake.tls_started()
            said += says(handshake, received)
    return b"".join(said), handshake


def transmission(agreed: Agreed, *, readonly: bool = False, facts: ExportFacts = DISK) -> ServerTransmission:
    handshake = ServerHandshake(OneExport(), Policy())
    handshake.agreed = agreed
    flags = handshake.transmission_flags(facts) | (nbd.FLAG_READ_ONLY if readonly else 0)
    return ServerTransmission(facts, agreed, flags, Input())


def events(machine: ServerTransmission, data: bytes, *, step: int, runs: bool = False) -> list[object]:
    """What comes out of a stream of requests: events, each WRITE followed by its payload; with `runs` as these, too."""
    found: list[object] = []
    writing = bytearray()
    for at in range(0, len(data), step):
        machine.received.feed(data[at : at + step])
        while True:
            while runs and (run := machine.next_run()):
                found += members(run)
            event = machine.next_event()
            if event is not None:
                found.append(event)
                if isinstance(event, Request) and event.command == nbd.CMD_WRITE:
                    writing = bytearray()
            elif (
                machine.payload_left
                and len(machine.received)
                and isinstance(found[-1], Request)
                and found[-1].command == nbd.CMD_WRITE
            ):
                part = memoryview(bytearray(machine.payload_left))
                count = machine.received.move_into(part)
                writing += part[:count]
                machine.payload_received(count)
                if not machine.payload_left:
                    found.append(bytes(writing))
            else:
                break
    return found


def members(run: Run) -> list[object]:
    """The requests of a run, each WRITE followed by its payload."""
    assert len(run.cookies) == len(run.offsets) >= LEAST_IN_RUN
    requests = [run.request(index) for index in range(len(run.cookies))]
    if run.command == nbd.CMD_READ:
        assert not run.payloads
        return list(requests)
    pairs = zip(requests, run.payloads, strict=True)
    return [part for request, payload in pairs for part in (request, bytes(payload))]


def refusals(found: list[object]) -> list[int]:
    return [event.error for event in found if isinstance(event, Refused)]
