"""The door between a front end and a stack: what it refuses, adds, counts, and tells of errors."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from nbdfs.checked import Checked
from nbdfs.errors import SourceError
from nbdfs.source import ALLOCATION, HOLE, ZERO, Backing, BlockSize, Caps, Extent, Source, SourceInfo

SIZE = 1 << 16
WRITABLE = Caps.WRITE | Caps.FLUSH


class Recorder(Source):
    """A source that writes down each call, and raises or answers what it is told to."""

    def __init__(
        self,
        caps: Caps = WRITABLE,
        *,
        block: BlockSize | None = None,
        error: OSError | None = None,
        extents: Sequence[Extent] = (),
    ) -> None:
        self.info = SourceInfo(SIZE, caps, block or BlockSize(), description="recorder")
        self.calls: list[tuple[object, ...]] = []
        self.error = error
        self.answer = list(extents)

    def note(self, *call: object) -> None:
        self.calls.append(call)
        if self.error:
            raise self.error

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.note("read", offset, len(buffer))

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self.note("write", offset, len(data), fua)

    async def flush(self) -> None:
        self.note("flush")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        self.note("trim", offset, length, fua)

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        self.note("zero", offset, length, may_trim, fast, fua)

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        self.note("extents", offset, length)
        return self.answer

    async def cache(self, offset: int, length: int) -> None:
        self.note("cache", offset, length)

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        self.note("view", offset, length)
        return memoryview(bytearray(length))

    def backing(self) -> Backing | None:
        return Backing(7, 0, fixed_size=True)


OUTSIDE = [(-1, 1), (0, 0), (0, -1), (SIZE, 1), (SIZE - 1, 2), (1 << 64, 1)]


@pytest.mark.parametrize("offset, length", OUTSIDE)
async def test_nothing_outside_the_device_reaches_the_source(offset: int, length: int) -> None:
    source = Recorder(WRITABLE | Caps.TRIM | Caps.ZERO | Caps.EXTENTS | Caps.CACHE)
    door = Checked(source)
    for call, number in (
        (door.trim(offset, length), errno.ENOSPC),
        (door.zero(offset, length), errno.ENOSPC),
        (door.extents(offset, length), errno.EINVAL),
        (door.cache(offset, length), errno.EINVAL),
    ):
        with pytest.raises(SourceError) as refusal:
            await call
        assert refusal.value.errno == number
    if length >= 0:
        with pytest.raises(SourceError):
            await door.pread_into(memoryview(bytearray(length)), offset)
        with pytest.raises(SourceError):
            await door.pwrite(memoryview(bytes(length)), offset)
    assert door.view(offset, length) is None
    assert source.calls == []


async def test_nothing_unaligned_or_too_long_reaches_the_source() -> None:
    source = Recorder(WRITABLE, block=BlockSize(512, 512, 4096))
    door = Checked(source)
    for offset, length in ((1, 512), (0, 511), (0, 8192)):
        with pytest.raises(SourceError) as refusal:
            await door.pread_into(memoryview(bytearray(length)), offset)
        assert refusal.value.errno == errno.EINVAL
        with pytest.raises(SourceError):
            await door.pwrite(memoryview(bytes(length)), offset)
    assert source.calls == []
    await door.zero(0, 8192)  # other operations have no maximum, and zeroes are written within it
    assert source.calls == [("write", 0, 4096, False), ("write", 4096, 4096, False)]


@pytest.mark.parametrize("readonly, caps", [(True, WRITABLE | Caps.TRIM | Caps.ZERO), (False, Caps.TRIM | Caps.ZERO)])
async def test_nothing_writes_where_writing_is_not_allowed(readonly: bool, caps: Caps) -> None:
    source = Recorder(caps)
    door = Checked(source, readonly=readonly)
    assert not door.info.caps & (Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FUA)
    for call in (door.pwrite(memoryview(b"x"), 0), door.trim(0, 1), door.zero(0, 1)):
        with pytest.raises(SourceError) as refusal:
            await call
        assert refusal.value.errno == errno.EROFS
    assert door.view(0, 1, writable=True) is None
    assert source.calls == []


async def test_fua_is_a_flush_where_the_source_has_none() -> None:
    source = Recorder(WRITABLE | Caps.TRIM | Caps.ZERO)
    door = Checked(source)
    assert Caps.FUA in door.info.caps
    await door.pwrite(memoryview(b"x"), 0, fua=True)
    await door.trim(0, 1, fua=True)
    await door.zero(0, 1, fua=True)
    assert source.calls == [("write", 0, 1, False), ("flush",), ("trim", 0, 1, False), ("flush",),
                            ("zero", 0, 1, True, False, False), ("flush",)]  # fmt: skip


async def test_fua_goes_to_a_source_that_has_it() -> None:
    source = Recorder(WRITABLE | Caps.FUA)
    await Checked(source).pwrite(memoryview(b"x"), 0, fua=True)
    await Checked(source).zero(0, 2, fua=True)
    assert source.calls == [("write", 0, 1, True), ("write", 0, 2, True)]


async def test_a_failed_flush_fails_the_fua_write() -> None:
    class FlushFails(Recorder):
        async def flush(self) -> None:
            raise OSError(errno.EIO, "the disk is gone")

    with pytest.raises(SourceError, match="the disk is gone"):
        await Checked(FlushFails()).pwrite(memoryview(b"x"), 0, fua=True)


async def test_what_a_source_lacks_is_harmless() -> None:
    source = Recorder(Caps.WRITE)
    door = Checked(source)
    await door.flush()
    await door.trim(0, 10)
    await door.cache(0, 10)
    assert await door.extents(3, 10) == [Extent(3, 10, 0)]
    assert source.calls == []
    with pytest.raises(SourceError) as refusal:
        await door.zero(0, 10, fast=True)
    assert refusal.value.errno == errno.ENOTSUP


async def test_a_source_that_cannot_zero_this_range_is_sent_zeroes() -> None:
    class Partly(Recorder):
        async def zero(
            self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
        ) -> None:
            raise OSError(errno.EOPNOTSUPP, "no")

    source = Partly(WRITABLE | Caps.ZERO | Caps.FAST_ZERO)
    await Checked(source).zero(5, 100)
    assert source.calls == [("write", 5, 100, False)]
    with pytest.raises(SourceError) as refusal:
        await Checked(source).zero(5, 100, fast=True)
    assert refusal.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    "answer",
    [[], [Extent(1, 5, 0)], [Extent(0, 0, 0)], [Extent(0, 5, 0), Extent(6, 5, 0)], [Extent(0, 9, 0), Extent(4, 9, 0)]],
)
async def test_extents_out_of_order_are_an_error(answer: list[Extent]) -> None:
    with pytest.raises(SourceError) as refusal:
        await Checked(Recorder(WRITABLE | Caps.EXTENTS, extents=answer)).extents(0, 10)
    assert refusal.value.errno == errno.EIO


async def test_extents_are_clipped_and_joined() -> None:
    answer = [Extent(10, 5, 0), Extent(15, 5, 0), Extent(20, 100, HOLE | ZERO)]
    door = Checked(Recorder(WRITABLE | Caps.EXTENTS, extents=answer))
    assert await door.extents(10, 20) == [Extent(10, 10, 0), Extent(20, 10, HOLE | ZERO)]
    assert await door.extents(10, 20, one=True) == [Extent(10, 10, 0)]
    with pytest.raises(SourceError):
        await door.extents(10, 20, context="other:context")


@pytest.mark.parametrize(
    "error, number, text",
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC, "recorder: full"),
        (OSError("no number"), errno.EIO, "recorder: no number"),
        (SourceError(errno.EPERM, "no", where="below"), errno.EPERM, "below: no"),
        (TimeoutError(), errno.EIO, "recorder: "),
    ],
)
async def test_every_error_has_a_number_and_says_where(error: OSError, number: int, text: str) -> None:
    source = Recorder(WRITABLE | Caps.TRIM | Caps.ZERO | Caps.EXTENTS | Caps.CACHE, error=error)
    door = Checked(source)
    calls = {"read": door.pread_into(memoryview(bytearray(1)), 0), "write": door.pwrite(memoryview(b"x"), 0),
             "flush": door.flush(), "trim": door.trim(0, 1), "zero": door.zero(0, 1),
             "extents": door.extents(0, 1), "cache": door.cache(0, 1)}  # fmt: skip
    for name, call in calls.items():
        with pytest.raises(SourceError) as failure:
            await call
        assert failure.value.errno == number
        assert str(failure.value).startswith(text)
        assert (door.counters[name].requests, door.counters[name].errors, door.counters[name].bytes) == (1, 1, 0)


async def test_requests_are_counted_and_traced() -> None:
    traced: list[tuple[str, int, int]] = []
    door = Checked(Recorder(WRITABLE | Caps.TRIM), trace=lambda *call: traced.append(call))
    await door.pread_into(memoryview(bytearray(10)), 5)
    await door.pwrite(memoryview(b"abc"), 6)
    assert door.view(1, 2) is not None
    await door.trim(7, 8)
    await door.flush()
    assert traced == [("read", 5, 10), ("write", 6, 3), ("read", 1, 2), ("trim", 7, 8), ("flush", 0, 0)]
    assert (door.counters["read"].requests, door.counters["read"].bytes) == (2, 12)
    assert door.counters["write"].bytes == 3
    assert door.counters["trim"].bytes == 8
    assert door.counters["flush"].requests == 1
