"""Any bytes parse or give a ProtocolError: random ones, and streams that make sense until some bytes are changed."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import Agreed, ProtocolError, Request
from nbdfs.nbd.proto.handshake import State, Tls
from nbdfs.records import replace
from tests.proto.machines import DISK, events, option, shake, string, transmission
from tests.proto.test_handshake import CONTEXT, EXTENDED, FIXED, GO, STRUCTURED
from tests.proto.test_transmission import SIMPLE, compact, extended

OPTIONS = [GO, STRUCTURED, EXTENDED, option(nbd.OPT_SET_META_CONTEXT, CONTEXT), option(nbd.OPT_LIST),
           option(nbd.OPT_STARTTLS), option(nbd.OPT_INFO, string("") + b"\0\0"), option(nbd.OPT_ABORT)]  # fmt: skip
REQUESTS = st.tuples(
    st.integers(0, 9), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1) | st.integers(0, DISK.size),
    st.integers(0, 2**32 - 1) | st.integers(0, 600), st.integers(0, 2**16 - 1) | st.sampled_from([0, 1, 32]),
)  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=4)


def changed(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    result = bytearray(data)
    for at, what in changes:
        at %= len(result) + 1
        result[at : at + len(what)] = what
    return bytes(result)


@given(st.lists(st.sampled_from(OPTIONS) | st.binary(max_size=40), max_size=8), CHANGES, st.integers(1, 50),
       st.sampled_from(Tls))  # fmt: skip
def test_handshake(options: list[bytes], changes: list[tuple[int, bytes]], step: int, tls: Tls) -> None:
    with contextlib.suppress(ProtocolError):
        _, handshake = shake(changed(FIXED + b"".join(options), changes), step=step, tls=tls)
        assert isinstance(handshake.state, State)


@given(st.lists(st.tuples(REQUESTS, st.binary(max_size=64)), max_size=8), CHANGES, st.integers(1, 300), st.booleans())
def test_transmission(
    requests: list[tuple[tuple[int, int, int, int, int], bytes]],
    changes: list[tuple[int, bytes]],
    step: int,
    is_extended: bool,
) -> None:
    pack = extended if is_extended else compact
    data = changed(b"".join(pack(*numbers) + tail for numbers, tail in requests), changes)
    machine = transmission(Agreed(structured=True, extended=is_extended, contexts={1: "base:allocation"}))
    with contextlib.suppress(ProtocolError):
        for event in events(machine, data, step=step):
            if isinstance(event, Request) and event.command != nbd.CMD_FLUSH:
                assert 0 < event.length <= DISK.size - event.offset


ORDINARY = st.tuples(
    st.sampled_from([nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_FLUSH]), st.sampled_from([0] * 6 + [nbd.CMD_FLAG_FUA]),
    st.sampled_from([0, 512, 4096, DISK.size - 512, DISK.size - 511]), st.sampled_from([0, 1, 512, 513]),
    st.integers(1, 12),
)  # fmt: skip


@given(st.lists(ORDINARY, max_size=8), CHANGES, st.integers(1, 9000), st.booleans(), st.booleans(), st.booleans())
def test_runs_are_the_requests_that_come_one_by_one(
    parts: list[tuple[int, int, int, int, int]],
    changes: list[tuple[int, bytes]],
    step: int,
    spoilt: bool,
    readonly: bool,
    sectors: bool,
) -> None:
    """Any mixture of requests, whole or spoilt, in pieces of any size."""
    data = b""
    for command, flags, offset, length, count in parts:
        for number in range(count):
            length *= command != nbd.CMD_FLUSH
            data += compact(command, len(data) + number, offset if length else 0, length, flags)
            data += bytes([number]) * length * (command == nbd.CMD_WRITE)
    data = changed(data, changes) if spoilt else data
    facts = DISK if not sectors else replace(DISK, minimum=512)

    def found(runs: bool) -> list[object] | str:
        try:
            return events(transmission(SIMPLE, readonly=readonly, facts=facts), data, step=step, runs=runs)
        except ProtocolError as error:
            return str(error)

    assert found(True) == found(False)
