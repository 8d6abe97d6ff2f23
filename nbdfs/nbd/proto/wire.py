"""Codecs of the handshake: option data in, replies out.

Every decoder takes the bytes of one option and raises `MalformedError` for whatever is not exactly one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ExportFacts

GREETING = struct.Struct(">QQH")
OPTION = struct.Struct(">QII")
REPLY = struct.Struct(">QIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class MalformedError(Exception):
    """The data of an option makes no sense; the argument says why."""


class ExportQuery(NamedTuple):
    """NBD_OPT_INFO and NBD_OPT_GO: an export, and what the client wants to know of it."""

    name: str
    wanted: frozenset[int]


class ContextQuery(NamedTuple):
    """NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


class _Reader:
    """Reads fields off the front of an option's data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: struct.Struct) -> int:
        return int.from_bytes(self._bytes(form.size))

    def string(self) -> str:
        return decode_string(self._bytes(self.number(_U32)))

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedError(f"{len(self._data) - self._at} bytes too many")

    def _bytes(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise MalformedError("it ends too early")
        self._at += count
        return taken


def decode_string(data: bytes) -> str:
    """A string as "Values" has it: UTF-8 without NUL, 4096 bytes at most."""
    if len(data) > nbd.MAX_STRING:
        raise MalformedError(f"a string of {len(data)} bytes, the maximum is {nbd.MAX_STRING}")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise MalformedError("a string that is not UTF-8") from None
    if "\0" in text:
        raise MalformedError("a string that holds a NUL")
    return text


def decode_export_query(data: bytes) -> ExportQuery:
    """The data of NBD_OPT_INFO and NBD_OPT_GO.  Raises MalformedError, as all that decode here."""
    reader = _Reader(data)
    name = reader.string()
    wanted = frozenset([reader.number(_U16) for _ in range(reader.number(_U16))])
    reader.end()
    return ExportQuery(name, wanted)


def decode_context_query(data: bytes) -> ContextQuery:
    """The data of an option about metadata contexts."""
    reader = _Reader(data)
    name = reader.string()
    queries = tuple([reader.string() for _ in range(reader.number(_U32))])
    reader.end()
    if not all(":" in query for query in queries):
        raise MalformedError("a query without a namespace")
    return ContextQuery(name, queries)


def decode_nothing(data: bytes) -> None:
    """The data of an option that has none."""
    _Reader(data).end()


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    """A reply to an option."""
    return REPLY.pack(nbd.REPLY_MAGIC, option, kind, len(data)) + data


def _text(text: str) -> bytes:
    """Words for people, no longer than a string may be; what is no UTF-8, as in the name of a file, is a `?`."""
    return text.encode(errors="replace")[: nbd.MAX_STRING].decode(errors="ignore").encode()


def error_reply(option: int, kind: int, message: str) -> bytes:
    """NBD_REP_ERR_*: an option that is refused, with the reason for people."""
    return reply(option, kind, _text(message))


def server_reply(option: int, name: str, description: str) -> bytes:
    """NBD_REP_SERVER: one export of the list."""
    encoded = name.encode()
    return reply(option, nbd.REP_SERVER, _U32.pack(len(encoded)) + encoded + _text(description))


def info_replies(option: int, facts: ExportFacts, flags: int, wanted: frozenset[int]) -> bytes:
    """NBD_REP_INFO: what there is to know about an export, as far as it was asked for."""
    items = {
        nbd.INFO_EXPORT: struct.pack(">QH", facts.size, flags),
        nbd.INFO_NAME: facts.name.encode(),
        nbd.INFO_DESCRIPTION: _text(facts.description),
        nbd.INFO_BLOCK_SIZE: struct.pack(">III", facts.minimum, facts.preferred, facts.maximum),
    }
    if not facts.description:
        del items[nbd.INFO_DESCRIPTION]
    return b"".join(
        reply(option, nbd.REP_INFO, _U16.pack(kind) + data)
        for kind, data in items.items()
        if kind == nbd.INFO_EXPORT or kind in wanted
    )


def context_reply(option: int, number: int, name: str) -> bytes:
    """NBD_REP_META_CONTEXT: a context, and the number it has on this connection."""
    return reply(option, nbd.REP_META_CONTEXT, _U32.pack(number) + name.encode())
