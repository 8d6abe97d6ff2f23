"""The stacks that the model test runs: each opens a fresh device of SIZE zeroes that keeps what is written to it.

Add a row for a layer or source with state of its own: an index, a cache, an overlay.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from nbdfs.backends.blocksize import Blocksize
from nbdfs.checked import Checked
from nbdfs.records import replace
from nbdfs.source import ALLOCATION, BlockSize, Extent, Layer, Source
from nbdfs.stack import open_stack

SIZE = 5 * 4096 * 7  # several blocks of any kind, and no power of two

Open = Callable[[Path], AbstractAsyncContextManager[Checked]]


class Limited(Layer):
    """A memory that takes only whole blocks and short requests; the door over it sees that they are."""

    def __init__(self, below: Source, block: BlockSize) -> None:
        super().__init__(below)
        self.info = replace(below.info, block=block)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, offset)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self.below.pwrite(data, offset, fua=fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self.below.trim(offset, length, fua=fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self.below.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        return await self.below.extents(offset, length, context=context, one=one)


def limited(minimum: int, maximum: int) -> Open:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Checked]:
        async with open_stack(f"memory:{SIZE}", debug=True) as memory:
            yield Checked(Blocksize(Checked(Limited(memory, BlockSize(minimum, 4096, maximum)))))

    return opened


def spec(text: str) -> Open:
    """A spec; `{}` stands for a file of SIZE zeroes."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Checked]:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(SIZE)
        async with open_stack(text.format(image), debug=True) as door:
            yield door

    return opened


STACKS: dict[str, Open] = {
    "memory": spec(f"memory:{SIZE}"),
    "file": spec("{}"),
    "file-direct": spec("file,direct:{}"),
    "file-no-discard": spec("file,discard=no:{}"),
    "blocks-512": limited(512, 8192),
    "blocks-4096": limited(4096, 4096),
    "blocks-of-any-length": limited(1, 3000),
    "blocks-twice": spec("blocksize::blocksize::file,direct:{}"),
    "blocks-narrowed": spec("blocksize,minimum=1k,maximum=3k::{}"),
    "cow": spec(f"cow::memory:{SIZE}"),
}
