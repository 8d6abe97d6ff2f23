"""The layers that show less, more or later: offset, readonly, resize, retry, rate."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from nbdfs.backends import rate, readonly, resize, retry
from nbdfs.errors import SourceError, UsageError, UserError
from nbdfs.registry import OpenContext
from nbdfs.source import HOLE, ZERO, Backing, Caps, Extent, Source, read
from nbdfs.stack import open_stack
from tests.devices import EVERYTHING, Ram

CONTENT = bytes(range(256)) * 40


def nothing(spec: str) -> object:
    raise AssertionError(spec)


CONTEXT = OpenContext(False, nothing)  # type: ignore[arg-type]


class Backed(Ram):
    """With both fast paths."""

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        return memoryview(self.content)[offset : offset + length]

    def backing(self) -> Backing | None:
        return Backing(99, 7, True)


# ---- offset


async def test_offset_shows_a_part_by_every_path() -> None:
    from nbdfs.window import Window

    base = Backed(CONTENT)
    layer = Window(base, 1000, 500, "part")
    assert await read(layer, 5, 100) == CONTENT[1005:1105]
    assert layer.view(5, 100) == CONTENT[1005:1105]
    assert layer.backing() == Backing(99, 1007, False)  # a write past the window would change what is behind it
    await layer.pwrite(memoryview(b"new"), 10)
    await layer.zero(20, 5)
    await layer.trim(30, 5)
    await layer.cache(40, 5)
    await layer.flush()
    assert base.log[-5:] == [
        ("write", 1010, 3),
        ("zero", 1020, 5),
        ("trim", 1030, 5),
        ("cache", 1040, 5),
        ("flush", 0, 0),
    ]
    assert await layer.extents(0, 500) == [Extent(0, 500, 0)]
    assert Window(base, 0, len(CONTENT), "all").backing() == Backing(99, 7, True)


@pytest.mark.parametrize("options", ["offset=11k", "offset=1k,size=10k"])
async def test_offset_outside(options: str) -> None:
    with pytest.raises(UserError, match="but there are 10240 bytes"):
        async with open_stack(f"offset,{options}::null:10k"):
            pass


# ---- readonly


async def test_readonly_passes_no_way_to_write(tmp_path: Path) -> None:
    layer = readonly.DRIVER.open(Backed(CONTENT), readonly.DRIVER.options(), CONTEXT)
    assert isinstance(layer, Source)
    assert not layer.info.caps & (Caps.WRITE | Caps.TRIM | Caps.ZERO | Caps.FLUSH | Caps.FUA)
    assert layer.view(0, 10) == CONTENT[:10] and layer.view(0, 10, writable=True) is None
    path = tmp_path / "image"
    path.write_bytes(CONTENT)
    async with open_stack(f"readonly::{path}") as source:
        with pytest.raises(OSError) as caught:
            await source.pwrite(memoryview(b"x"), 0)
        assert caught.value.errno == errno.EROFS
        writing = [fd for fd in os.listdir("/proc/self/fd") if (Path("/proc/self/fd") / fd).resolve() == path]
        flags = Path(f"/proc/self/fdinfo/{writing[0]}").read_text()
        assert int(flags.split("flags:")[1].split()[0], 8) & os.O_ACCMODE == os.O_RDONLY


# ---- resize


async def test_resize_larger() -> None:
    base = Ram(CONTENT)
    layer = resize.Grown(base, 20_000)
    assert await read(layer, 10_000, 10_000) == CONTENT[10_000:] + bytes(10_000 - 240)
    await layer.pwrite(memoryview(b"abc" + bytes(100)), 10_237)
    assert base.content[-3:] == b"abc" and len(base.content) == 10_240
    for offset in 10_239, 15_000:
        with pytest.raises(OSError, match="nothing can be kept behind 10240") as caught:
            await layer.pwrite(memoryview(b"xyz"), offset)
        assert caught.value.errno == errno.ENOSPC
    assert base.content[-3:] == b"abc"  # nothing of the refused write is done
    await layer.zero(10_000, 10_000)
    await layer.trim(15_000, 100)
    assert not any(base.content[10_000:])
    assert await layer.extents(0, 20_000) == [Extent(0, 10_240, 0), Extent(10_240, 9760, HOLE | ZERO)]
    assert await layer.extents(0, 20_000, one=True) == [Extent(0, 10_240, 0)]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ("size=5k", 5120),
        ("size=20k", 20480),
        ("size=0", 0),
        ("round-up=4k", 12288),
        ("round-down=4k", 8192),
        ("size=2000,round-up=512", 2048),
        ("size=9000,round-down=4k", 8192),
        ("round-down=5000,round-up=4k", 10000),
    ],
)
async def test_resize_sizes(options: str, size: int) -> None:
    async with open_stack(f"resize,{options}::null:10k") as source:
        assert source.info.size == size


@pytest.mark.parametrize(("options", "complains"), [("", "needs size="), (",round-up=0", "a multiple of 0")])
async def test_resize_needs_to_know_the_size(options: str, complains: str) -> None:
    with pytest.raises(UsageError, match=complains):
        async with open_stack(f"resize{options}::null:10k"):
            pass


# ---- retry


def retrying(base: Source, **options: object) -> retry.Retry:
    return retry.Retry(base, retry.RetryOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ESHUTDOWN])
async def test_retry_until_it_works(autojump_clock: MockClock, number: int) -> None:
    base = Ram(CONTENT)
    left = 3

    def fail(name: str, offset: int, length: int) -> int:
        nonlocal left
        left -= 1
        return number if left >= 0 else 0

    base.fail = fail
    start = trio.current_time()
    assert await read(retrying(base), 0, 100) == CONTENT[:100]
    assert trio.current_time() - start == pytest.approx(0.5 + 1 + 2)


async def test_what_is_retried_waits_though_what_is_below_never_does() -> None:
    async with open_stack("retry::memory:1M") as source:
        assert Caps.IMMEDIATE not in source.info.caps


@pytest.mark.parametrize(("delay", "waits"), [(1.0, 1 + 2 + 2.5 + 2.5), (60.0, 4 * 2.5)])
async def test_retry_waits_no_longer_than_it_may(autojump_clock: MockClock, delay: float, waits: float) -> None:
    base = Ram(CONTENT)
    base.fail = lambda name, offset, length: errno.EIO
    start = trio.current_time()
    with pytest.raises(OSError, match="as asked"):
        await read(retrying(base, delay=delay, max_delay=2.5), 0, 100)
    assert trio.current_time() - start == pytest.approx(waits)


async def test_retry_gives_up(autojump_clock: MockClock) -> None:
    base = Ram(CONTENT)
    base.fail = lambda name, offset, length: errno.EIO
    with pytest.raises(OSError, match="as asked"):
        await read(retrying(base, tries=3), 0, 100)
    assert len(base.log) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EINVAL, errno.ENOTSUP])
async def test_what_will_not_pass_is_not_repeated(number: int) -> None:
    base = Ram(CONTENT)
    base.fail = lambda name, offset, length: number
    with pytest.raises(OSError):
        await retrying(base).pwrite(memoryview(b"x"), 0)
    assert len(base.log) == 1


async def test_a_failed_flush_is_not_repeated_unless_the_source_says_so(autojump_clock: MockClock) -> None:
    base = Ram(CONTENT)
    base.fail = lambda name, offset, length: errno.EIO
    with pytest.raises(OSError):
        await retrying(base).flush()
    assert len(base.log) == 1

    def busy(name: str, offset: int, length: int) -> int:
        if len(base.log) < 4:
            raise SourceError(errno.EIO, "connection lost", retryable=True)
        return 0

    base.fail = busy
    await retrying(base).flush()
    assert len(base.log) == 4


async def test_retry_options() -> None:
    with pytest.raises(UsageError, match="1 or more"):
        async with open_stack("retry,tries=0::null:1k"):
            pass


# ---- rate


async def elapsed(layer: Source, action: str, count: int, length: int) -> float:
    start = trio.current_time()
    for _ in range(count):
        if action == "read":
            await read(layer, 0, length)
        else:
            await layer.pwrite(memoryview(bytes(length)), 0)
    return trio.current_time() - start


@pytest.mark.parametrize(
    ("options", "action", "seconds"),
    [
        ("rate=10k", "read", 9),
        ("rate=10k", "write", 9),
        ("read=10k", "read", 9),
        ("read=10k", "write", 0),
        ("write=20k", "write", 4.5),
        ("iops=2", "read", 4.5),
        ("iops=2,rate=1k", "read", 90),
    ],
)
async def test_rate(autojump_clock: MockClock, options: str, action: str, seconds: float) -> None:
    parsed = rate.DRIVER.parse_options([tuple(item.split("=")) for item in options.split(",")])  # type: ignore[misc]
    layer = rate.DRIVER.open(Ram(bytes(10_240), caps=EVERYTHING | Caps.IMMEDIATE), parsed, CONTEXT)
    assert isinstance(layer, Source) and Caps.IMMEDIATE not in layer.info.caps
    assert await elapsed(layer, action, 10, 10_240) == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize("options", ["", ",iops=-1"])
async def test_rate_needs_one(options: str) -> None:
    with pytest.raises(UsageError, match="rate"):
        async with open_stack(f"rate{options}::null:1k"):
            pass
