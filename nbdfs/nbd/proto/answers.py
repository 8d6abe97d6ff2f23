"""What a server says of itself and its exports, and the options that ask for it: the client's codecs of the handshake.

Every decoder raises ProtocolError for what makes no sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.records import Record, field

_WANTED = (nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE)

Replies = Iterable[tuple[int, bytes]]  # type and data of each reply to an option


class RemoteExport(Record):
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

    @property
    def reachable(self) -> int:
        """The size in whole blocks, which are all that can be asked for."""
        return self.size - self.size % self.block[0] if self.block else self.size

    @property
    def missing(self) -> str:
        """What cannot be asked for, in words; NBD protocol, "Block size constraints", wants that there is nothing."""
        left = self.size - self.reachable
        if not left or not self.block:
            return ""
        return f"the last {left} of {self.size} bytes cannot be reached, for its smallest block is {self.block[0]}"


class ServerFacts(Record):
    """How a server is spoken with.  `protocol` is `newstyle-fixed`, `newstyle` or `oldstyle`."""

    protocol: str
    tls: bool
    structured: bool
    extended: bool


def export_query(name: str) -> bytes:
    """The data of NBD_OPT_INFO and NBD_OPT_GO."""
    return _string(name) + struct.pack(f">H{len(_WANTED)}H", len(_WANTED), *_WANTED)


def context_query(name: str, queries: Sequence[str]) -> bytes:
    """The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""
    return _string(name) + struct.pack(">I", len(queries)) + b"".join(map(_string, queries))


def decode_list(replies: Replies) -> list[tuple[str, str]]:
    """The name and description of each export."""
    return [_server(data) for kind, data in replies if kind == nbd.REP_SERVER]


def decode_info(name: str, replies: Replies) -> RemoteExport:
    """The export called `name`."""
    found = {int.from_bytes(data[:2]): data[2:] for kind, data in replies if kind == nbd.REP_INFO and len(data) >= 2}
    try:
        size, flags = struct.unpack(">QH", found[nbd.INFO_EXPORT])
        block = struct.unpack(">III", found[nbd.INFO_BLOCK_SIZE]) if nbd.INFO_BLOCK_SIZE in found else None
    except (KeyError, struct.error) as error:
        raise ProtocolError(f"it does not tell the size of '{name}' as it must") from error
    if block is not None and not _sensible(*block):
        raise ProtocolError(f"block sizes that make no sense: {block}")
    canonical, description = (
        found.get(kind, b"").decode(errors="replace") for kind in (nbd.INFO_NAME, nbd.INFO_DESCRIPTION)
    )
    return RemoteExport(name, size, flags, canonical, description, block)


def decode_contexts(replies: Replies) -> dict[str, int]:
    """Metadata contexts with their ids."""
    return {
        data[4:].decode(errors="replace"): int.from_bytes(data[:4])
        for kind, data in replies
        if kind == nbd.REP_META_CONTEXT and len(data) > 4
    }


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data


def _server(data: bytes) -> tuple[str, str]:
    end = 4 + int.from_bytes(data[:4])
    if len(data) < max(end, 4):
        raise ProtocolError("a name longer than its message")
    return data[4:end].decode(errors="replace"), data[end:].decode(errors="replace")


def _sensible(minimum: int, preferred: int, maximum: int) -> bool:
    """Whether block sizes are what "Block size constraints" allows."""
    powers = all(size and size & (size - 1) == 0 for size in (minimum, preferred))
    return (
        powers
        and minimum <= preferred
        and minimum <= 65536
        and maximum >= minimum
        and (maximum == 0xFFFFFFFF or maximum % minimum == 0)
    )
