"""A disk in huge pages, all of them taken when it is opened, so nothing is sparse and nothing can run out later."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import trio

from nbdfs import libc
from nbdfs.errors import UserError
from nbdfs.ranges import align_up, pieces
from nbdfs.source import Caps, Source, SourceInfo
from nbdfs.units import format_size

_CAPS = Caps.WRITE | Caps.FUA | Caps.ZERO | Caps.MULTI_CONN | Caps.IMMEDIATE
_ZEROES = bytes(1 << 20)
_ZERO_SLICE = 64 << 20  # bytes zeroed before others get a turn


class HugeMemory(Source):
    """`size` bytes of huge pages of the system's default size."""

    def __init__(self, size: int) -> None:
        self.info = SourceInfo(size, _CAPS, description=f"memory,hugepages:{format_size(size)}")

    async def __aenter__(self) -> Self:
        page = _page_size()
        whole = align_up(max(self.info.size, 1), page)
        fd = os.memfd_create("nbdfs-memory", os.MFD_CLOEXEC | os.MFD_HUGETLB)
        try:
            os.ftruncate(fd, whole)
            libc.fallocate(fd, 0, 0, whole)
            self._map = mmap.mmap(fd, whole)
        except OSError as error:
            raise UserError(
                f"memory: there are not enough huge pages for {format_size(self.info.size)} ({error.strerror}): "
                f"reserve {whole // page} more with 'sysctl vm.nr_hugepages=N', or leave out hugepages"
            ) from error
        finally:
            os.close(fd)
        self._bytes = memoryview(self._map)
        return self

    async def aclose(self) -> None:
        self._bytes.release()
        self._map.close()

    def statistics(self) -> Mapping[str, int]:
        return {"resident_bytes": self.info.size}

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._bytes[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self._bytes[offset : offset + len(data)] = data

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        for start, size in pieces(offset, length, _ZERO_SLICE):
            for at, step in pieces(start, size, len(_ZEROES)):
                self._bytes[at : at + step] = _ZEROES[:step]
            if start + size < offset + length:
                await trio.lowlevel.checkpoint()

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        view = self._bytes[offset : offset + length]
        return view if writable else view.toreadonly()


def _page_size() -> int:
    match = re.search(r"^Hugepagesize: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if not match:
        raise UserError("memory: this kernel has no huge pages: leave out hugepages")
    return int(match[1]) << 10
