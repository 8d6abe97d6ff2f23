"""Where the files of a torrent lie: among its pieces, and in libtorrent's list of files."""

from __future__ import annotations

import bisect
import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

import libtorrent

from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.metainfo import File, Metainfo
from nbdfs.errors import SourceError


class Part(NamedTuple):
    """`length` bytes of a file, from `offset` on, that lie `at` bytes into a piece."""

    file: int
    offset: int
    length: int
    at: int


class Layout:
    """The files that pieces cover."""

    def __init__(self, metainfo: Metainfo) -> None:
        self._piece_length = metainfo.piece_length
        self._files = sorted({file.offset: file for file in metainfo.files if file.length}.values(), key=_offset)
        self._starts = [file.offset for file in self._files]

    def parts(self, piece: int) -> Iterator[Part]:
        """The parts of files that a piece covers."""
        start, end = piece * self._piece_length, (piece + 1) * self._piece_length
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for file in self._files[first:]:
            if file.offset >= end:
                return
            low, high = max(start, file.offset), min(end, file.offset + file.length)
            if low < high:
                yield Part(file.index, low - file.offset, high - low, low - start)


def names(info: Any, metainfo: Metainfo, cache: Cache) -> dict[int, str]:
    """Names in the cache for libtorrent's files, which count padding too.  Raises if it sees other files than we."""
    layout = info.layout()
    padding = libtorrent.file_flags_t.flag_pad_file
    shown = [number for number in range(layout.num_files()) if not layout.file_flags(number) & padding]
    for file in metainfo.files:
        number = shown[file.index]
        theirs = layout.file_size(number), layout.file_offset(number)
        if file.length and theirs != (file.length, file.offset) and not _is_link(layout, number):
            raise SourceError(errno.EIO, f"file {file.index} is not where libtorrent has it", where="torrent")
    return {number: cache.name(index) for index, number in enumerate(shown)}


def _is_link(layout: Any, number: int) -> bool:
    return bool(layout.file_flags(number) & libtorrent.file_flags_t.flag_symlink)


def _offset(file: File) -> int:
    return file.offset
