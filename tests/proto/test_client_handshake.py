"""Transcripts of the client's handshake, byte for byte as proto.md has them; each also comes split at every byte."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.proto.client_handshake import MOST_WANTED, ClientHandshake
from nbdfs.nbd.proto.client_states import State
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.handshake import Policy, ServerHandshake
from nbdfs.nbd.proto.handshake import State as ServerState
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.refusals import RefusedError
from tests.proto.machines import FLAGS, OneExport, option, reply, string

GREETING = b"NBDMAGICIHAVEOPT"
FIXED, UNFIXED = GREETING + b"\0\3", GREETING + b"\0\0"
ALLOCATION = ("base:allocation",)
ASK_EXTENDED, ASK_STRUCTURED = option(nbd.OPT_EXTENDED_HEADERS), option(nbd.OPT_STRUCTURED_REPLY)
EXPORT_QUERY = string("disk") + struct.pack(">HHHH", 3, nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE)
CONTEXT_QUERY = string("disk") + struct.pack(">I", 1) + string("base:allocation")
SIZE = struct.pack(">QH", 1 << 20, FLAGS)


def ack(number: int) -> bytes:
    return reply(number, nbd.REP_ACK)


def refusal(number: int, error: int, text: bytes = b"") -> bytes:
    return reply(number, error, text)


def info(number: int) -> bytes:
    return (
        reply(number, nbd.REP_INFO, struct.pack(">H", nbd.INFO_EXPORT) + SIZE)
        + reply(number, nbd.REP_INFO, struct.pack(">H", nbd.INFO_DESCRIPTION) + b"a disk")
        + reply(number, nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 512, 4096, 32 << 20))
        + reply(number, nbd.REP_INFO, struct.pack(">H", 99) + b"of the future")
        + ack(number)
    )


def context(number: int) -> bytes:
    return reply(number, nbd.REP_META_CONTEXT, struct.pack(">I", 7) + ALLOCATION[0].encode()) + ack(number)


class Conversation:
    """A client that is given what a server says, cut anywhere; it starts TLS and goes on to `purpose` by itself."""

    def __init__(self, *, tls: bool = False, extended: bool = True, purpose: str = "go") -> None:
        self.machine = ClientHandshake(tls=tls, extended=extended)
        self.said = b""
        self._purpose: str | None = purpose
        self._received = Input(MOST_WANTED)

    def hear(self, stream: bytes, cuts: list[int]) -> None:
        places = [0, *sorted(cuts), len(stream)]
        for start, stop in itertools.pairwise(places):
            self._received.feed(stream[start:stop])
            self._go_on()

    def _go_on(self) -> None:
        machine = self.machine
        while True:
            self.said += machine.advance(self._received)
            if machine.state is State.STARTING_TLS:
                self.said += machine.tls_started()
            elif machine.state is State.READY and self._purpose:
                purpose, self._purpose = self._purpose, None
                self.said += {
                    "go": lambda: machine.go("disk", ALLOCATION),
                    "info": lambda: machine.info("disk"),
                    "list": machine.list_exports,
                    "nothing": machine.abort,
                }[purpose]()
            else:
                return


GO, INFO, CHOICE, NAME = nbd.OPT_GO, nbd.OPT_INFO, nbd.OPT_SET_META_CONTEXT, nbd.OPT_EXPORT_NAME
UNSUP, POLICY = nbd.REP_ERR_UNSUP, nbd.REP_ERR_POLICY
TOLD = RemoteExport("disk", 1 << 20, FLAGS, "", "a disk", (512, 4096, 32 << 20))
BARE = RemoteExport("disk", 1 << 20, FLAGS)
TLS = option(nbd.OPT_STARTTLS)

# Options of the client, what the server says, what the client must say, what it must know afterwards.
TRANSCRIPTS = {
    "extended headers, a context, go": (
        {}, FIXED + ack(nbd.OPT_EXTENDED_HEADERS) + context(CHOICE) + info(GO),
        b"\0\0\0\3" + ASK_EXTENDED + option(CHOICE, CONTEXT_QUERY) + option(GO, EXPORT_QUERY),
        ("newstyle-fixed", False, True, True), {"base:allocation": 7}, TOLD,
    ),
    "structured replies, the contexts refused": (
        {}, FIXED + refusal(nbd.OPT_EXTENDED_HEADERS, UNSUP, b"what?") + ack(nbd.OPT_STRUCTURED_REPLY)
        + refusal(CHOICE, nbd.REP_ERR_UNKNOWN) + info(GO),
        b"\0\0\0\3" + ASK_EXTENDED + ASK_STRUCTURED + option(CHOICE, CONTEXT_QUERY) + option(GO, EXPORT_QUERY),
        ("newstyle-fixed", False, True, False), {}, TOLD,
    ),
    "simple replies": (
        {"extended": False}, FIXED + refusal(nbd.OPT_STRUCTURED_REPLY, POLICY) + info(GO),
        b"\0\0\0\3" + ASK_STRUCTURED + option(GO, EXPORT_QUERY),
        ("newstyle-fixed", False, False, False), {}, TOLD,
    ),
    "a server without go": (
        {"extended": False},
        GREETING + b"\0\1" + refusal(nbd.OPT_STRUCTURED_REPLY, UNSUP) + refusal(GO, UNSUP) + SIZE + bytes(124),
        b"\0\0\0\1" + ASK_STRUCTURED + option(GO, EXPORT_QUERY) + option(NAME, b"disk"),
        ("newstyle-fixed", False, False, False), {}, BARE,
    ),
    "newstyle, not fixed": (
        {}, UNFIXED + SIZE + bytes(124), b"\0\0\0\0" + option(NAME, b"disk"),
        ("newstyle", False, False, False), {}, BARE,
    ),
    "newstyle without zeroes": (
        {}, GREETING + b"\0\2" + SIZE, b"\0\0\0\2" + option(NAME, b"disk"),
        ("newstyle", False, False, False), {}, BARE,
    ),
    "flags of the future are not answered": (
        {}, GREETING + b"\xff\xfe" + SIZE, b"\0\0\0\2" + option(NAME, b"disk"),
        ("newstyle", False, False, False), {}, BARE,
    ),
    "TLS first": (
        {"tls": True}, FIXED + ack(nbd.OPT_STARTTLS) + ack(nbd.OPT_EXTENDED_HEADERS) + context(CHOICE) + info(GO),
        b"\0\0\0\3" + TLS + ASK_EXTENDED + option(CHOICE, CONTEXT_QUERY) + option(GO, EXPORT_QUERY),
        ("newstyle-fixed", True, True, True), {"base:allocation": 7}, TOLD,
    ),
    "only asking": (
        {"extended": False, "purpose": "info"},
        FIXED + ack(nbd.OPT_STRUCTURED_REPLY) + info(INFO) + context(nbd.OPT_LIST_META_CONTEXT),
        b"\0\0\0\3" + ASK_STRUCTURED + option(INFO, EXPORT_QUERY)
        + option(nbd.OPT_LIST_META_CONTEXT, string("disk") + bytes(4)),
        ("newstyle-fixed", False, True, False), {"base:allocation": 7}, TOLD,
    ),
    "asking one who cannot tell": (
        {"purpose": "info"}, UNFIXED, b"\0\0\0\0", ("newstyle", False, False, False), {}, RemoteExport("disk", 0, 0),
    ),
    "oldstyle": (
        {"purpose": "info"}, struct.pack(">8sQQI124x", b"NBDMAGIC", nbd.OLDSTYLE_MAGIC, 1 << 20, 3), b"",
        ("oldstyle", False, False, False), {}, RemoteExport("", 1 << 20, 3),
    ),
    "goodbye": (
        {"purpose": "nothing"}, FIXED + ack(nbd.OPT_EXTENDED_HEADERS),
        b"\0\0\0\3" + ASK_EXTENDED + option(nbd.OPT_ABORT),
        ("newstyle-fixed", False, True, True), {}, RemoteExport("", 0, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript(name: str) -> None:
    options, server, client, facts, contexts, export = TRANSCRIPTS[name]
    for cuts in [*([cut] for cut in range(len(server) + 1)), list(range(len(server)))]:
        talk = Conversation(**options)  # type: ignore[arg-type]
        talk.hear(server, cuts)
        assert talk.said == client
        assert talk.machine.facts == ServerFacts(*facts)
        assert talk.machine.export == RemoteExport(**{**vars(export), "contexts": contexts})
        assert talk.machine.state is (State.ENTERED if options.get("purpose", "go") == "go" else State.READY)


def test_a_list_split_at_every_byte() -> None:
    server = FIXED + ack(nbd.OPT_EXTENDED_HEADERS) + reply(nbd.OPT_LIST, nbd.REP_SERVER, string("a") + b"one")
    server += reply(nbd.OPT_LIST, nbd.REP_SERVER, string("")) + ack(nbd.OPT_LIST)
    for cut in range(len(server) + 1):
        talk = Conversation(purpose="list")
        talk.hear(server, [cut])
        assert talk.machine.exports == [("a", "one"), ("", "")]


def test_the_longest_reply_fits_and_a_longer_one_is_refused() -> None:
    for length in (MOST_WANTED, MOST_WANTED + 1):
        server = GREETED + reply(nbd.OPT_LIST, nbd.REP_SERVER, string("a") + b"x" * (length - 5)) + ack(nbd.OPT_LIST)
        talk, at = Conversation(purpose="list"), 0
        with pytest.raises(ProtocolError) if length > MOST_WANTED else contextlib.nullcontext():
            while talk.machine.listening:
                wanted = talk.machine.wanted
                talk.hear(server[at : at + wanted], [])
                at += wanted
            assert talk.machine.exports == [("a", "x" * (length - 5))]


def test_nothing_is_wanted_that_may_not_belong_to_the_handshake() -> None:
    for options, server, *_ in TRANSCRIPTS.values():
        talk = Conversation(**options)  # type: ignore[arg-type]
        at = 0
        while talk.machine.listening:
            wanted = talk.machine.wanted
            talk.hear(server[at : at + wanted], [])
            at += wanted
        assert at == len(server)


GREETED = FIXED + ack(nbd.OPT_EXTENDED_HEADERS)


@pytest.mark.parametrize(
    ("options", "server", "complaint"),
    [
        ({}, b"SSH-2.0-", "is not an NBD server"),
        ({}, b"NBDMAGIC" + bytes(8), "is not an NBD server"),
        ({"tls": True}, UNFIXED, "has no TLS"),
        ({"tls": True}, FIXED + refusal(nbd.OPT_STARTTLS, POLICY), "does not do TLS"),
        ({}, FIXED + refusal(nbd.OPT_EXTENDED_HEADERS, nbd.REP_ERR_TLS_REQD), "requires TLS"),
        ({}, FIXED + refusal(nbd.OPT_EXTENDED_HEADERS, nbd.REP_ERR_SHUTDOWN), "shutting down"),
        ({}, GREETED + refusal(CHOICE, nbd.REP_ERR_SHUTDOWN), "shutting down"),
        ({}, GREETED + context(CHOICE) + refusal(GO, POLICY, b"not you"), r"its policy forbids that \(not you\)"),
        (
            {"purpose": "info"}, GREETED + refusal(INFO, nbd.REP_ERR_UNKNOWN)
            + reply(nbd.OPT_LIST, nbd.REP_SERVER, string("other")) + ack(nbd.OPT_LIST),
            "has no export 'disk'; it has 'other'",
        ),
        ({"purpose": "list"}, GREETED + refusal(nbd.OPT_LIST, 1 << 31 | 77), "error 77"),
        (
            {}, GREETED + context(CHOICE) + refusal(GO, nbd.REP_ERR_UNKNOWN)
            + reply(nbd.OPT_LIST, nbd.REP_SERVER, string("other")) + ack(nbd.OPT_LIST),
            "has no export 'disk'; it has 'other'",
        ),
        (
            {}, GREETED + context(CHOICE) + refusal(GO, nbd.REP_ERR_UNKNOWN) + refusal(nbd.OPT_LIST, POLICY),
            "has no export 'disk'$",
        ),
        ({}, GREETED + reply(CHOICE, nbd.REP_META_CONTEXT, bytes(8)) * 100_001, "never ends"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_in_words(options: dict[str, bool], server: bytes, complaint: str) -> None:
    with pytest.raises(RefusedError, match=complaint):
        talk = Conversation(**options)  # type: ignore[arg-type]
        for at in range(0, len(server), 50_000):
            talk.hear(server[at : at + 50_000], [])


@pytest.mark.parametrize(
    "server",
    [
        FIXED + bytes(20),
        FIXED + ack(nbd.OPT_GO),
        FIXED + struct.pack(">QIII", nbd.REPLY_MAGIC, nbd.OPT_EXTENDED_HEADERS, 1, 1 << 31),
        GREETED + context(CHOICE) + ack(GO),
        GREETED + context(CHOICE) + reply(GO, nbd.REP_INFO, b"\0\0\0") + ack(GO),
        GREETED + context(CHOICE) + info(GO).replace(struct.pack(">I", 4096), struct.pack(">I", 4095)),
    ],
)
def test_what_a_server_must_not_say_is_an_error(server: bytes) -> None:
    with pytest.raises(ProtocolError):
        Conversation().hear(server, [])


def test_who_hangs_up_on_a_name_has_no_such_export() -> None:
    talk = Conversation()
    talk.machine.hung_up()
    talk.hear(UNFIXED, [])
    with pytest.raises(RefusedError, match="has no export 'disk': it hung up"):
        talk.machine.hung_up()


@pytest.mark.parametrize("policy", [Policy(), Policy(extended=False), Policy(structured=False)])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_both_roles_understand_each_other(policy: Policy, step: int) -> None:
    server, received = ServerHandshake(OneExport(), policy), Input()
    talk = Conversation()
    talk.hear(server.greeting(), [])
    heard = 0
    while heard < len(talk.said):
        received.feed(talk.said[heard : heard + step])
        heard = min(heard + step, len(talk.said))
        talk.hear(server.advance(received), [])
    assert server.state is ServerState.TRANSMISSION and talk.machine.state is State.ENTERED
    assert talk.machine.facts.extended == server.agreed.extended
    assert talk.machine.export.contexts == {name: at for at, name in server.agreed.contexts.items()}
    assert talk.machine.export.size == 1 << 20


PIECES = [GREETING, FIXED, ack(nbd.OPT_EXTENDED_HEADERS), ack(nbd.OPT_STRUCTURED_REPLY), context(CHOICE), info(GO),
          info(INFO), SIZE, refusal(GO, UNSUP), ack(nbd.OPT_STARTTLS), ack(nbd.OPT_LIST)]  # fmt: skip


@given(
    st.sampled_from([b"", UNFIXED, FIXED, GREETED, FIXED + ack(nbd.OPT_STARTTLS)]),
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=40), max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["go", "info", "list"]),
    st.lists(st.integers(0, 600)),
)
def test_any_bytes_are_an_answer_or_an_error(
    start: bytes, pieces: list[bytes], tls: bool, extended: bool, purpose: str, cuts: list[int]
) -> None:
    server = start + b"".join(pieces)
    talk = Conversation(tls=tls, extended=extended, purpose=purpose)
    with contextlib.suppress(ProtocolError, RefusedError):
        talk.hear(server, [cut % (len(server) + 1) for cut in cuts])
        assert talk.machine.listening or talk.machine.state in (State.READY, State.ENTERED)


def test_with_tls_no_other_option_goes_in_the_clear() -> None:
    talk = Conversation(tls=True)
    talk.hear(FIXED, [])
    assert talk.said == b"\0\0\0\3" + TLS
