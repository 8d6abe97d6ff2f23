"""The extended attributes user.nbdfs.* of a mounted file: what it shows and how that fares."""

from __future__ import annotations

import os

from nbdfs.export import Export


def attributes(export: Export) -> dict[str, str]:
    """By name without the prefix.  `reads` and the like count what reached us: the kernel's cache answers the rest."""
    source = export.source
    reads, writes = (source.counters[name] for name in ("read", "write"))
    return {
        "spec": export.description,
        "pid": str(os.getpid()),
        "state": source.health().value,
        "resident-bytes": str(resident_bytes(export)),
        "reads": str(reads.requests),
        "read-bytes": str(reads.bytes),
        "writes": str(writes.requests),
        "write-bytes": str(writes.bytes),
        "errors": str(sum(counter.errors for counter in source.counters.values())),
    }


def resident_bytes(export: Export) -> int:
    """How much can be read without fetching it from elsewhere: what the outermost layer that holds anything says."""
    for part in export.source.parts:
        statistics = part.statistics()
        if "resident_bytes" in statistics:
            return statistics["resident_bytes"]
    return 0
