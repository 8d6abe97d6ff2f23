"""Find the blocks of zeroes in a piece of data."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from nbdfs.buffers import is_zero

_CHUNK = 1 << 20  # bytes; the longest view that `zero_pieces` gives
_ZEROES = memoryview(bytes(_CHUNK))


def zero_pieces(length: int) -> Iterator[memoryview]:
    """`length` zero bytes as views of bounded size, all of the same memory."""
    for at in range(0, length, _CHUNK):
        yield _ZEROES[: length - at]


def runs(data: memoryview, offset: int, block: int) -> Iterator[tuple[int, int, bool]]:
    """Cut `data`, which lies at `offset` of the device, into runs (start, stop, whether zero), in order, without gaps.

    A run of zeroes consists of whole blocks, aligned on the device; the parts of blocks at the two ends of the data
    count as blocks.
    """
    if is_zero(data):
        if len(data):
            yield 0, len(data), True
        return
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
    zero = _block(block)
    if first and is_zero(data[:first]):
        yield 0, min(first, length)
    heads = data[first::block].tobytes()
    index = heads.find(0)
    while index >= 0:
        left = first + index * block
        right = min(left + block, length)
        if zero == data[left:right] if right - left == block else is_zero(data[left:right]):
            yield left, right
        index = heads.find(0, index + 1)


@functools.lru_cache(maxsize=4)
def _block(length: int) -> bytearray:
    """A block of zeroes; a bytearray compares itself with a view by memcmp, which is most of the speed here."""
    return bytearray(length)
