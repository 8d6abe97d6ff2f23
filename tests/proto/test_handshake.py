"""Transcripts of handshakes, byte for byte, as proto.md has them; each also comes in pieces of every size."""

import struct
from collections.abc import Iterable

import pytest

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto import wire
from nbdfs.nbd.proto.events import ExportFacts, ProtocolError
from nbdfs.nbd.proto.handshake import Policy, ServerHandshake, State, Tls
from nbdfs.nbd.proto.input import Input
from nbdfs.records import replace
from tests.proto.machines import DISK, FLAGS, option, reply, says, shake, string

FIXED = struct.pack(">I", 3)
ZEROES = struct.pack(">I", 1)
GO = option(nbd.OPT_GO, string("disk") + struct.pack(">HHH", 2, nbd.INFO_NAME, nbd.INFO_BLOCK_SIZE))
STRUCTURED = option(nbd.OPT_STRUCTURED_REPLY)
EXTENDED = option(nbd.OPT_EXTENDED_HEADERS)
CONTEXT = string("disk") + struct.pack(">I", 1) + string("base:allocation")


def ack(number: int) -> bytes:
    return reply(number, nbd.REP_ACK)


def info(number: int, flags: int) -> bytes:
    return (
        reply(number, nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, DISK.size, flags))
        + reply(number, nbd.REP_INFO, struct.pack(">H", nbd.INFO_NAME) + b"disk")
        + reply(number, nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, 32 << 20))
        + ack(number)
    )


def context(number: int, at: int, name: bytes = b"base:allocation") -> bytes:
    return reply(number, nbd.REP_META_CONTEXT, struct.pack(">I", at) + name)


TRANSCRIPTS = {
    "export name, zeroes": (
        ZEROES + option(nbd.OPT_EXPORT_NAME, b"disk"),
        struct.pack(">QH", DISK.size, FLAGS) + bytes(124), State.TRANSMISSION,
    ),
    "export name, no zeroes": (
        FIXED + option(nbd.OPT_EXPORT_NAME), struct.pack(">QH", DISK.size, FLAGS), State.TRANSMISSION,
    ),
    "go": (FIXED + GO, info(nbd.OPT_GO, FLAGS), State.TRANSMISSION),
    "list, abort": (
        FIXED + option(nbd.OPT_LIST) + option(nbd.OPT_ABORT, b"bye"),
        reply(nbd.OPT_LIST, nbd.REP_SERVER, string("disk") + b"a disk") + ack(nbd.OPT_LIST) + ack(nbd.OPT_ABORT),
        State.CLOSED,
    ),
    "structured, context, go": (
        FIXED + STRUCTURED + option(nbd.OPT_SET_META_CONTEXT, CONTEXT) + GO,
        ack(nbd.OPT_STRUCTURED_REPLY) + context(nbd.OPT_SET_META_CONTEXT, 1) + ack(nbd.OPT_SET_META_CONTEXT)
        + info(nbd.OPT_GO, FLAGS | nbd.FLAG_SEND_DF), State.TRANSMISSION,
    ),
    "extended, context, go": (
        FIXED + EXTENDED + option(nbd.OPT_SET_META_CONTEXT, CONTEXT) + GO,
        ack(nbd.OPT_EXTENDED_HEADERS) + context(nbd.OPT_SET_META_CONTEXT, 1) + ack(nbd.OPT_SET_META_CONTEXT)
        + info(nbd.OPT_GO, FLAGS | nbd.FLAG_SEND_DF | nbd.FLAG_BLOCK_STATUS_PAYLOAD), State.TRANSMISSION,
    ),
    "all contexts, and those of a namespace": (
        FIXED + STRUCTURED + option(nbd.OPT_LIST_META_CONTEXT, string("") + struct.pack(">I", 0))
        + option(nbd.OPT_LIST_META_CONTEXT, string("") + struct.pack(">I", 2) + string("base:") + string("x-y:z")),
        ack(nbd.OPT_STRUCTURED_REPLY) + context(nbd.OPT_LIST_META_CONTEXT, 0)
        + context(nbd.OPT_LIST_META_CONTEXT, 0, b"nbdfs:resident") + ack(nbd.OPT_LIST_META_CONTEXT)
        + context(nbd.OPT_LIST_META_CONTEXT, 0) + ack(nbd.OPT_LIST_META_CONTEXT), State.OPTIONS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript(name: str) -> None:
    client, server, state = TRANSCRIPTS[name]
    for step in range(1, len(client) + 1):
        said, handshake = shake(client, step=step)
        assert said == server
        assert handshake.state is state


def test_greeting() -> None:
    assert ServerHandshake.greeting() == b"NBDMAGICIHAVEOPT\x00\x03"


def errors_of(*options: bytes, tls: Tls = Tls.OFF) -> list[int]:
    """The kinds of the error replies to some options."""
    said, _ = shake(FIXED + b"".join(options), step=7, tls=tls)
    found, at = [], 0
    while at < len(said):
        magic, _, kind, length = struct.unpack_from(">QIII", said, at)
        assert magic == nbd.REPLY_MAGIC
        if kind & nbd.REP_FLAG_ERROR:
            found.append(kind)
        at += 20 + length
    return found


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (option(99, b"what?"), nbd.REP_ERR_UNSUP),
        (option(nbd.OPT_PEEK_EXPORT), nbd.REP_ERR_UNSUP),
        (option(nbd.OPT_LIST, b"x"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_STRUCTURED_REPLY, b"x"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_STARTTLS), nbd.REP_ERR_POLICY),
        (option(nbd.OPT_GO, string("other") + b"\0\0"), nbd.REP_ERR_UNKNOWN),
        (option(nbd.OPT_GO, string("disk")), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_GO, string("disk") + b"\0\1"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_GO, struct.pack(">I", 0xFFFFFFFF) + b"disk"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_INFO, string("x" * 4096) + b"\0\0"), nbd.REP_ERR_UNKNOWN),
        (option(nbd.OPT_INFO, string("x" * 4097) + b"\0\0"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_INFO, struct.pack(">I", 2) + b"\xff\xfe\0\0"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_INFO, string("a\0b") + b"\0\0"), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_LIST, bytes(1 << 20)), nbd.REP_ERR_TOO_BIG),
        (option(nbd.OPT_SET_META_CONTEXT, CONTEXT), nbd.REP_ERR_INVALID),
        (option(nbd.OPT_LIST_META_CONTEXT, CONTEXT), nbd.REP_ERR_INVALID),
    ],
)
def test_wrong_option_is_refused_in_step(wrong: bytes, error: int) -> None:
    assert errors_of(wrong, STRUCTURED, option(99)) == [error, nbd.REP_ERR_UNSUP]


def test_structured_after_extended_is_refused() -> None:
    assert errors_of(EXTENDED, STRUCTURED) == [nbd.REP_ERR_EXT_HEADER_REQD]


def test_contexts_without_a_namespace_are_invalid_and_forget_the_chosen() -> None:
    wrong = option(nbd.OPT_SET_META_CONTEXT, string("disk") + struct.pack(">I", 1) + string("nonsense"))
    _, handshake = shake(FIXED + STRUCTURED + option(nbd.OPT_SET_META_CONTEXT, CONTEXT) + wrong, step=1000)
    assert handshake.agreed.contexts == {}


def test_contexts_of_another_export_do_not_count() -> None:
    handshake = shake(FIXED + STRUCTURED + option(nbd.OPT_SET_META_CONTEXT, CONTEXT), step=1000)[1]
    handshake.agreed.contexts_export = "another"
    handshake._go(nbd.OPT_GO, string("disk") + b"\0\0")
    assert handshake.agreed.contexts == {}


def test_tls_required() -> None:
    assert errors_of(STRUCTURED, option(99), GO, tls=Tls.REQUIRE) == [nbd.REP_ERR_TLS_REQD] * 3
    assert errors_of(option(nbd.OPT_STARTTLS), STRUCTURED, tls=Tls.REQUIRE) == []
    with pytest.raises(ProtocolError):
        shake(FIXED + option(nbd.OPT_EXPORT_NAME, b"disk"), step=100, tls=Tls.REQUIRE)


def test_tls_forgets_what_was_agreed_on_and_is_started_once() -> None:
    start = option(nbd.OPT_STARTTLS)
    _, handshake = shake(FIXED + STRUCTURED + option(nbd.OPT_SET_META_CONTEXT, CONTEXT) + start, step=1, tls=Tls.ON)
    assert handshake.agreed.tls
    assert not handshake.agreed.structured
    assert handshake.agreed.contexts == {}
    assert errors_of(start, start, tls=Tls.ON) == [nbd.REP_ERR_INVALID]


def test_shutting_down_refuses_all_but_abort() -> None:
    _, handshake = shake(FIXED, step=4)
    handshake.stopping = True
    received = Input()
    received.feed(GO + option(nbd.OPT_ABORT))
    said = handshake.advance(received)
    assert struct.unpack_from(">QIII", said)[2] == nbd.REP_ERR_SHUTDOWN
    assert said.endswith(ack(nbd.OPT_ABORT))


class ManyExports:
    """Exports by number."""

    COUNT = 5000

    def names(self) -> Iterable[tuple[str, str]]:
        return [(str(number), "") for number in range(self.COUNT)]

    def find(self, name: str) -> ExportFacts | None:
        return replace(DISK, name=name)


def test_a_client_may_ask_about_each_of_many_exports() -> None:
    handshake, received = ServerHandshake(ManyExports(), Policy()), Input()
    received.feed(FIXED + option(nbd.OPT_LIST))
    assert b"".join(says(handshake, received)).endswith(ack(nbd.OPT_LIST))
    for number in range(ManyExports.COUNT):
        for kind, data in (
            (nbd.OPT_SET_META_CONTEXT, string(str(number)) + bytes(4)),
            (nbd.OPT_INFO, string(str(number)) + bytes(2)),
        ):
            received.feed(option(kind, data))
            assert says(handshake, received)
    assert handshake.state is State.OPTIONS


def test_many_long_answers_are_not_in_memory_at_once() -> None:
    handshake, received = ServerHandshake(ManyExports(), Policy()), Input()
    received.feed(FIXED + option(nbd.OPT_LIST) * 100)
    portions = says(handshake, received)
    assert len(portions) == 100
    assert len(set(portions)) == 1


@pytest.mark.parametrize(
    ("description", "sent"),
    [("\udcff.img", b"?.img"), ("ä" * 2049, "ä".encode() * 2048), ("x" + "ä" * 2048, b"x" + "ä".encode() * 2047)],
)
def test_a_description_is_utf_8_of_at_most_4096_bytes(description: str, sent: bytes) -> None:
    facts = replace(DISK, description=description)
    told = wire.info_replies(nbd.OPT_INFO, facts, FLAGS, frozenset({nbd.INFO_DESCRIPTION}))
    assert told.endswith(struct.pack(">IH", len(sent) + 2, nbd.INFO_DESCRIPTION) + sent)
    assert wire.server_reply(nbd.OPT_LIST, "a", description).endswith(string("a") + sent)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 4),
        FIXED + struct.pack(">QII", nbd.OPTION_MAGIC + 1, nbd.OPT_LIST, 0),
        FIXED + struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0xFFFFFFFF),
        FIXED + option(nbd.OPT_EXPORT_NAME, b"other"),
        FIXED + EXTENDED + option(nbd.OPT_EXPORT_NAME, b"disk"),
        struct.pack(">I", 0) + option(nbd.OPT_LIST),
        FIXED + option(99) * 1001,
        FIXED + option(nbd.OPT_LIST) * 1005,
    ],
)
def test_out_of_step_ends_the_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        shake(data, step=997)
