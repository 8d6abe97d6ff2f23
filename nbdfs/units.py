"""Sizes and durations as people write them."""

from __future__ import annotations

import re

from nbdfs.errors import UsageError
from nbdfs.source import MAX_SIZE

_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)([bkmgtpes]?)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "s": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)")
_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes for `512`, `4k`, `1G` (powers of 1024) or `8s` (512-byte sectors)."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"'{text}' is not a size: write bytes, or a number with k, M, G, T, P, E or s (sectors)")
    size = int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * _UNITS[match[2].lower()]
    if size > MAX_SIZE:
        raise UsageError(f"{text} is larger than a file can be: the most is 2^63 - 1 bytes")
    return size


def format_size(size: int) -> str:
    """The shortest exact form that `parse_size` reads back."""
    for suffix in "EPTGMk":
        unit = _UNITS[suffix.lower()]
        if size and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def parse_duration(text: str) -> float:
    """Seconds for `5`, `0.5`, `200ms`, `10s`, `2m`, `1h`."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise UsageError(f"'{text}' is not a duration: write seconds, or a number with ms, s, m or h")
    return float(match[1]) * _SECONDS[match[2]]
