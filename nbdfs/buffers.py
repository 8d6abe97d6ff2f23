"""Zeroes in buffers, at the speed of memory: nothing is copied or made that need not be."""

from __future__ import annotations

import functools

_CHUNK = 1 << 20  # bytes zeroed at once
_STEP = 64 << 10  # bytes compared at once: arrays of every length up to that are cheap
_ZEROES = memoryview(bytes(_CHUNK))


def fill_zero(buffer: memoryview) -> None:
    """Zero a buffer of bytes."""
    length = len(buffer)
    if length <= _CHUNK:
        buffer[:] = _ZEROES[:length]
        return
    for at in range(0, length, _CHUNK):
        fill_zero(buffer[at : at + _CHUNK])


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero."""
    return all(_array(min(_STEP, len(data) - at)) == data[at : at + _STEP] for at in range(0, len(data), _STEP))


@functools.lru_cache(maxsize=16)
def _array(length: int) -> bytearray:
    """So many zeroes.  A bytearray compares itself with any buffer as memcmp does; memoryviews go byte by byte."""
    return bytearray(length)
