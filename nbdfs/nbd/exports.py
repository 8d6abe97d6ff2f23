"""The exports of a server: what each one is called on the wire and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping

from nbdfs.export import Export
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.events import ExportFacts
from nbdfs.source import ALLOCATION, RESIDENT, Caps

# The transmission flag that says each capability.
_FLAGS = {
    Caps.FUA: nbd.FLAG_SEND_FUA,
    Caps.TRIM: nbd.FLAG_SEND_TRIM,
    Caps.ZERO: nbd.FLAG_SEND_WRITE_ZEROES,
    Caps.FAST_ZERO: nbd.FLAG_SEND_FAST_ZERO,
    Caps.MULTI_CONN: nbd.FLAG_CAN_MULTI_CONN,
    Caps.ROTATIONAL: nbd.FLAG_ROTATIONAL,
    Caps.CACHE: nbd.FLAG_SEND_CACHE,
}


class ServedExports:
    """Exports by name: the front end (`nbdfs.live.FrontEnd`) of a server.

    An export without a name is `called` so; a single one answers to the empty name too, and with `any_name` to
    every name, as nbdkit's plugins do.
    """

    def __init__(self, *, called: str = "", any_name: bool = False) -> None:
        self._exports: dict[str, Export] = {}
        self._called = called
        self._any_name = any_name

    def check(self, name: str) -> None:
        """Any name may come and go."""

    async def show(self, export: Export, instead: Export | None = None) -> None:
        self._exports[export.name or self._called] = export

    async def hide(self, export: Export) -> None:
        name = export.name or self._called
        if self._exports.get(name) is export:
            del self._exports[name]

    def handles(self, export: Export) -> int:
        return 0

    async def resized(self, export: Export) -> None:
        """New clients are told; the protocol has no way to tell others."""

    def facts(self) -> Mapping[Export, Mapping[str, object]]:
        return {}

    def names(self) -> list[tuple[str, str]]:
        return [(name, "") for name in self._exports]

    def export(self, name: str) -> Export | None:
        """The export that a client calls `name`."""
        if (not name or self._any_name) and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def find(self, name: str) -> ExportFacts | None:
        export = self.export(name)
        if export is None:
            return None
        known = name if name in self._exports else next(iter(self._exports))
        return facts_of(export, known)


def facts_of(export: Export, name: str) -> ExportFacts:
    """What the wire says about an export."""
    info = export.source.info
    flags = nbd.FLAG_HAS_FLAGS | nbd.FLAG_SEND_FLUSH
    for cap, flag in _FLAGS.items():
        if cap in info.caps:
            flags |= flag
    if not export.source.writable:
        flags |= nbd.FLAG_READ_ONLY | nbd.FLAG_CAN_MULTI_CONN  # nothing changes, so nothing differs
    minimum = max(info.block.minimum, 1)
    maximum = min(info.block.maximum, nbd.MAX_PAYLOAD) & -minimum
    preferred = min(max(info.block.preferred, 512, minimum), maximum)
    preferred = 1 << (preferred.bit_length() - 1)  # a power of two, as NBD_INFO_BLOCK_SIZE asks
    contexts = tuple(name for name in (ALLOCATION, RESIDENT) if name == ALLOCATION or name in info.contexts)
    # Without a description: all that we know to say is where the data lies on this machine.
    return ExportFacts(name, info.size, flags, "", minimum, preferred, maximum, contexts)
