"""Sizes, durations and numbers as people write them."""

from __future__ import annotations

import re

from nbdfs.errors import UsageError
from nbdfs.source import MAX_SIZE

_SIZE = re.compile(r"(0x[0-9a-f]+|[0-9]+)([bkmgtpes]?)", re.IGNORECASE)
_MOST_DIGITS = 100  # of a size, leading zeroes included
_UNITS = {"": 1, "b": 1, "s": 512, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)")
_SECONDS = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1e9  # seconds, some 30 years
_LARGEST_INT = 0x7FFFFFFF  # of C: descriptors, process ids


def parse_size(text: str) -> int:
    """Bytes for `512`, `4k`, `1G` (powers of 1024) or `8s` (512-byte sectors)."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"'{text}' is not a size: write bytes, or a number with k, M, G, T, P, E or s (sectors)")
    base = 0 if match[1][:2].lower() == "0x" else 10
    if len(match[1]) > _MOST_DIGITS or (size := int(match[1], base) * _UNITS[match[2].lower()]) > MAX_SIZE:
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
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST:
        raise UsageError(f"{text} is too long: the most is {_LONGEST:.0f} s")
    return seconds


def parse_number(text: str, what: str, most: int = _LARGEST_INT) -> int:
    """A whole number from 0 to `most` in decimal digits; `what` it is stands in the error."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and int(text) <= most):
        raise UsageError(f"'{text}' is no {what}: a number up to {most}")
    return int(text)
