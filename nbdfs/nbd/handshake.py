"""The client's side of the handshake, over a channel.

NBD protocol, "Handshake phase": fixed newstyle with everything this client can use, newstyle and oldstyle as far as old
servers have it.  Every reply is held against what was asked; their number and length are bounded.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbdfs.errors import SourceError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.source import ALLOCATION

if TYPE_CHECKING:
    import ssl

    from nbdfs.nbd.channel import Channel

_MOST_OPTION_DATA = 64 << 10  # bytes of one reply
_MOST_REPLIES = 100_000  # to one option
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")


class HandshakeError(SourceError):
    """The server refused, or is not what it was taken for.  `reply` is its NBD_REP_ERR, if it sent one."""

    def __init__(self, message: str, reply: int = 0) -> None:
        super().__init__(errno.ECONNREFUSED, message)
        self.reply = reply


@dataclass(frozen=True)
class ExportFacts:
    """What a server says about an export.

    `flags` are NBD_FLAG_*, `block` the minimum, preferred and maximum block size in bytes if told, `contexts` the
    metadata contexts there are, with their ids where they were negotiated.
    """

    name: str
    size: int
    flags: int
    canonical_name: str = ""
    description: str = ""
    block: tuple[int, int, int] | None = None
    contexts: Mapping[str, int] = field(default_factory=dict)

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


@dataclass(frozen=True)
class ServerFacts:
    """How a server is spoken with.  `protocol` is `newstyle-fixed`, `newstyle` or `oldstyle`."""

    protocol: str
    tls: bool
    structured: bool
    extended: bool


class Handshake:
    """One handshake.  `begin` comes first, `go` last; both ends are in the transmission phase then.

    The methods raise OSError: HandshakeError for what the server refuses, ConnectionError for a lost connection.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._fixed = False
        self._no_zeroes = False
        self._oldstyle: ExportFacts | None = None
        self._structured = False
        self._extended = False

    @property
    def facts(self) -> ServerFacts:
        protocol = "oldstyle" if self._oldstyle else "newstyle-fixed" if self._fixed else "newstyle"
        return ServerFacts(protocol, self._channel.encrypted, self._structured or self._extended, self._extended)

    async def begin(self, tls: ssl.SSLContext | None, hostname: str, *, extended: bool = True) -> None:
        """Greet, go under TLS if there is a context, and agree on the best form of replies (`extended` allows it)."""
        magic = await self._channel.recv_exactly(8)
        if magic != nbd.INIT_MAGIC.to_bytes(8):
            raise HandshakeError(f"{self._channel.peer} is not an NBD server: it greets with {magic!r}")
        version = int.from_bytes(await self._channel.recv_exactly(8))
        if version == nbd.OLDSTYLE_MAGIC:
            size, flags = struct.unpack(">QI124x", await self._channel.recv_exactly(136))
            self._oldstyle = ExportFacts("", size, flags & 0xFFFF)
        elif version == nbd.OPTION_MAGIC:
            flags = int.from_bytes(await self._channel.recv_exactly(2))
            self._fixed = bool(flags & nbd.FLAG_FIXED_NEWSTYLE)
            self._no_zeroes = bool(flags & nbd.FLAG_NO_ZEROES)
            answer = flags & (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES)
            await self._channel.send_rest(memoryview(answer.to_bytes(4)))
        else:
            raise HandshakeError(f"{self._channel.peer} is not an NBD server: it says version {version:#x}")
        if tls is not None:
            await self._start_tls(tls, hostname)
        if self._fixed:
            self._extended = extended and await self._agreed(nbd.OPT_EXTENDED_HEADERS)
            self._structured = not self._extended and await self._agreed(nbd.OPT_STRUCTURED_REPLY)

    async def _start_tls(self, context: ssl.SSLContext, hostname: str) -> None:
        if not self._fixed:
            raise HandshakeError(
                f"{self._channel.peer} speaks an old protocol that has no TLS: use nbd instead of nbds"
            )
        if not await self._agreed(nbd.OPT_STARTTLS):
            raise HandshakeError(
                f"{self._channel.peer} does not do TLS: use nbd instead of nbds, if that is acceptable"
            )
        await self._channel.start_tls(context, hostname)

    async def list_exports(self) -> list[tuple[str, str]]:
        """The name and description of each export.  Empty if the server does not tell."""
        found = []
        if self._fixed:
            async for kind, data in self._option(nbd.OPT_LIST):
                if kind == nbd.REP_SERVER:
                    name, rest = _string(data)
                    found.append((name, rest.decode(errors="replace")))
        return found

    async def contexts(self, name: str, queries: Sequence[str] = ()) -> dict[str, int]:
        """The metadata contexts that an export has, all or those that match."""
        return await self._contexts(nbd.OPT_LIST_META_CONTEXT, name, queries)

    async def info(self, name: str) -> ExportFacts:
        """What the server says about an export, without entering it."""
        if self._oldstyle:
            return self._oldstyle
        facts = await self._info(nbd.OPT_INFO, name)
        if self._structured or self._extended:
            try:
                contexts = await self.contexts(name)
            except HandshakeError:
                contexts = {}
            facts = _with(facts, contexts)
        return facts

    async def go(self, name: str, contexts: Sequence[str] = (ALLOCATION,)) -> ExportFacts:
        """Enter an export, with as many of the contexts as it has."""
        if self._oldstyle:
            if name:
                raise HandshakeError(f"{self._channel.peer} speaks the oldstyle protocol, which has no export names")
            return self._oldstyle
        agreed: dict[str, int] = {}
        if contexts and (self._structured or self._extended):
            try:
                agreed = await self._contexts(nbd.OPT_SET_META_CONTEXT, name, contexts)
            except HandshakeError as error:
                if error.reply in (nbd.REP_ERR_TLS_REQD, nbd.REP_ERR_SHUTDOWN):
                    raise
        if self._fixed:
            try:
                return _with(await self._info(nbd.OPT_GO, name), agreed)
            except HandshakeError as error:
                if error.reply == nbd.REP_ERR_UNKNOWN:
                    raise HandshakeError(await self._unknown_export(name), error.reply) from error
                if error.reply != nbd.REP_ERR_UNSUP:
                    raise
        return _with(await self._export_name(name), agreed)

    async def abort(self) -> None:
        """Say goodbye before the transmission phase."""
        if self._fixed:
            self._channel.send_now(_OPTION.pack(nbd.OPTION_MAGIC, nbd.OPT_ABORT, 0))

    async def _unknown_export(self, name: str) -> str:
        message = f"{self._channel.peer} has no export '{name}'"
        try:
            names = [f"'{there}'" for there, _ in await self.list_exports()]
        except OSError:
            return message
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        return f"{message}; it has {shown}" if names else message

    async def _export_name(self, name: str) -> ExportFacts:
        """NBD_OPT_EXPORT_NAME: the server enters the export, or hangs up."""
        await self._send(nbd.OPT_EXPORT_NAME, name.encode())
        try:
            size, flags = struct.unpack(">QH", await self._channel.recv_exactly(10))
        except ConnectionResetError as error:
            raise HandshakeError(
                f"{self._channel.peer} has no export '{name}': it hung up", nbd.REP_ERR_UNKNOWN
            ) from error
        if not self._no_zeroes:
            await self._channel.recv_exactly(124)
        return ExportFacts(name, size, flags)

    async def _info(self, option: int, name: str) -> ExportFacts:
        wanted = (nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE)
        data = _packed(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)
        found: dict[int, bytes] = {}
        async for kind, body in self._option(option, data):
            if kind == nbd.REP_INFO and len(body) >= 2:
                found[int.from_bytes(body[:2])] = body[2:]
        try:
            size, flags = struct.unpack(">QH", found[nbd.INFO_EXPORT])
            block = struct.unpack(">III", found[nbd.INFO_BLOCK_SIZE]) if nbd.INFO_BLOCK_SIZE in found else None
        except (KeyError, struct.error) as error:
            raise HandshakeError(f"{self._channel.peer} does not tell the size of '{name}' as it must") from error
        if block is not None and not _sensible(block):
            raise HandshakeError(f"{self._channel.peer} has block sizes that make no sense: {block}")
        canonical, description = (
            found.get(kind, b"").decode(errors="replace") for kind in (nbd.INFO_NAME, nbd.INFO_DESCRIPTION)
        )
        return ExportFacts(name, size, flags, canonical, description, block)

    async def _contexts(self, option: int, name: str, queries: Sequence[str]) -> dict[str, int]:
        data = _packed(name) + struct.pack(">I", len(queries)) + b"".join(map(_packed, queries))
        found = {}
        async for kind, body in self._option(option, data):
            if kind == nbd.REP_META_CONTEXT and len(body) > 4:
                found[body[4:].decode(errors="replace")] = int.from_bytes(body[:4])
        return found

    async def _agreed(self, option: int) -> bool:
        """Whether the server agrees to an option without data."""
        try:
            async for _ in self._option(option):
                pass
        except HandshakeError as error:
            if error.reply in (nbd.REP_ERR_TLS_REQD, nbd.REP_ERR_SHUTDOWN) or not error.reply:
                raise
            return False
        return True

    async def _option(self, option: int, data: bytes = b"") -> AsyncIterator[tuple[int, bytes]]:
        """Send an option; give the replies before its acknowledgement."""
        await self._send(option, data)
        for _ in range(_MOST_REPLIES):
            magic, about, kind, length = _REPLY.unpack(await self._channel.recv_exactly(_REPLY.size))
            if magic != nbd.REPLY_MAGIC or about != option:
                raise HandshakeError(
                    f"{self._channel.peer} broke the protocol: a reply to option {about}, not {option}"
                )
            if length > _MOST_OPTION_DATA:
                raise HandshakeError(f"{self._channel.peer} broke the protocol: a reply of {length} bytes to an option")
            body = await self._channel.recv_exactly(length)
            if kind & nbd.REP_FLAG_ERROR:
                raise HandshakeError(self._refusal(option, kind, body.decode(errors="replace")), kind)
            if kind == nbd.REP_ACK:
                return
            yield kind, body
        raise HandshakeError(f"{self._channel.peer} never ends its replies to option {option}")

    def _refusal(self, option: int, kind: int, text: str) -> str:
        if kind == nbd.REP_ERR_TLS_REQD:
            return f"{self._channel.peer} requires TLS: use nbds instead of nbd"
        reason = _REASONS.get(kind, f"error {kind & 0xFF}")
        return f"{self._channel.peer} refuses: {reason}" + (f" ({text})" if text else "")

    async def _send(self, option: int, data: bytes = b"") -> None:
        await self._channel.send_rest(memoryview(_OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data))


_REASONS = {
    nbd.REP_ERR_UNSUP: "it does not know that option",
    nbd.REP_ERR_POLICY: "its policy forbids that",
    nbd.REP_ERR_INVALID: "it calls the request invalid",
    nbd.REP_ERR_PLATFORM: "its platform cannot do that",
    nbd.REP_ERR_UNKNOWN: "there is no such export",
    nbd.REP_ERR_SHUTDOWN: "it is shutting down",
    nbd.REP_ERR_BLOCK_SIZE_REQD: "it wants its block sizes asked for",
    nbd.REP_ERR_TOO_BIG: "the request is too big for it",
}


def _packed(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data


def _string(data: bytes) -> tuple[str, bytes]:
    """A string with its length before it, and what follows."""
    length = int.from_bytes(data[:4])
    if len(data) < 4 + length:
        raise HandshakeError("the server broke the protocol: a string longer than its message")
    return data[4 : 4 + length].decode(errors="replace"), data[4 + length :]


def _sensible(block: tuple[int, ...]) -> bool:
    """Whether block sizes are what "Block size constraints" allows."""
    minimum, preferred, maximum = block
    powers = all(size & (size - 1) == 0 and size for size in (minimum, preferred))
    whole = maximum == 0xFFFFFFFF or maximum % minimum == 0 if minimum else False
    return powers and whole and minimum <= 65536 and minimum <= preferred and maximum >= minimum


def _with(facts: ExportFacts, contexts: Mapping[str, int]) -> ExportFacts:
    return ExportFacts(
        facts.name, facts.size, facts.flags, facts.canonical_name, facts.description, facts.block, contexts
    )
