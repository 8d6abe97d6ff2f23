"""Replies as a client takes them apart: byte for byte, split anywhere, and what a server must not send."""

from __future__ import annotations

import errno
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto import replies
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.pending import Pending
from nbdfs.nbd.proto.replies import Replies

COOKIE = 7
DONE = nbd.REPLY_FLAG_DONE


def simple(error: int = 0, payload: bytes = b"", cookie: int = COOKIE) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + payload


def chunk(kind: int, payload: bytes = b"", flags: int = DONE, cookie: int = COOKIE) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def extended(kind: int, payload: bytes = b"", flags: int = DONE, cookie: int = COOKIE) -> bytes:
    return struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, 100, len(payload)) + payload


def data(offset: int, payload: bytes) -> bytes:
    return struct.pack(">Q", offset) + payload


def hole(offset: int, length: int) -> bytes:
    return struct.pack(">QI", offset, length)


def error(number: int, text: bytes = b"", tail: bytes = b"") -> bytes:
    return struct.pack(">IH", number, len(text)) + text + tail


def read_request() -> Pending:
    return Pending(nbd.CMD_READ, 100, 8, buffer=memoryview(bytearray(b"........")))


def status_request() -> Pending:
    return Pending(nbd.CMD_BLOCK_STATUS, 0, 4096)


class Client:
    """The receiving end, with one request in flight."""

    def __init__(self, request: Pending, form: str) -> None:
        self.request = request
        request.cookie = COOKIE
        self.finished: list[OSError | None] = []
        self.replies: Replies[Pending] = Replies(Input(), structured=form != "simple", extended=form == "extended")
        self.replies.in_flight[COOKIE] = request

    def feed(self, stream: bytes, cuts: list[int] = []) -> None:  # noqa: B006
        places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
        for start, stop in itertools.pairwise(places):
            self.replies.received.feed(stream[start:stop])
            while (request := self.replies.next_event()) is not None:
                assert request is self.request
                self.finished.append(request.error)


GOOD = [
    ("simple", read_request, simple(0, b"abcdefgh"), b"abcdefgh"),
    ("simple", lambda: Pending(nbd.CMD_WRITE, 0, 4, payload=memoryview(b"wxyz")), simple(), None),
    ("structured", read_request, chunk(1, data(100, b"abcdefgh")), b"abcdefgh"),
    ("structured", read_request, chunk(1, data(104, b"efgh"), 0) + chunk(1, data(100, b"abcd")), b"abcdefgh"),
    ("structured", read_request, chunk(2, hole(100, 6), 0) + chunk(1, data(106, b"gh")), b"\0\0\0\0\0\0gh"),
    ("structured", read_request, chunk(1, data(100, b"abcdefgh"), 0) + chunk(0), b"abcdefgh"),
    ("structured", lambda: Pending(nbd.CMD_FLUSH), simple(), None),
    ("structured", lambda: Pending(nbd.CMD_FLUSH), chunk(0), None),
    ("extended", read_request, extended(1, data(100, b"abcdefgh")), b"abcdefgh"),
    ("extended", lambda: Pending(nbd.CMD_FLUSH), extended(0), None),
]


@pytest.mark.parametrize(("form", "make", "stream", "content"), GOOD)
def test_a_good_reply_split_at_every_byte(form: str, make, stream: bytes, content: bytes | None) -> None:  # type: ignore[no-untyped-def]
    for cut in range(len(stream) + 1):
        client = Client(make(), form)
        client.feed(stream, [cut])
        assert client.finished == [None]
        if content is not None:
            assert client.request.buffer == content
    whole = Client(make(), form)
    whole.feed(stream, list(range(len(stream))))
    assert whole.finished == [None]


@pytest.mark.parametrize(
    ("form", "stream", "extents"),
    [
        ("structured", chunk(5, struct.pack(">5I", 3, 512, 0, 3584, 3)), {3: [(512, 0), (3584, 3)]}),
        (
            "structured",
            chunk(5, struct.pack(">3I", 3, 4096, 1), 0) + chunk(5, struct.pack(">3I", 4, 9, 0)),
            {3: [(4096, 1)], 4: [(9, 0)]},
        ),
        ("extended", extended(6, struct.pack(">IIQQ", 3, 1, 1 << 40, 2)), {3: [(1 << 40, 2)]}),
    ],
)
def test_block_status(form: str, stream: bytes, extents: dict[int, list[tuple[int, int]]]) -> None:
    client = Client(status_request(), form)
    client.feed(stream, list(range(len(stream))))
    assert client.finished == [None]
    assert client.request.extents == extents


@pytest.mark.parametrize(
    ("form", "stream", "number"),
    [
        ("simple", simple(28), errno.ENOSPC),
        ("structured", chunk(32769, error(5, b"bad block")), errno.EIO),
        ("structured", chunk(32770, error(22, b"", bytes(8))), errno.EINVAL),
        ("structured", chunk(1, data(100, b"abcd"), 0) + chunk(32769, error(12), 0) + chunk(0), errno.ENOMEM),
        ("structured", chunk(40000, b"?"), errno.EIO),
        ("structured", chunk(32769, error(9999)), errno.EINVAL),
    ],
)
def test_an_error_is_the_requests(form: str, stream: bytes, number: int) -> None:
    client = Client(read_request(), form)
    client.feed(stream, list(range(len(stream))))
    assert [failure and failure.errno for failure in client.finished] == [number]


@pytest.mark.parametrize(
    ("form", "make", "stream", "complaint"),
    [
        ("simple", read_request, b"HTTP/1.1 400 Bad", "begins with"),
        ("simple", read_request, simple(cookie=8), "no request"),
        ("simple", read_request, chunk(1, data(100, b"abcdefgh")), "begins with"),
        ("structured", read_request, simple(0, b"abcdefgh"), "simple reply"),
        ("structured", read_request, simple(5), "simple reply"),
        ("structured", read_request, chunk(1, data(99, b"abcdefgh")), "not asked for"),
        ("structured", read_request, chunk(1, data(100, b"abcdefghi")), "not asked for"),
        ("structured", read_request, chunk(1, data(1 << 63, b"abcdefgh")), "not asked for"),
        ("structured", read_request, chunk(1, data(100, b"")), "not asked for"),
        ("structured", read_request, chunk(1, b"1234567"), "not asked for"),
        ("structured", read_request, chunk(1, data(100, b"abcd")), "short"),
        ("structured", read_request, chunk(0), "short"),
        ("structured", read_request, chunk(1, data(100, b"abcde"), 0) + chunk(1, data(104, b"efgh")), "twice"),
        ("structured", read_request, chunk(2, hole(100, 9)), "not asked for"),
        ("structured", read_request, chunk(2, b"1234"), "hole"),
        ("structured", read_request, chunk(0, b"x"), "empty"),
        ("structured", read_request, chunk(7, b""), "unknown type"),
        ("structured", read_request, chunk(32769, error(0)), "error"),
        ("structured", read_request, chunk(32769, struct.pack(">IH", 5, 9)), "error"),
        ("structured", read_request, struct.pack(">IHHQI", 0x668E33EF, 1, 32769, COOKIE, 1 << 31), "with"),
        ("structured", read_request, chunk(5, struct.pack(">3I", 3, 1, 0)), "block status"),
        ("structured", status_request, chunk(5, struct.pack(">2I", 3, 1)), "block status"),
        ("structured", status_request, chunk(5, struct.pack(">3I", 3, 0, 0)), "no length"),
        ("structured", status_request, chunk(5, struct.pack(">3I", 3, 1, 0), 0) * 2, "twice"),
        ("structured", status_request, chunk(0), "none"),
        ("structured", status_request, chunk(1, data(0, b"abcd")), "not asked for"),
        ("extended", read_request, chunk(1, data(100, b"abcdefgh")), "begins with"),
        ("extended", status_request, extended(6, struct.pack(">IIQQ", 3, 2, 1, 0)), "extents"),
    ],
)
def test_what_a_server_must_not_send_is_refused(form: str, make, stream: bytes, complaint: str) -> None:  # type: ignore[no-untyped-def]
    client = Client(make(), form)
    with pytest.raises(ProtocolError, match=complaint):
        client.feed(stream + bytes(32))


def test_extents_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever contexts they are said to belong to: each has its chunk, and all would be kept."""
    monkeypatch.setattr(replies, "_MOST_EXTENTS", 10)
    client = Client(status_request(), "structured")
    with pytest.raises(ProtocolError, match="more than 10 extents"):
        for context in range(6):
            client.feed(chunk(5, struct.pack(">I4I", context, 1, 0, 1, 0), 0))
    assert len(client.request.extents) == 5


def test_an_orphans_payload_goes_nowhere() -> None:
    for cut in range(40):
        request = read_request()
        buffer = request.buffer
        client = Client(request, "structured")
        stream = chunk(1, data(100, b"abcdefgh"))
        client.feed(stream[:cut])
        before = bytes(buffer or b"")
        client.replies.give_up(request)
        client.feed(stream[cut:])
        assert buffer == before
        assert not client.replies.in_flight


def test_payload_received_straight_into_place() -> None:
    client = Client(read_request(), "structured")
    stream = chunk(1, data(100, b"abcdefgh"))
    client.feed(stream[:-5])
    assert client.replies.payload_left == 5
    client.replies.place()[:] = stream[-5:]
    client.replies.payload_received(5)
    client.feed(b"")
    assert client.finished == [None] and client.request.buffer == b"abcdefgh"


def test_the_header_of_a_request() -> None:
    request = Pending(nbd.CMD_WRITE, 0x1122, 4, nbd.CMD_FLAG_FUA, payload=memoryview(b"abcd"))
    request.cookie = 9
    assert request.message(False).hex() == "25609513000100010000000000000009000000000000112200000004"
    assert request.message(True).hex() == "21e41c7100210001000000000000000900000000000011220000000000000004"


_PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([stream for _, _, stream, _ in GOOD]),
    st.builds(chunk, st.integers(0, 65535), st.binary(max_size=40), st.integers(0, 65535), st.sampled_from([7, 8])),
    st.builds(extended, st.integers(0, 65535), st.binary(max_size=40), st.integers(0, 3)),
)


@given(st.lists(_PIECES, max_size=6), st.sampled_from(["simple", "structured", "extended"]), st.booleans(),
       st.lists(st.integers(0, 400)))  # fmt: skip
def test_any_bytes_are_parsed_or_refused(pieces: list[bytes], form: str, reading: bool, cuts: list[int]) -> None:
    client = Client(read_request() if reading else status_request(), form)
    try:
        client.feed(b"".join(pieces), cuts)
    except ProtocolError:
        return
    assert len(client.finished) <= 1
