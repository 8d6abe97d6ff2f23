"""The server's side of the handshake: fixed newstyle, from the greeting to the transmission phase.

`TRANSITIONS` has every step.  An event is what the client said (an option, or the flags that answer the greeting) or
what the server did (agreed, refused); a pair that is not in the table is a violation of the protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto import wire
from nbdfs.nbd.proto.events import Agreed, ExportFacts, Option, ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.wire import MalformedError
from nbdfs.records import Record

_MOST_OPTIONS = 1000  # in one handshake
_MORE_OPTIONS = 4  # for each export that the client was told of
_MOST_DATA = 64 << 10  # bytes of an option that are looked at; what is longer is skipped and refused
_MOST_SKIPPED = 32 << 20  # bytes of an option that are skipped
_MOST_SAID = 64 << 10  # bytes of answers, after which those that there are go out first
_PADDING = bytes(124)


class State(enum.Enum):
    """Where a handshake stands; the comment says who must act."""

    GREETED = enum.auto()  # client: its flags
    OPTIONS = enum.auto()  # client: an option
    STARTING_TLS = enum.auto()  # both: the TLS handshake
    TRANSMISSION = enum.auto()  # the handshake is over
    CLOSED = enum.auto()  # the connection ends


class Step(enum.Enum):
    """What moves a handshake on."""

    CLIENT_FLAGS = enum.auto()
    ANSWERED = enum.auto()  # an option was answered, and no more
    AGREED_TLS = enum.auto()
    TLS_STARTED = enum.auto()
    ENTERED = enum.auto()  # an export was entered
    ABORTED = enum.auto()


TRANSITIONS = {
    (State.GREETED, Step.CLIENT_FLAGS): State.OPTIONS,
    (State.OPTIONS, Step.ANSWERED): State.OPTIONS,
    (State.OPTIONS, Step.AGREED_TLS): State.STARTING_TLS,
    (State.STARTING_TLS, Step.TLS_STARTED): State.OPTIONS,
    (State.OPTIONS, Step.ENTERED): State.TRANSMISSION,
    (State.OPTIONS, Step.ABORTED): State.CLOSED,
}


class Tls(enum.Enum):
    """NBD protocol, "TLS support": NOTLS, SELECTIVETLS with no export that needs it, FORCEDTLS."""

    OFF = enum.auto()
    ON = enum.auto()
    REQUIRE = enum.auto()


class Exports(Protocol):
    """The exports that a client may choose from."""

    def names(self) -> Iterable[tuple[str, str]]:
        """Name and description of each."""

    def find(self, name: str) -> ExportFacts | None:
        """The export that a client calls `name`."""


class Policy(Record):
    """What the server grants."""

    tls: Tls = Tls.OFF
    structured: bool = True
    extended: bool = True


class _RefusalError(Exception):
    """The option in hand is answered by an error reply."""

    def __init__(self, kind: int, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class ServerHandshake:
    """One handshake.  `advance` eats what was received and gives what to send, until `state` asks for something else.

    After STARTING_TLS the driver calls `tls_started`; in TRANSMISSION `export` and `agreed` hold.
    """

    def __init__(self, exports: Exports, policy: Policy) -> None:
        self.state = State.GREETED
        self.agreed = Agreed()
        self.export: ExportFacts | None = None
        self.stopping = False  # the server is shutting down: refuse all but ABORT
        self._exports = exports
        self._policy = policy
        self._count = 0
        self._most_options = _MOST_OPTIONS
        self._skip = 0
        self._skipped: int | None = None  # the option whose data is being skipped

    @staticmethod
    def greeting() -> bytes:
        """What the server sends first."""
        return wire.GREETING.pack(nbd.INIT_MAGIC, nbd.OPTION_MAGIC, nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)

    def advance(self, received: Input) -> bytes:
        """Go on; give what is to be sent before it is called again.  Raises ProtocolError.

        Nothing to be sent means that all that was received is used up, as far as it is whole.
        """
        if self.state is State.GREETED and len(received) >= 4:
            self._client_flags(int.from_bytes(received.take(4)))
        answers = bytearray()
        while self.state is State.OPTIONS and len(answers) < _MOST_SAID:
            option = self._next_option(received)
            if option is None:
                break
            answers += self._answer(option)
        return bytes(answers)

    def tls_started(self) -> None:
        """The connection is encrypted now."""
        self._step(Step.TLS_STARTED)
        self.agreed.forget()
        self.agreed.tls = True

    def _step(self, step: Step) -> None:
        self.state = TRANSITIONS[self.state, step]

    def _client_flags(self, flags: int) -> None:
        if flags & ~(nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES):
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self.agreed.fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
        self.agreed.no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        self._step(Step.CLIENT_FLAGS)

    def _next_option(self, received: Input) -> Option | None:
        """The next option, if it is here whole."""
        if self._skipped is None:
            if len(received) < wire.OPTION.size:
                return None
            magic, number, length = wire.OPTION.unpack_from(received.view, received.start)
            if magic != nbd.OPTION_MAGIC:
                raise ProtocolError(f"an option begins with {magic:#x}")
            if length > _MOST_SKIPPED:
                raise ProtocolError(f"an option of {length} bytes")
            if length <= _MOST_DATA:
                if len(received) < wire.OPTION.size + length:
                    return None
                received.skip(wire.OPTION.size)
                return self._counted(Option(number, received.take(length)))
            received.skip(wire.OPTION.size)
            self._skipped, self._skip = number, length
        self._skip -= received.skip(self._skip)
        if self._skip:
            return None
        number, self._skipped = self._skipped, None
        return self._counted(Option(number, bytes(_MOST_DATA + 1)))

    def _counted(self, option: Option) -> Option:
        self._count += 1
        if self._count > self._most_options:
            raise ProtocolError(f"more than {self._most_options} options")
        return option

    def _answer(self, option: Option) -> bytes:
        number = option.number
        if number == nbd.OPT_EXPORT_NAME:
            return self._export_name(option.data)
        if not self.agreed.fixed:
            raise ProtocolError(f"option {number} from a client that does not speak fixed newstyle")
        if number == nbd.OPT_ABORT:
            self._step(Step.ABORTED)
            return wire.reply(number, nbd.REP_ACK)
        try:
            step, replies = self._granted(option)
        except _RefusalError as refusal:
            step, replies = Step.ANSWERED, wire.error_reply(number, refusal.kind, refusal.message)
        except MalformedError as error:
            step, replies = Step.ANSWERED, wire.error_reply(number, nbd.REP_ERR_INVALID, str(error))
        self._step(step)
        return replies

    def _granted(self, option: Option) -> tuple[Step, bytes]:
        """Do what an option asks: the step it leads to, and all its replies."""
        number, data = option
        if self.stopping:
            raise _RefusalError(nbd.REP_ERR_SHUTDOWN, "the server is shutting down")
        if self._policy.tls is Tls.REQUIRE and not self.agreed.tls and number != nbd.OPT_STARTTLS:
            raise _RefusalError(nbd.REP_ERR_TLS_REQD, "this server talks under TLS only")
        act = self._OPTIONS.get(number)
        if act is None:
            raise _RefusalError(nbd.REP_ERR_UNSUP, f"option {number} is not known here")
        if len(data) > _MOST_DATA:
            raise _RefusalError(nbd.REP_ERR_TOO_BIG, f"more than {_MOST_DATA} bytes")
        replies = act(self, number, data)
        return self._STEPS.get(number, Step.ANSWERED), replies + wire.reply(number, nbd.REP_ACK)

    def _export_name(self, data: bytes) -> bytes:
        """NBD_OPT_EXPORT_NAME: it has no error replies, so what is wrong ends the connection."""
        if self._policy.tls is Tls.REQUIRE and not self.agreed.tls:
            raise ProtocolError("the client asked for an export without TLS, which is required")
        if self.agreed.extended:
            raise ProtocolError("NBD_OPT_EXPORT_NAME after extended headers were agreed on")
        try:
            facts = self._find(wire.decode_string(data))
        except (MalformedError, _RefusalError) as error:
            raise ProtocolError(f"NBD_OPT_EXPORT_NAME: {error}") from error
        self._enter(facts)
        self._step(Step.ENTERED)
        flags = self.transmission_flags(facts)
        padding = b"" if self.agreed.no_zeroes else _PADDING
        return facts.size.to_bytes(8) + flags.to_bytes(2) + padding

    def _enter(self, facts: ExportFacts) -> None:
        self.export = facts
        if self.agreed.contexts_export != facts.name:
            self.agreed.contexts = {}

    def transmission_flags(self, facts: ExportFacts) -> int:
        """The flags of an export for this client."""
        flags = facts.flags
        if self.agreed.structured or self.agreed.extended:
            flags |= nbd.FLAG_SEND_DF
        if self.agreed.extended and self.agreed.contexts:
            flags |= nbd.FLAG_BLOCK_STATUS_PAYLOAD
        return flags

    def _find(self, name: str) -> ExportFacts:
        facts = self._exports.find(name)
        if facts is None:
            raise _RefusalError(nbd.REP_ERR_UNKNOWN, f"there is no export '{name}'")
        return facts

    # The options: each takes its number and data and gives the replies before NBD_REP_ACK.

    def _list(self, number: int, data: bytes) -> bytes:
        wire.decode_nothing(data)
        replies = [wire.server_reply(number, name, text) for name, text in self._exports.names()]
        self._most_options = _MOST_OPTIONS + _MORE_OPTIONS * len(replies)
        return b"".join(replies)

    def _start_tls(self, number: int, data: bytes) -> bytes:
        wire.decode_nothing(data)
        if self._policy.tls is Tls.OFF:
            raise _RefusalError(nbd.REP_ERR_POLICY, "this server has no TLS")
        if self.agreed.tls:
            raise _RefusalError(nbd.REP_ERR_INVALID, "TLS is on already")
        return b""

    def _info(self, number: int, data: bytes) -> bytes:
        query = wire.decode_export_query(data)
        facts = self._find(query.name)
        return wire.info_replies(number, facts, self.transmission_flags(facts), query.wanted)

    def _go(self, number: int, data: bytes) -> bytes:
        query = wire.decode_export_query(data)
        facts = self._find(query.name)
        self._enter(facts)
        return wire.info_replies(number, facts, self.transmission_flags(facts), query.wanted)

    def _structured(self, number: int, data: bytes) -> bytes:
        wire.decode_nothing(data)
        if not self._policy.structured:
            raise _RefusalError(nbd.REP_ERR_UNSUP, "this server sends simple replies only")
        if self.agreed.extended:
            raise _RefusalError(nbd.REP_ERR_EXT_HEADER_REQD, "extended headers were agreed on already")
        self.agreed.structured = True
        return b""

    def _extended(self, number: int, data: bytes) -> bytes:
        wire.decode_nothing(data)
        if not (self._policy.structured and self._policy.extended):
            raise _RefusalError(nbd.REP_ERR_UNSUP, "this server has no extended headers")
        self.agreed.extended = True
        return b""

    def _list_contexts(self, number: int, data: bytes) -> bytes:
        query = wire.decode_context_query(data)
        facts = self._context_export(query.name)
        chosen = [name for name in facts.contexts if not query.queries or _matches(name, query.queries)]
        return b"".join(wire.context_reply(number, 0, name) for name in chosen)

    def _set_contexts(self, number: int, data: bytes) -> bytes:
        self.agreed.contexts = {}
        self.agreed.contexts_export = None
        query = wire.decode_context_query(data)
        facts = self._context_export(query.name)
        chosen = {at: name for at, name in enumerate(facts.contexts, 1) if name in query.queries}
        self.agreed.contexts = chosen
        self.agreed.contexts_export = facts.name
        return b"".join(wire.context_reply(number, at, name) for at, name in chosen.items())

    def _context_export(self, name: str) -> ExportFacts:
        if not (self.agreed.structured or self.agreed.extended):
            raise _RefusalError(nbd.REP_ERR_INVALID, "metadata contexts need structured replies")
        return self._find(name)

    _OPTIONS: ClassVar[dict[int, Callable[[ServerHandshake, int, bytes], bytes]]] = {
        nbd.OPT_LIST: _list,
        nbd.OPT_STARTTLS: _start_tls,
        nbd.OPT_INFO: _info,
        nbd.OPT_GO: _go,
        nbd.OPT_STRUCTURED_REPLY: _structured,
        nbd.OPT_LIST_META_CONTEXT: _list_contexts,
        nbd.OPT_SET_META_CONTEXT: _set_contexts,
        nbd.OPT_EXTENDED_HEADERS: _extended,
    }  # fmt: skip
    _STEPS: ClassVar = {nbd.OPT_STARTTLS: Step.AGREED_TLS, nbd.OPT_GO: Step.ENTERED}


def _matches(name: str, queries: tuple[str, ...]) -> bool:
    """Whether a query names the context, or its whole namespace."""
    return name in queries or name[: name.index(":") + 1] in queries
