"""Buffers for payload, made once and used again."""

from __future__ import annotations

from collections import defaultdict

_SMALLEST = 64 << 10  # bytes


class Buffers:
    """Buffers of powers of two; unused ones are kept up to `keep` bytes in all."""

    def __init__(self, keep: int = 64 << 20) -> None:
        self._keep = keep
        self._kept = 0
        self._free: defaultdict[int, list[memoryview]] = defaultdict(list)

    def take(self, length: int) -> memoryview:
        """A buffer of at least `length` bytes, its content whatever it was."""
        size = max(_SMALLEST, 1 << (length - 1).bit_length())
        free = self._free[size]
        if free:
            self._kept -= size
            return free.pop()
        return memoryview(bytearray(size))

    def give(self, buffer: memoryview) -> None:
        """Return a buffer that nobody looks at any more."""
        if self._kept + len(buffer) <= self._keep:
            self._kept += len(buffer)
            self._free[len(buffer)].append(buffer)

    def drop(self) -> None:
        """Keep none of the unused ones."""
        self._kept = 0
        self._free.clear()
