"""The client's side of the handshake: fixed newstyle, newstyle and oldstyle as far as old servers have it.

`client_states.TRANSITIONS` has every step.  A state with an option in `_OPTIONS` sends it when it is entered, unless
there is no need to (`_NEEDLESS`), and is left once the server has acknowledged or refused it.  A refusal that is not
in the table is the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import ClassVar

from nbdfs.nbd.proto import answers
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.proto.client_states import TRANSITIONS, State, Step
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.refusals import RefusedError, no_such_export, refusal
from nbdfs.nbd.proto.wire import OPTION, REPLY
from nbdfs.records import replace

MOST_WANTED = 64 << 10  # bytes of one reply to an option
_MOST_ANSWERED = 16 << 20  # bytes of all replies to one option
_MOST_REPLIES = 100_000  # to one option


_STEPS = {nbd.REP_ERR_UNSUP: Step.UNSUPPORTED, nbd.REP_ERR_UNKNOWN: Step.UNKNOWN}
_FINAL = (nbd.REP_ERR_TLS_REQD, nbd.REP_ERR_SHUTDOWN)  # errors after which nothing else is worth asking


class ClientHandshake:
    """One handshake.  `advance` eats what was received and gives what to send, until `state` is READY or ENTERED.

    In STARTING_TLS the driver calls `tls_started`; in READY it asks by `list_exports`, `info` or `go`, which give what
    to send too.  When the state is READY again, or ENTERED, `exports` or `export` has the answer.
    """

    def __init__(self, *, tls: bool = False, extended: bool = True) -> None:
        self.state = State.MAGIC
        self.exports: list[tuple[str, str]] = []
        self.export = RemoteExport("", 0, 0)
        self._wants_tls = tls
        self._wants_extended = extended
        self._oldstyle = self._fixed = self._no_zeroes = False
        self._tls = self._structured = self._extended = False
        self._name = ""
        self._queries: Sequence[str] = ()
        self._contexts: dict[str, int] = {}
        self._header: tuple[int, int] | None = None  # type and length of the reply whose data comes next
        self._replies: list[tuple[int, bytes]] = []
        self._answered = 0  # bytes of replies to the option in hand

    @property
    def facts(self) -> ServerFacts:
        protocol = "oldstyle" if self._oldstyle else "newstyle-fixed" if self._fixed else "newstyle"
        return ServerFacts(protocol, self._tls, self._structured or self._extended, self._extended)

    @property
    def listening(self) -> bool:
        """Whether it is the server that must say something."""
        return self.state in self._SIZES or self.state in self._OPTIONS

    @property
    def wanted(self) -> int:
        """While `listening`: bytes that come next for sure; those behind them may belong to what comes afterwards."""
        if self._header:
            return self._header[1]
        return self._SIZES.get(self.state, REPLY.size)

    def advance(self, received: Input) -> bytes:
        """Go on as far as what was received allows; give what is to be sent.  Raises ProtocolError, RefusedError."""
        said = []
        while self.listening and len(received) >= self.wanted:
            data = received.take(self.wanted)
            said.append(self._hear(data) if self.state in self._SIZES else self._reply(data))
        return b"".join(said)

    def tls_started(self) -> bytes:
        """The connection is encrypted now."""
        self._tls = True
        return self._step(Step.TLS_STARTED)

    def list_exports(self) -> bytes:
        """Ask for the name and description of each export; none if the server does not tell."""
        self.exports = []
        return self._enter(State.LIST)

    def info(self, name: str) -> bytes:
        """Ask about an export, without entering it."""
        self._name, self._queries, self._contexts = name, (), {}
        if not self._oldstyle:
            self.export = RemoteExport(name, 0, 0)
        return self._enter(State.INFO)

    def go(self, name: str, contexts: Sequence[str]) -> bytes:
        """Enter an export, with as many of the metadata contexts as it has."""
        if self._oldstyle and name:
            raise RefusedError("speaks the oldstyle protocol, which has no export names")
        self._name, self._queries, self._contexts = name, contexts, {}
        self.exports = []
        return self._enter(State.CHOICE)

    def abort(self) -> bytes:
        """Say goodbye."""
        return OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_ABORT, 0) if self._fixed else b""

    def hung_up(self) -> None:
        """The server hung up.  Raises RefusedError if that is an answer."""
        if self.state is State.EXCUSE:
            raise self._excuse()
        if self.state is State.EXPORT_NAME:
            raise RefusedError(f"has no export '{self._name}': it hung up", nbd.REP_ERR_UNKNOWN)

    def _step(self, step: Step) -> bytes:
        return self._enter(TRANSITIONS[self.state, step])

    def _enter(self, state: State) -> bytes:
        """Go to a state; give what is to be said there."""
        self.state = state
        if state is State.TLS and self._wants_tls and not self._fixed:
            raise RefusedError("speaks an old protocol that has no TLS: use nbd instead of nbds")
        needless = self._NEEDLESS.get(state)
        if needless and needless(self):
            return self._step(Step.NEEDLESS)
        if state not in self._OPTIONS:
            return b""
        option, make = self._OPTIONS[state]
        data = make(self)
        self._replies = []
        self._answered = 0
        return OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data

    # Messages of a fixed size

    def _hear(self, data: bytes) -> bytes:
        if self.state is State.MAGIC and data != nbd.INIT_MAGIC.to_bytes(8):
            raise RefusedError(f"is not an NBD server: it greets with {data!r}")
        if self.state is State.VERSION:
            return self._version(int.from_bytes(data))
        if self.state is State.FLAGS:
            return self._flags(int.from_bytes(data))
        if self.state is State.OLDSTYLE:
            size, flags = struct.unpack(">QI124x", data)
            self.export = RemoteExport("", size, flags & 0xFFFF)
        elif self.state is State.EXPORT_NAME:
            size, flags = struct.unpack(">QH", data)
            self.export = RemoteExport(self._name, size, flags, contexts=self._contexts)
        return self._step(Step.HEARD)

    def _version(self, version: int) -> bytes:
        if version == nbd.OLDSTYLE_MAGIC:
            self._oldstyle = True
            return self._step(Step.HEARD_OLDSTYLE)
        if version != nbd.OPTION_MAGIC:
            raise RefusedError(f"is not an NBD server: it says version {version:#x}")
        return self._step(Step.HEARD)

    def _flags(self, flags: int) -> bytes:
        flags &= nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES
        self._fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
        return flags.to_bytes(4) + self._step(Step.HEARD)

    # Replies to options

    def _reply(self, data: bytes) -> bytes:
        """A header, or the data that belongs to it."""
        if self._header is None:
            option, _ = self._OPTIONS[self.state]
            magic, about, kind, length = REPLY.unpack(data)
            if magic != nbd.REPLY_MAGIC or about != option:
                raise ProtocolError(f"a reply to option {about}, not {option}")
            self._answered += REPLY.size + length
            if length > MOST_WANTED:
                raise ProtocolError(f"a reply of {length} bytes to option {option}")
            if self._answered > _MOST_ANSWERED or len(self._replies) >= _MOST_REPLIES:
                raise RefusedError(f"never ends its replies to option {option}")
            self._header = kind, length
            return b""
        kind, _ = self._header
        self._header = None
        if kind & nbd.REP_FLAG_ERROR:
            return self._refused(kind, data.decode(errors="replace"))
        if kind != nbd.REP_ACK:
            self._replies.append((kind, data))
            return b""
        if reader := self._READERS.get(self.state):
            reader(self)
        if self.state is State.EXCUSE:
            raise self._excuse()
        return self._step(Step.AGREED)

    def _refused(self, kind: int, text: str) -> bytes:
        state, step = self.state, _STEPS.get(kind, Step.REFUSED)
        if state is State.EXCUSE:
            raise self._excuse()
        if (state, step) not in TRANSITIONS:
            step = Step.REFUSED
        if (state, step) in TRANSITIONS and kind not in _FINAL:
            return self._step(step)
        if state in (State.LIST, State.INFO):
            self.state = State.READY
        raise refusal(self._OPTIONS[state][0], kind, text)

    def _excuse(self) -> RefusedError:
        return no_such_export(self._name, [name for name, _ in self.exports])

    def _heard_list(self) -> None:
        self.exports = answers.decode_list(self._replies)

    def _heard_info(self) -> None:
        self.export = replace(answers.decode_info(self._name, self._replies), contexts=self._contexts)

    def _heard_contexts(self) -> None:
        self._contexts = answers.decode_contexts(self._replies)
        self.export = replace(self.export, contexts=self._contexts)

    def _heard_extended(self) -> None:
        self._extended = True

    def _heard_structured(self) -> None:
        self._structured = True

    def _no_data(self) -> bytes:
        return b""

    def _export_query(self) -> bytes:
        return answers.export_query(self._name)

    def _context_query(self) -> bytes:
        return answers.context_query(self._name, self._queries)

    def _export_name(self) -> bytes:
        return self._name.encode()

    _SIZES: ClassVar[dict[State, int]] = {
        State.MAGIC: 8,
        State.VERSION: 8,
        State.OLDSTYLE: 136,
        State.FLAGS: 2,
        State.EXPORT_NAME: 10,
        State.PADDING: 124,
    }
    _OPTIONS: ClassVar[dict[State, tuple[int, Callable[[ClientHandshake], bytes]]]] = {
        State.TLS: (nbd.OPT_STARTTLS, _no_data),
        State.EXTENDED: (nbd.OPT_EXTENDED_HEADERS, _no_data),
        State.STRUCTURED: (nbd.OPT_STRUCTURED_REPLY, _no_data),
        State.LIST: (nbd.OPT_LIST, _no_data),
        State.INFO: (nbd.OPT_INFO, _export_query),
        State.CONTEXTS: (nbd.OPT_LIST_META_CONTEXT, _context_query),
        State.CHOICE: (nbd.OPT_SET_META_CONTEXT, _context_query),
        State.GO: (nbd.OPT_GO, _export_query),
        State.EXCUSE: (nbd.OPT_LIST, _no_data),
        State.EXPORT_NAME: (nbd.OPT_EXPORT_NAME, _export_name),
    }
    _NEEDLESS: ClassVar[dict[State, Callable[[ClientHandshake], bool]]] = {
        State.TLS: lambda self: not self._wants_tls,
        State.EXTENDED: lambda self: not (self._fixed and self._wants_extended),
        State.STRUCTURED: lambda self: not self._fixed,
        State.LIST: lambda self: not self._fixed,
        State.INFO: lambda self: not self._fixed,
        State.CONTEXTS: lambda self: not self.facts.structured,
        State.CHOICE: lambda self: not (self._queries and self.facts.structured),
        State.GO: lambda self: not self._fixed,
        State.EXPORT_NAME: lambda self: self._oldstyle,
        State.PADDING: lambda self: self._no_zeroes,
    }
    _READERS: ClassVar[dict[State, Callable[[ClientHandshake], None]]] = {
        State.EXTENDED: _heard_extended,
        State.STRUCTURED: _heard_structured,
        State.LIST: _heard_list,
        State.INFO: _heard_info,
        State.CONTEXTS: _heard_contexts,
        State.CHOICE: _heard_contexts,
        State.GO: _heard_info,
        State.EXCUSE: _heard_list,
    }
