"""What the contract of `nbdfs.source` promises, on every driver, from its declared capabilities."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from nbdfs import registry
from nbdfs.eager import Run
from nbdfs.ranges import normalise
from nbdfs.source import ALLOCATION, RESIDENT, ZERO, Caps, Extent, read
from nbdfs.stack import open_stack
from tests.conformance.conftest import Device
from tests.conformance.drivers import ROWS, Subject, Writes

UNTOUCHED = 0xA5


def can(device: Device, caps: Caps) -> bool:
    """Whether the device declares a capability; where it does not, the door must refuse or stand in."""
    if caps & Caps.WRITE and device.row.writes is Writes.REFUSED:
        return False
    return caps in device.door.info.caps


def test_every_driver_has_a_row() -> None:
    assert {row.driver for row in ROWS} >= set(registry.names())
    assert len({str(row) for row in ROWS}) == len(ROWS)


async def test_facts(device: Device) -> None:
    info = device.door.info
    assert info.size == len(device.subject.content)
    assert info.block.minimum > 0
    assert info.block.minimum & (info.block.minimum - 1) == 0
    assert info.block.minimum <= info.block.preferred <= info.block.maximum
    assert info.size % info.block.minimum == 0
    assert info.description


async def test_reads(device: Device) -> None:
    await device.check()
    for offset, length in device.ranges():
        await device.check(offset, length)


async def test_read_fills_the_buffer_and_nothing_else(device: Device) -> None:
    for offset, length in device.ranges():
        around = bytearray([UNTOUCHED]) * (length + 128)
        await device.door.pread_into(memoryview(around)[64 : 64 + length], offset)
        assert around[64 : 64 + length] == device.model[offset : offset + length]
        assert around[:64] + around[64 + length :] == bytes([UNTOUCHED]) * 128


async def test_outside_is_refused(device: Device) -> None:
    for offset, length in [(device.size, 1), (device.size - 1, 2), (0, 0), (-1, 1), (-1, 2), (1 << 63, 1)]:
        with pytest.raises(OSError):
            await device.door.pread_into(memoryview(bytearray(length)), offset)
        with pytest.raises(OSError):
            await device.door.pwrite(memoryview(bytes(length)), offset)
        with pytest.raises(OSError):
            await device.door.extents(offset, length)
    await device.check()


async def test_writes(device: Device) -> None:
    if not can(device, Caps.WRITE):
        with pytest.raises(OSError) as refusal:
            await device.door.pwrite(memoryview(b"x"), 0)
        assert refusal.value.errno == (errno.ENOSPC if device.row.writes is Writes.REFUSED else errno.EROFS)
        return
    for offset, length in device.ranges():
        await device.write(offset, length)
        await device.check(max(0, offset - 4096), min(device.size, offset + length + 4096) - max(0, offset - 4096))
    await device.check()


async def test_write_leaves_the_callers_data_alone(device: Device) -> None:
    if not can(device, Caps.WRITE):
        return
    data = bytearray(device.sample(3, 9000))
    before = bytes(data)
    await device.door.pwrite(memoryview(data).toreadonly(), 3)
    assert data == before
    data[:] = bytes(len(data))  # once it has returned the data is the caller's again
    device.wrote(3, before)
    await device.check()


async def test_flush_and_fua(device: Device) -> None:
    await device.door.flush()
    if can(device, Caps.WRITE):
        await device.write(5, 3000)
        await device.door.flush()
        await device.write(1000, 5000, fua=True)
    await device.check()


async def test_writes_survive_reopening(device: Device) -> None:
    """What was flushed is there for a second opening, if the source is one that outlives its process."""
    if not can(device, Caps.WRITE | Caps.FLUSH):
        return
    await device.write(100, 4000)
    await device.door.flush()
    async with open_stack(device.subject.spec, readonly=True, debug=True) as again:
        assert await read(again, 0, 8192) == device.model[:8192]


async def test_trim(device: Device) -> None:
    if not can(device, Caps.WRITE):
        with pytest.raises(OSError):
            await device.door.trim(0, 1)
        return
    for offset, length in device.ranges():
        try:
            await device.door.trim(offset, length)
            await device.door.trim(offset, length, fua=True)
        except OSError:
            assert device.row.writes is Writes.SAME_ONLY
            assert any(device.model[offset : offset + length])
        around = max(0, offset - 4096), min(device.size, offset + length + 4096)
        await device.check(around[0], offset - around[0])
        await device.check(offset + length, around[1] - offset - length)
        await device.write(offset, length)
    await device.check()


@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("may_trim", [False, True])
async def test_zero(device: Device, may_trim: bool, fast: bool, fua: bool) -> None:
    if not can(device, Caps.WRITE):
        with pytest.raises(OSError):
            await device.door.zero(0, 1)
        return
    for offset, length in device.ranges():
        if device.row.writes is Writes.SAME_ONLY and any(device.model[offset : offset + length]):
            with pytest.raises(OSError):
                await device.door.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)
            continue
        await device.write(offset, length)
        try:
            await device.door.zero(offset, length, may_trim=may_trim, fast=fast, fua=fua)
        except OSError as error:
            assert fast, "only a fast zero may be refused"
            assert error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP)
        else:
            device.wrote(offset, bytes(length))
        around = max(0, offset - 4096), min(device.size, offset + length + 4096)
        await device.check(around[0], around[1] - around[0])
    await device.check()


async def walk(device: Device, context: str, *, one: bool) -> list[Extent]:
    """All extents of the device, each reply held to the contract."""
    at, found = 0, []
    while at < device.size:
        reply = await device.door.extents(at, device.size - at, context=context, one=one)
        assert reply[0].offset == at
        assert not one or len(reply) == 1
        for extent in reply:
            assert extent.offset == at
            assert extent.length > 0
            at += extent.length
        found += reply
    assert at == device.size
    return normalise(found, 0, device.size)


async def test_extents(device: Device) -> None:
    if can(device, Caps.WRITE):
        await device.write(8192, 20000)
        await device.write(device.size // 2, 5000)
        try:
            await device.door.zero(12288, 4096)
            device.wrote(12288, bytes(4096))
        except OSError:
            assert device.row.writes is Writes.SAME_ONLY
    extents = await walk(device, ALLOCATION, one=False)
    assert extents == await walk(device, ALLOCATION, one=True)
    for extent in extents:
        if extent.flags & ZERO:
            assert not any(device.model[extent.offset : extent.offset + extent.length]), f"{extent} is data"
    for offset, length in device.ranges():
        found = await device.door.extents(offset, length)
        assert found[0].offset == offset
        assert found[-1].offset + found[-1].length <= offset + length


async def test_contexts(device: Device) -> None:
    assert ALLOCATION in device.door.info.contexts
    for context in (*device.door.info.contexts, RESIDENT):
        await walk(device, context, one=False)
    with pytest.raises(OSError) as refusal:
        await device.door.extents(0, 1, context="no:such")
    assert refusal.value.errno == errno.EINVAL


async def test_cache(device: Device) -> None:
    for offset, length in device.ranges():
        await device.door.cache(offset, length)
    await device.check()


async def test_view_is_the_data(device: Device) -> None:
    for offset, length in device.ranges():
        view = device.door.view(offset, length)
        if view is not None:
            assert view.nbytes == length
            assert view == device.model[offset : offset + length]
            view.release()
        if can(device, Caps.WRITE) and (view := device.door.view(offset, length, writable=True)) is not None:
            data = device.sample(offset, length)
            view[:] = data
            view.release()
            device.wrote(offset, data)
            await device.check(offset, length)


async def test_views_of_many_ranges_are_the_data(device: Device) -> None:
    """Some of the ranges may lie outside."""
    block = device.door.info.block.minimum
    for length in {block, max(4096, block)}:
        offsets = [offset - offset % block for offset, _ in device.ranges()] + [device.size - length + block, -length]
        offsets = list(dict.fromkeys(offsets))
        inside = [0 <= offset <= device.size - length for offset in offsets]
        views = device.door.views(length, offsets)
        assert len(views) == len(offsets)
        for offset, view, is_inside in zip(offsets, views, inside, strict=True):
            assert view is None or (is_inside and view == device.model[offset : offset + length])
        apart = [offset for offset, is_inside in zip(offsets, inside, strict=True) if is_inside and not offset % length]
        for offset, view in zip(apart, device.door.views(length, apart, writable=True), strict=True):
            assert view is None or can(device, Caps.WRITE)
            if view is not None:
                sample = device.sample(offset, length)
                view[:] = sample
                device.wrote(offset, sample)
    await device.check()


async def test_what_is_done_at_once_is_what_the_ordinary_way_does(device: Device) -> None:
    """Any number of a batch, from the first on; other bytes of the buffer stay as they are."""
    block = device.door.info.block.minimum
    for length in {block, max(512, block), max(4096, block)}:
        offsets = [offset for offset, size in device.ranges() if not offset % block and offset + length <= device.size]
        offsets = offsets or [0] * (length <= device.size)
        if not offsets:
            continue
        buffer = memoryview(bytearray(length * len(offsets)))
        done = device.door.read_now(buffer, length, offsets)
        assert 0 <= done <= len(offsets)
        expected = b"".join(device.model[offset : offset + length] for offset in offsets[:done])
        assert buffer[: done * length] == expected
        for offset in offsets:
            sample = device.sample(offset, length)
            if device.door.write_now(memoryview(sample), length, [offset]):
                device.wrote(offset, sample)
    await device.check()


async def test_outside_nothing_is_done_at_once(device: Device) -> None:
    for offset, length in [(device.size, 1), (device.size - 1, 2), (0, 0), (-1, 1), (1 << 63, 1)]:
        assert device.door.read_now(memoryview(bytearray(2 * length)), length, [0, offset]) == 0
        assert device.door.write_now(memoryview(bytes(2 * length)), length, [0, offset]) == 0
    await device.check()


async def test_nothing_is_written_at_once_to_a_readonly_device(readonly: Device) -> None:
    assert readonly.door.write_now(memoryview(bytes(512)), 512, [0]) == 0


async def test_no_writable_view_of_a_readonly_device(readonly: Device) -> None:
    assert all(readonly.door.view(offset, length, writable=True) is None for offset, length in readonly.ranges())
    assert not any(readonly.door.views(512, [0, 512], writable=True))


async def test_backing_is_the_data(device: Device) -> None:
    backing = device.door.backing()
    if backing is None:
        return
    if can(device, Caps.WRITE):
        await device.write(77, 5000)
    assert os.pread(backing.fd, device.size, backing.offset) == device.model
    if can(device, Caps.WRITE) and device.row.writes is Writes.KEPT:
        os.pwrite(backing.fd, b"through the descriptor", backing.offset + 10)
        device.wrote(10, b"through the descriptor")
        await device.check()
    if backing.fixed_size:
        with pytest.raises(OSError):
            os.pwrite(backing.fd, b"xx", backing.offset + device.size - 1 + 4096)
        assert os.fstat(backing.fd).st_size in (0, backing.offset + device.size)


async def test_readonly(readonly: Device) -> None:
    door = readonly.door
    assert not can(readonly, Caps.WRITE)
    for refused in (
        lambda: door.pwrite(memoryview(b"x"), 0),
        lambda: door.zero(0, 1),
        lambda: door.trim(0, 1),
    ):
        with pytest.raises(OSError) as refusal:
            await refused()
        assert refusal.value.errno == errno.EROFS
    await door.flush()
    await readonly.check()


async def test_many_at_once(device: Device) -> None:
    """Requests at the same time on neighbouring ranges, which share blocks, do not disturb each other."""
    step = device.size // 32
    if step == 0:
        return

    async def worker(index: int) -> None:
        for _ in range(3):
            if can(device, Caps.WRITE):
                await device.write(index * step, step)
            await device.check(index * step, step)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for index in range(32):
                nursery.start_soon(worker, index)
    await device.check()


async def test_cancelled_read_leaves_the_buffer(device: Device) -> None:
    """A cancelled operation is over: it writes no more into its buffer, and the device goes on."""
    length = min(device.size, device.door.info.block.maximum)
    buffer = bytearray(length)
    for delay in (0, 0.0005, 0.005):
        with trio.move_on_after(delay):
            await device.door.pread_into(memoryview(buffer), 0)
        buffer[:] = bytes([UNTOUCHED]) * length
        await trio.sleep(0.02)
        assert buffer.count(UNTOUCHED) == length, "written to after it was cancelled"
    with trio.fail_after(30):
        await device.check()


async def test_cancelled_write_is_over(device: Device) -> None:
    """Once a cancelled write is over, a later one to the same place has the last word."""
    if not can(device, Caps.WRITE):
        return
    length = min(device.size, device.door.info.block.maximum)
    for delay in (0, 0.0005, 0.005):
        data = bytearray(device.sample(0, length))
        with trio.move_on_after(delay):
            await device.door.pwrite(memoryview(data), 0)
        data[:] = bytes(length)
        await device.write(0, length)
        await trio.sleep(0.02)
        with trio.fail_after(30):
            await device.check()


async def test_closed_with_nothing_left(subject: Subject) -> None:
    """Opening and closing again and again leaves no descriptor behind."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with open_stack(subject.spec, readonly=True) as door:
        await read(door, 0, 1)
    before = descriptors()
    for _ in range(3):
        async with open_stack(subject.spec, readonly=True) as door:
            await read(door, 0, 1)
    with trio.fail_after(30):
        while descriptors() > before:  # peers that run in this process may close their ends a little later
            await trio.sleep(0.02)


async def test_closing_while_cancelled(subject: Subject) -> None:
    """A stack closes in order also when the whole program is being cancelled."""
    with trio.CancelScope() as scope:
        async with open_stack(subject.spec) as door:
            await read(door, 0, 1)
            scope.cancel()
    with trio.fail_after(30):
        async with open_stack(subject.spec, readonly=True) as door:
            await read(door, 0, 1)


async def test_eager_operations_wait_for_nothing_but_what_was_asked(device: Device) -> None:
    """Where a driver says that its operations need no task, they are carried without one, and do the same."""
    if not device.door.eager:
        return
    ended = trio.Event()
    errors: list[BaseException] = []

    async def work() -> None:
        try:
            for offset, length in device.ranges():
                await device.check(offset, length)
            if can(device, Caps.WRITE):
                for offset, length in device.ranges():
                    await device.write(offset, length)
                await device.door.flush()
        except (OSError, RuntimeError, AssertionError) as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        Run(work(), nursery, ended.set).start()
        with trio.fail_after(60):
            await ended.wait()
    assert not errors
    await device.check()


async def test_an_eager_operation_can_be_cancelled_at_its_wait(device: Device) -> None:
    if not device.door.eager:
        return
    ends: list[int] = []
    buffer = bytearray([UNTOUCHED]) * min(device.size, 4096)

    async def work() -> None:
        await device.door.pread_into(memoryview(buffer), 0)

    async with trio.open_nursery() as nursery:
        run = Run(work(), nursery, lambda: ends.append(1))
        run.start()
        run.cancel()
    assert ends == [1]
    left = bytes(buffer)
    await device.check()
    assert bytes(buffer) == left
