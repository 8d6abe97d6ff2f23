"""Find the blocks of zeroes in a piece of data."""

from __future__ import annotations

import functools
from collections.abc import Iterator

_CHUNK = 1 << 20  # bytes; the longest view that `zero_pieces` gives


@functools.lru_cache(maxsize=8)
def zeroes(length: int) -> bytes:
    """That many zero bytes; the same object again for the same length."""
    return bytes(length)


def zero_pieces(length: int) -> Iterator[memoryview]:
    """`length` zero bytes as views of bounded size, all of the same memory."""
    whole = memoryview(zeroes(_CHUNK))
    for at in range(0, length, _CHUNK):
        yield whole[: length - at]


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero."""
    return data.tobytes() == zeroes(len(data))


def runs(data: memoryview, offset: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Cut `data`, which lies at `offset` of the device, into runs (start, stop, whether zero), in order, without gaps.

    A run of zeroes consists of whole blocks, aligned on the device; the parts of blocks at the two ends of the data
    count as blocks.
    """
    start = at = 0  # data[start:at] is the run of zeroes under way, or empty
    for left, right in _zero_blocks(data, -offset % block, block):
        if left != at:
            if start < at:
                yield start, at, True
            yield at, left, False
            start = left
        at = right
    if start < at:
        yield start, at, True
    if at < len(data):
        yield at, len(data), False


def _zero_blocks(data: memoryview, first: int, block: int) -> Iterator[tuple[int, int]]:
    """The blocks of zeroes; `first` is where the first whole block begins.

    Only a block whose first byte is zero is looked at whole: few others need be touched.
    """
    length = len(data)
    if first and is_zero(data[:first]):
        yield 0, min(first, length)
    heads = data[first::block].tobytes()
    index = heads.find(0)
    while index >= 0:
        left = first + index * block
        right = min(left + block, length)
        if is_zero(data[left:right]):
            yield left, right
        index = heads.find(0, index + 1)
