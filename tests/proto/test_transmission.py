"""Transcripts of the transmission phase, byte for byte; each stream of requests also comes in pieces of every size."""

import struct

import pytest

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Agreed, Disconnect, ProtocolError, Refused, Request, Run
from tests.proto.machines import DISK, events, refusals, transmission

SIMPLE = Agreed(fixed=True)
STRUCTURED = Agreed(fixed=True, structured=True, contexts={1: "base:allocation", 2: "nbdfs:resident"})
EXTENDED = Agreed(fixed=True, extended=True, contexts={1: "base:allocation", 2: "nbdfs:resident"})


def compact(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


def extended(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">IHHQQQ", nbd.EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)


def test_stream_of_requests_split_everywhere() -> None:
    data = (
        compact(nbd.CMD_READ, 1, 5, 7) + compact(nbd.CMD_WRITE, 2, 3, 10, nbd.CMD_FLAG_FUA) + b"0123456789"
        + compact(nbd.CMD_WRITE, 3, 1 << 20, 4) + b"lost" + compact(nbd.CMD_FLUSH, 4)
        + compact(nbd.CMD_TRIM, 5, 0, 1 << 20) + compact(nbd.CMD_DISC, 6)
    )  # fmt: skip
    for step in range(1, len(data) + 1):
        found = events(transmission(SIMPLE), data, step=step)
        assert found[:3] == [Request(0, 0, 1, 5, 7), Request(1, 1, 2, 3, 10), b"0123456789"]
        assert isinstance(found[3], Refused)
        assert found[3].error == nbd.ENOSPC
        assert found[4:] == [Request(3, 0, 4, 0, 0), Request(4, 0, 5, 0, 1 << 20), Disconnect()]


def test_extended_stream_split_everywhere() -> None:
    payload = nbd.CMD_FLAG_PAYLOAD_LEN
    data = (
        extended(nbd.CMD_WRITE, 1, 0, 4, payload) + b"data"
        + extended(nbd.CMD_BLOCK_STATUS, 2, 0, 12, payload) + struct.pack(">QI", 4096, 2)
        + extended(nbd.CMD_BLOCK_STATUS, 3, 0, 16, payload) + struct.pack(">QII", 4096, 1, 1)
        + extended(nbd.CMD_READ, 4, 0, 3, payload) + b"???"
        + extended(nbd.CMD_WRITE, 5, 0, 4)
        + extended(nbd.CMD_BLOCK_STATUS, 6, 0, 1 << 20)
    )  # fmt: skip
    for step in range(1, len(data) + 1):
        found = events(transmission(EXTENDED), data, step=step)
        assert found[:3] == [Request(1, 0, 1, 0, 4), b"data", Request(7, 0, 2, 0, 4096, (2,))]
        assert refusals(found) == [nbd.EINVAL] * 3
        assert found[-1] == Request(7, 0, 6, 0, 1 << 20, (1, 2))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (compact(nbd.CMD_READ, 1, 1 << 20, 1), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, (1 << 20) - 1, 2), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 1 << 63, 512), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 0, 0), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 0, 1, nbd.CMD_FLAG_REQ_ONE), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 0, 1, 1 << 15), nbd.EINVAL),
        (compact(nbd.CMD_READ, 1, 0, 1, nbd.CMD_FLAG_PAYLOAD_LEN), nbd.EINVAL),
        (compact(nbd.CMD_WRITE_ZEROES, 1, 1 << 20, 1), nbd.ENOSPC),
        (compact(nbd.CMD_WRITE_ZEROES, 1, 0, 1, nbd.CMD_FLAG_FAST_ZERO), nbd.EINVAL),  # not offered
        (compact(nbd.CMD_TRIM, 1, 1 << 20, 1), nbd.EINVAL),
        (compact(nbd.CMD_FLUSH, 1, 1, 0), nbd.EINVAL),
        (compact(8, 1), nbd.EINVAL),
        (compact(0xFFFF, 1), nbd.EINVAL),
    ],
)
def test_forbidden_request_is_refused_in_step(request_: bytes, error: int) -> None:
    found = events(transmission(STRUCTURED), request_ + compact(nbd.CMD_READ, 2, 0, 1), step=1000)
    assert refusals(found) == [error]
    assert found[-1] == Request(0, 0, 2, 0, 1)


def test_simple_client_has_neither_df_nor_contexts() -> None:
    data = compact(nbd.CMD_READ, 1, 0, 1, nbd.CMD_FLAG_DF) + compact(nbd.CMD_BLOCK_STATUS, 2, 0, 512)
    assert refusals(events(transmission(SIMPLE), data, step=100)) == [nbd.EINVAL] * 2


def test_readonly() -> None:
    data = (
        compact(nbd.CMD_WRITE, 1, 0, 3)
        + b"abc"
        + compact(nbd.CMD_TRIM, 2, 0, 1)
        + compact(nbd.CMD_WRITE_ZEROES, 3, 0, 1)
    )
    assert refusals(events(transmission(SIMPLE, readonly=True), data, step=5)) == [nbd.EPERM] * 3


def test_unaligned() -> None:
    facts = type(DISK)(**{**DISK.__dict__, "minimum": 512})
    data = compact(nbd.CMD_READ, 1, 1, 512) + compact(nbd.CMD_READ, 2, 512, 513) + compact(nbd.CMD_READ, 3, 512, 512)
    assert refusals(events(transmission(SIMPLE, facts=facts), data, step=100)) == [nbd.EINVAL] * 2


def test_read_above_the_maximum() -> None:
    facts = type(DISK)(**{**DISK.__dict__, "size": 1 << 40})
    data = compact(nbd.CMD_READ, 1, 0, (32 << 20) + 1)
    assert refusals(events(transmission(STRUCTURED, facts=facts), data, step=100)) == [nbd.EOVERFLOW]
    assert refusals(events(transmission(SIMPLE, facts=facts), data, step=100)) == [nbd.EINVAL]


def test_oversized_write_is_skipped_or_ends_the_connection() -> None:
    machine = transmission(SIMPLE)
    data = compact(nbd.CMD_WRITE, 1, 0, (32 << 20) + 1) + bytes((32 << 20) + 1) + compact(nbd.CMD_FLUSH, 2)
    found = events(machine, data, step=64 << 10)
    assert refusals(found) == [nbd.EINVAL]
    assert found[-1] == Request(3, 0, 2, 0, 0)
    with pytest.raises(ProtocolError):
        events(transmission(SIMPLE), compact(nbd.CMD_WRITE, 1, 0, 0xFFFFFFFF), step=100)


@pytest.mark.parametrize("agreed", [SIMPLE, EXTENDED])
def test_wrong_magic_ends_the_connection(agreed: Agreed) -> None:
    wrong = extended(nbd.CMD_READ, 1) if agreed is SIMPLE else compact(nbd.CMD_READ, 1) + bytes(4)
    with pytest.raises(ProtocolError):
        events(transmission(agreed), wrong, step=100)


READ = Request(nbd.CMD_READ, 0, 0x1122, 512, 8)


def test_simple_replies() -> None:
    machine = transmission(SIMPLE)
    head = struct.pack(">I", nbd.SIMPLE_REPLY_MAGIC)
    assert machine.whole(READ) == head + struct.pack(">IQ", 0, 0x1122)
    assert machine.success(READ._replace(command=nbd.CMD_WRITE)) == head + struct.pack(">IQ", 0, 0x1122)
    assert machine.error(READ, nbd.EIO, "broken") == head + struct.pack(">IQ", 5, 0x1122)


def test_structured_replies() -> None:
    machine = transmission(STRUCTURED)

    def chunk(flags: int, kind: int, payload: bytes, missing: int = 0) -> bytes:
        size = len(payload) + missing
        return struct.pack(">IHHQI", nbd.STRUCTURED_REPLY_MAGIC, flags, kind, 0x1122, size) + payload

    assert machine.whole(READ) == chunk(1, 1, struct.pack(">Q", 512), 8)
    assert machine.data(READ, 514, 2, False) == chunk(0, 1, struct.pack(">Q", 514), 2)
    assert machine.hole(READ, 512, 4, True) == chunk(1, 2, struct.pack(">QI", 512, 4))
    assert machine.success(READ) == chunk(1, 0, b"")
    assert machine.error(READ, nbd.EIO, "oh") == chunk(1, 0x8001, struct.pack(">IH", 5, 2) + b"oh")
    status = machine.status(READ, 1, [(512, 0), (1024, 3)], True)
    assert status == chunk(1, 5, struct.pack(">IIIII", 1, 512, 0, 1024, 3))
    # an extent that 32 bits do not hold is cut, and nothing follows it
    long = machine.status(READ, 1, [(1 << 40, 3), (512, 0)], True)
    assert long == chunk(1, 5, struct.pack(">III", 1, 0xFFF00000, 3))


def test_extended_replies() -> None:
    machine = transmission(EXTENDED)

    def chunk(flags: int, kind: int, payload: bytes, missing: int = 0) -> bytes:
        size = len(payload) + missing
        return struct.pack(">IHHQQQ", nbd.EXTENDED_REPLY_MAGIC, flags, kind, 0x1122, 512, size) + payload

    assert machine.whole(READ) == chunk(1, 1, struct.pack(">Q", 512), 8)
    assert machine.success(READ._replace(command=nbd.CMD_FLUSH)) == chunk(1, 0, b"")
    status = machine.status(READ, 2, [(1 << 40, 3)], False)
    assert status == chunk(0, 6, struct.pack(">IIQQ", 2, 1, 1 << 40, 3))
    assert machine.error(READ, nbd.ENOSPC, "") == chunk(1, 0x8001, struct.pack(">IH", 28, 0))


def test_error_text_is_no_longer_than_a_string() -> None:
    reply = transmission(STRUCTURED).error(READ, nbd.EIO, "x" * 10000)
    assert len(reply) == 20 + 6 + 4096


@pytest.mark.parametrize("agreed", [SIMPLE, STRUCTURED, EXTENDED], ids=["simple", "structured", "extended"])
def test_replies_to_a_run_are_those_to_its_requests(agreed: Agreed) -> None:
    machine = transmission(agreed)
    reads = Run(nbd.CMD_READ, 512, [7, 1 << 63, 9], [0, 4096, 1 << 19], [])
    assert machine.wholes(reads) == [machine.whole(reads.request(index)) for index in range(3)]
    writes = reads._replace(command=nbd.CMD_WRITE)
    first, third = (machine.success(writes.request(index)) for index in (0, 2))
    assert machine.successes(writes.some([0, 2])) == first + third
    assert machine.successes(writes.some([])) == b""
