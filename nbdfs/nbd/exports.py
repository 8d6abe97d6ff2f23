"""The exports of a server: what each one is called on the wire and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    """Exports by name.  With `any_name` a single export answers to every name, as nbdkit's plugins do."""

    def __init__(self, exports: Iterable[Export], *, any_name: bool = False) -> None:
        self._exports = {export.name: export for export in exports}
        self._any_name = any_name

    def names(self) -> Iterator[tuple[str, str]]:
        return ((export.name, export.description) for export in self._exports.values())

    def export(self, name: str) -> Export | None:
        """The export of that name; the empty name is also the only one there is."""
        if (not name or self._any_name) and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)

    def find(self, name: str) -> ExportFacts | None:
        export = self.export(name)
        return facts_of(export) if export else None

    def __iter__(self) -> Iterator[Export]:
        return iter(self._exports.values())


def facts_of(export: Export) -> ExportFacts:
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
    return ExportFacts(
        export.name, info.size, flags, export.description or info.description, minimum, preferred, maximum, contexts
    )
