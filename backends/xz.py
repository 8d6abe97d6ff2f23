"""The `xz` layer: random access to an xz file by its own index.

The .xz file format (version 1.2): streams one after the other, each with a header, blocks that can be unpacked by
themselves, an index with the sizes of the blocks, and a footer.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import Source
from nbdfs.unpacking import DamagedError, Format, Frame, Packed, check_frames, open_unpacked

_MAGIC = b"\xfd7zXZ\0"
_FOOTER = struct.Struct("<II2s2s")  # CRC of the rest, size of the index, flags, magic
_FOOTER_MAGIC = b"YZ"
_EDGE = 12  # bytes of a header and of a footer
_LARGEST_INDEX = 64 << 20  # bytes
_PADDING = 256 << 10  # bytes of it looked at together
_MEMORY = 1 << 30  # bytes a decompressor may take
_STEP = 1 << 20  # bytes unpacked at once
_INPUT = 256 << 10  # bytes given to a decompressor at once


class Xz:
    """The format; a frame is a block, and its state the header of its stream with the block's packed size."""

    name = "xz"

    def index(self, packed: Packed) -> list[Frame]:
        if packed.size == 0:
            raise DamagedError("it is empty")
        if packed.read(len(_MAGIC)) != _MAGIC:  # else a disk of zeroes would be taken for padding
            raise DamagedError("it begins like something else")
        blocks: list[tuple[int, int, bytes, int]] = []  # packed at, size, header, packed size; from the last backwards
        end = packed.size
        while end:
            end = _before_padding(packed, end)
            found, end = _read_stream(packed, end)
            blocks += reversed(found)
            check_frames(len(blocks))
        frames = []
        start = 0
        for place, size, header, length in reversed(blocks):
            frames.append(Frame(start, size, place, (header, length)))
            start += size
        return frames

    def unpack(self, packed: Packed, frame: Frame) -> Iterator[bytes]:
        header, length = frame.state
        engine = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
        try:
            engine.decompress(header)
            while length or not engine.needs_input:
                if engine.eof:
                    raise DamagedError(f"the block at byte {frame.packed} is shorter than its index says")
                data = b""
                if engine.needs_input:
                    data = packed.exactly(min(length, _INPUT))
                    length -= len(data)
                if piece := engine.decompress(data, _STEP):
                    yield piece
        except lzma.LZMAError as error:
            raise DamagedError(f"in the block at byte {frame.packed}: {error}") from error


def _before_padding(packed: Packed, end: int) -> int:
    """The end of the stream that ends before the zeroes at `end`, a multiple of four."""
    stream = at = end
    step = 4
    while at and stream == at:
        at = max(at - step, 0)
        packed.seek(at)
        stream = at + len(packed.exactly(stream - at).rstrip(b"\0"))
        step = _PADDING
    if (end - stream) % 4:
        raise DamagedError("the padding at its end is no multiple of 4 bytes")
    return stream


def _read_stream(packed: Packed, end: int) -> tuple[list[tuple[int, int, bytes, int]], int]:
    """The blocks of the stream that ends at `end`, and where it begins."""
    if end < 2 * _EDGE:
        raise DamagedError("there is no stream at its end: it is truncated or something else")
    packed.seek(end - _EDGE)
    footer = packed.exactly(_EDGE)
    checksum, backward, flags, magic = _FOOTER.unpack(footer)
    if magic != _FOOTER_MAGIC or zlib.crc32(footer[4:10]) != checksum:
        raise DamagedError("there is no footer at its end: it is truncated or something else")
    length = (backward + 1) * 4
    at = end - _EDGE - length
    if length > _LARGEST_INDEX or at < _EDGE:
        raise DamagedError("the size of its index makes no sense")
    packed.seek(at)
    records = _read_index(packed.exactly(length))
    start = at - _EDGE - sum(_padded(unpadded) for unpadded, _ in records)
    if start < 0:
        raise DamagedError("its index tells of more than there is")
    packed.seek(start)
    header = packed.exactly(_EDGE)
    if header[:8] != _MAGIC + flags or zlib.crc32(header[6:8]).to_bytes(4, "little") != header[8:]:
        raise DamagedError(f"there is no stream header at byte {start}")
    blocks = []
    place = start + _EDGE
    for unpadded, size in records:
        blocks.append((place, size, header, _padded(unpadded)))
        place += _padded(unpadded)
    return blocks, start


def _read_index(index: bytes) -> list[tuple[int, int]]:
    """(unpadded packed size, size) of each block."""
    if index[0] != 0 or zlib.crc32(index[:-4]).to_bytes(4, "little") != index[-4:]:
        raise DamagedError("its index is damaged")
    count, at = _number(index, 1)
    check_frames(count)
    records = []
    for _ in range(count):
        unpadded, at = _number(index, at)
        size, at = _number(index, at)
        records.append((unpadded, size))
    return records


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number in 7-bit groups, lowest first, and where the next begins."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data) - 4:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise DamagedError("a number in its index makes no sense")


def _padded(size: int) -> int:
    return (size + 3) & -4


def _open(below: Source, options: NoOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    format: Format = Xz()
    return open_unpacked(below, format)


DRIVER = LayerDriver("xz", "unpack an xz file, for reading", open=_open, reads_only=True)
