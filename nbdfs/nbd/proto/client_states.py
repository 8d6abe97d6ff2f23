"""The states of the client's handshake and every step between them."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a handshake stands: what comes next, or what was asked for."""

    MAGIC = enum.auto()
    VERSION = enum.auto()
    OLDSTYLE = enum.auto()
    FLAGS = enum.auto()
    TLS = enum.auto()
    STARTING_TLS = enum.auto()  # both: the TLS handshake
    EXTENDED = enum.auto()
    STRUCTURED = enum.auto()
    READY = enum.auto()  # client: `list_exports`, `info`, `go` or `abort`
    LIST = enum.auto()
    INFO = enum.auto()
    CONTEXTS = enum.auto()
    CHOICE = enum.auto()  # of metadata contexts
    GO = enum.auto()
    EXCUSE = enum.auto()  # the exports there are, since the one asked for is not
    EXPORT_NAME = enum.auto()
    PADDING = enum.auto()
    ENTERED = enum.auto()  # the handshake is over


class Step(enum.Enum):
    """What moves a handshake on."""

    HEARD = enum.auto()
    HEARD_OLDSTYLE = enum.auto()
    TLS_STARTED = enum.auto()
    AGREED = enum.auto()
    UNSUPPORTED = enum.auto()  # NBD_REP_ERR_UNSUP
    UNKNOWN = enum.auto()  # NBD_REP_ERR_UNKNOWN
    REFUSED = enum.auto()  # any error that has no place of its own
    NEEDLESS = enum.auto()


TRANSITIONS = {
    (State.MAGIC, Step.HEARD): State.VERSION,
    (State.VERSION, Step.HEARD): State.FLAGS,
    (State.VERSION, Step.HEARD_OLDSTYLE): State.OLDSTYLE,
    (State.OLDSTYLE, Step.HEARD): State.TLS,
    (State.FLAGS, Step.HEARD): State.TLS,
    (State.TLS, Step.AGREED): State.STARTING_TLS,
    (State.TLS, Step.NEEDLESS): State.EXTENDED,
    (State.STARTING_TLS, Step.TLS_STARTED): State.EXTENDED,
    (State.EXTENDED, Step.AGREED): State.READY,
    (State.EXTENDED, Step.REFUSED): State.STRUCTURED,
    (State.EXTENDED, Step.NEEDLESS): State.STRUCTURED,
    (State.STRUCTURED, Step.AGREED): State.READY,
    (State.STRUCTURED, Step.REFUSED): State.READY,
    (State.STRUCTURED, Step.NEEDLESS): State.READY,
    (State.LIST, Step.AGREED): State.READY,
    (State.LIST, Step.NEEDLESS): State.READY,
    (State.INFO, Step.AGREED): State.CONTEXTS,
    (State.INFO, Step.UNKNOWN): State.EXCUSE,
    (State.INFO, Step.NEEDLESS): State.READY,
    (State.CONTEXTS, Step.AGREED): State.READY,
    (State.CONTEXTS, Step.REFUSED): State.READY,
    (State.CONTEXTS, Step.NEEDLESS): State.READY,
    (State.CHOICE, Step.AGREED): State.GO,
    (State.CHOICE, Step.REFUSED): State.GO,
    (State.CHOICE, Step.NEEDLESS): State.GO,
    (State.GO, Step.AGREED): State.ENTERED,
    (State.GO, Step.UNSUPPORTED): State.EXPORT_NAME,
    (State.GO, Step.UNKNOWN): State.EXCUSE,
    (State.GO, Step.NEEDLESS): State.EXPORT_NAME,
    (State.EXPORT_NAME, Step.HEARD): State.PADDING,
    (State.EXPORT_NAME, Step.NEEDLESS): State.ENTERED,
    (State.PADDING, Step.HEARD): State.ENTERED,
    (State.PADDING, Step.NEEDLESS): State.ENTERED,
}
