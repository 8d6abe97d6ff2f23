"""The `zstd` layer: random access to a Zstandard file by its frames.

Frames as in RFC 8878; where the file ends with the seek table of the "Zstandard Seekable Format" (version 0.1.0) that
is used, else the heads of all blocks are read once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import MAX_SIZE, Source
from nbdfs.unpacking import DamagedError, Format, Frame, Packed, check_frames, open_unpacked

_MAGIC = 0xFD2FB528
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_SEEK_TABLE = 0x184D2A5E
_SEEK_FOOTER = struct.Struct("<IBI")  # frames, descriptor, magic
_SEEK_MAGIC = 0x8F92EAB1
_CHECKSUMS = 0x80  # bit of the descriptor: each entry has a checksum too
_LARGEST_TABLE = 64 << 20  # bytes
_WINDOW = 1 << 30  # bytes a decompressor may take
_STEP = 1 << 20  # bytes of a piece, at least
_INPUT = 2048  # bytes unpacked at once, which may become 32,000 times as many
_RLE, _RESERVED = 1, 3  # types of block


class Zstd:
    """The format; frames are its own, and their state is unused."""

    name = "zstd"

    def index(self, packed: Packed) -> list[Frame]:
        if packed.size < 9:
            raise DamagedError("it is too short")
        if table := _seek_table(packed):
            return table
        frames = []
        start = 0
        packed.seek(0)
        while packed.at < packed.size:
            place = packed.at
            magic = _word(packed)
            if magic in _SKIPPABLE:
                length = _word(packed)
                packed.seek(packed.at + length)
                continue
            if magic != _MAGIC:
                raise DamagedError(f"there is no frame at byte {place}")
            size = _walk(packed)
            if size is None:  # it was packed from a pipe: only unpacking it tells
                size = sum(len(piece) for piece in _pieces(packed.another(place)))
            frames.append(Frame(start, size, place))
            check_frames(len(frames))
            start += size
        if packed.at > packed.size:
            raise DamagedError("it is truncated")
        return frames

    def unpack(self, packed: Packed, frame: Frame) -> Iterator[bytearray]:
        return _pieces(packed)


def _pieces(packed: Packed) -> Iterator[bytearray]:
    """The content of the frame at which `packed` stands."""
    import zstandard

    engine = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    piece = bytearray()
    try:
        while not engine.eof:
            data = packed.read(_INPUT)
            if not data:
                raise DamagedError("it is truncated")
            piece += engine.decompress(data)
            if len(piece) >= _STEP:
                yield piece
                piece = bytearray()
    except zstandard.ZstdError as error:
        raise DamagedError(f"before byte {packed.at}: {error}") from error
    yield piece


def _walk(packed: Packed) -> int | None:
    """Go from behind a frame's magic to its end; give the size of its content if its header tells."""
    descriptor = packed.exactly(1)[0]
    single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    header = packed.exactly((0 if single else 1) + dictionary + content)
    size = int.from_bytes(header[len(header) - content :], "little") + (256 if content == 2 else 0)
    last = False
    while not last:
        head = int.from_bytes(packed.exactly(3), "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == _RESERVED:
            raise DamagedError(f"there is no block before byte {packed.at}")
        packed.seek(packed.at + (1 if kind == _RLE else length))
    packed.seek(packed.at + (4 if descriptor & 4 else 0))
    if packed.at > packed.size:
        raise DamagedError("it is truncated")
    if size > MAX_SIZE:
        raise DamagedError("a frame says that it is larger than a file can be")
    return size if content else None


def _seek_table(packed: Packed) -> list[Frame] | None:
    """The frames by the table at the end, None if there is none that tells of all of them."""
    packed.seek(packed.size - _SEEK_FOOTER.size)
    count, descriptor, magic = _SEEK_FOOTER.unpack(packed.exactly(_SEEK_FOOTER.size))
    if magic != _SEEK_MAGIC:
        return None
    entry = 12 if descriptor & _CHECKSUMS else 8
    length = count * entry + _SEEK_FOOTER.size
    at = packed.size - length - 8
    if length > _LARGEST_TABLE or at < 0:
        raise DamagedError("the size of its seek table makes no sense")
    check_frames(count)
    packed.seek(at)
    if (_word(packed), _word(packed)) != (_SEEK_TABLE, length):
        raise DamagedError("its seek table is damaged")
    entries = packed.exactly(count * entry)
    frames = []
    start = place = 0
    for index in range(count):
        length, size = struct.unpack_from("<II", entries, index * entry)
        frames.append(Frame(start, size, place))
        start, place = start + size, place + length
    if place > at:
        raise DamagedError("its seek table tells of more than there is")
    return frames if place == at else None  # where files were joined the last one's table tells of its own frames only


def _word(packed: Packed) -> int:
    return int.from_bytes(packed.exactly(4), "little")


def _open(below: Source, options: NoOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    format: Format = Zstd()
    return open_unpacked(below, format)


DRIVER = LayerDriver("zstd", "unpack a Zstandard file, for reading", extra="zstd", open=_open, reads_only=True)
