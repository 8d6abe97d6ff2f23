"""What `nbdfs luks info` tells of a header: everything but secrets, and key material is not even read."""

from __future__ import annotations

from typing import Any

from nbdfs.backends.luks.volume import Header, HeaderError, Kdf
from nbdfs.errors import printable


def facts(header: Header) -> dict[str, Any]:
    """The header as values that JSON can hold."""
    return {
        "version": header.version,
        "uuid": header.uuid,
        "label": header.label,
        "subsystem": header.subsystem,
        "sequence": header.sequence,
        "header_bytes": header.length,
        "flags": list(header.flags),
        "requirements": list(header.requirements),
        "unsupported": _trouble(header),
        "segments": {
            str(segment.number): {
                "offset": segment.offset,
                "size": "dynamic" if segment.size is None else segment.size,
                "cipher": segment.encryption,
                "sector_size": segment.sector_size,
                "iv_tweak": segment.iv_tweak,
            }
            for segment in header.segments
        },
        "keyslots": {
            str(slot.number): {
                "key_bits": slot.key_size * 8,
                "priority": slot.priority,
                "area": {"offset": slot.offset, "size": slot.length, "cipher": slot.encryption},
                "stripes": slot.stripes,
                "stripe_hash": slot.stripe_hash,
                "kdf": _kdf(slot.kdf),
            }
            for slot in header.keyslots
        },
        "digests": {
            str(digest.number): {
                "hash": digest.hash,
                "iterations": digest.iterations,
                "keyslots": sorted(digest.keyslots),
                "segments": sorted(digest.segments),
            }
            for digest in header.digests
        },
        "tokens": list(header.tokens),
    }


def lines(value: dict[str, Any], indent: int = 0) -> list[str]:
    """The same for people: what is empty is left out."""
    result = []
    for name, item in value.items():
        label = " " * indent + name.replace("_", " ")
        if isinstance(item, dict) and item:
            result += [f"{label}:", *lines(item, indent + 2)]
        elif item not in ("", [], {}):
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            result.append(f"{label}: {printable(text)}")
    return result


def _kdf(kdf: Kdf) -> dict[str, Any]:
    if kdf.kind == "pbkdf2":
        return {"type": kdf.kind, "hash": kdf.hash, "iterations": kdf.iterations}
    return {"type": kdf.kind, "time": kdf.iterations, "memory_kib": kdf.memory, "lanes": kdf.lanes}


def _trouble(header: Header) -> str:
    try:
        header.data_segment()
    except HeaderError as error:
        return str(error)
    return ""
