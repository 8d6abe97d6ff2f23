"""The `gzip` layer: random access to a gzip file, by an index built at opening.

The format (RFC 1952) has no index.  The whole file is unpacked once, which checks it too, and the state of the
decompressor is kept from place to place; a read begins at the last such place before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import Source
from nbdfs.unpacking import DamagedError, Format, Frame, Packed, open_unpacked

_SPAN = 1 << 20  # bytes of the image from place to place at first; doubled when there are too many places
_MOST = 2048  # places, each with a state of about 40 KiB
_STEP = 1 << 20  # bytes unpacked at once
_MAGIC = b"\x1f\x8b"
_GZIP = 31  # zlib's window bits: 32 KiB and a gzip header


class Gzip:
    """The format; the state of a frame is a decompressor that has consumed all before it, None between members."""

    name = "gzip"

    def index(self, packed: Packed) -> list[Frame]:
        if packed.read(len(_MAGIC)) not in (_MAGIC, b""):
            raise DamagedError("it begins like something else")
        packed.seek(0)
        frames: list[Frame] = []
        span = _SPAN
        stream = _Stream(packed, None)
        at = start = place = 0
        state = stream.state()
        while piece := stream.read(_STEP):
            at += len(piece)
            if at - start >= span:
                frames.append(Frame(start, at - start, place, state))
                start, place, state = at, stream.at, stream.state()
                if len(frames) >= _MOST:
                    frames = _every_other(frames)
                    span *= 2
        if not stream.members:
            raise DamagedError("there is nothing in it")
        frames.append(Frame(start, at - start, place, state))
        return frames

    def unpack(self, packed: Packed, frame: Frame) -> Iterator[bytes]:
        stream = _Stream(packed, frame.state)
        left = frame.size
        while left and (piece := stream.read(min(_STEP, left))):
            left -= len(piece)
            yield piece


class _Stream:
    """The content of the members of a file, one after the other."""

    def __init__(self, packed: Packed, state: zlib._Decompress | None) -> None:
        self._packed = packed
        self._engine = state.copy() if state else None
        self._input = b""
        self.members = 0

    @property
    def at(self) -> int:
        """Where the input that is not consumed yet begins."""
        return self._packed.at - len(self._input)

    def state(self) -> zlib._Decompress | None:
        return self._engine.copy() if self._engine else None

    def read(self, length: int) -> bytes:
        """Up to `length` bytes, none only at the end.  Raises DamagedError."""
        while True:
            if not self._input:
                self._input = self._packed.read()
            if self._engine is None:
                if not self._input.lstrip(b"\0"):  # padding with zeroes is allowed, as on tapes
                    if not self._input:
                        return b""
                    self._input = b""
                    continue
                self._engine = zlib.decompressobj(_GZIP)
                self.members += 1
            elif not self._input:
                raise DamagedError("it is truncated")
            if piece := self._step(length):
                return piece

    def _step(self, length: int) -> bytes:
        assert self._engine is not None
        try:
            piece = self._engine.decompress(self._input, length)
        except zlib.error as error:
            raise DamagedError(f"before byte {self._packed.at}: {error}") from error
        self._input = self._engine.unconsumed_tail
        if self._engine.eof:
            self._input = self._engine.unused_data
            self._engine = None
        return piece


def _every_other(frames: list[Frame]) -> list[Frame]:
    """Two frames each made one."""
    pairs = zip(frames[::2], frames[1::2], strict=True)
    return [Frame(one.start, one.size + other.size, one.packed, one.state) for one, other in pairs]


def _open(below: Source, options: NoOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    format: Format = Gzip()
    return open_unpacked(below, format)


DRIVER = LayerDriver("gzip", "unpack a gzip file, for reading", open=_open, reads_only=True)
