"""Exports that come and go, without a mount: who holds them, what one that is dead does to others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import pytest
import trio
from trio.testing import MockClock

from nbdfs import live
from nbdfs.backends.null import DRIVER as NULL
from nbdfs.errors import UserError
from nbdfs.export import Export
from nbdfs.live import Exports
from nbdfs.records import replace
from nbdfs.registry import OpenContext
from nbdfs.source import BlockSize, Caps, Source, SourceInfo
from nbdfs.stack import Plan, plan

TIMEOUT = 30  # seconds


class Probe(Source):
    """A source that tells what happens to it."""

    def __init__(self, log: list[str], size: int = 4096) -> None:
        self.info = SourceInfo(size, Caps.WRITE | Caps.FLUSH, BlockSize())
        self.log = log

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = bytes(len(buffer))

    async def flush(self) -> None:
        self.log.append("flushed")

    async def aclose(self) -> None:
        self.log.append("closed")


def made_of(opening: Callable[[], AbstractAsyncContextManager[Source]]) -> Plan:
    """The plan of a source that is opened so."""

    def open_it(argument: str, options: object, context: OpenContext) -> AbstractAsyncContextManager[Source]:
        return opening()

    return Plan((), replace(NULL, open=open_it), NULL.parse_options(()), "1M")


class Shop:
    """A front end that writes down what it offers."""

    def __init__(self) -> None:
        self.offers: dict[str, Export] = {}

    def check(self, name: str) -> None:
        if name == "refused":
            raise UserError("no such thing here")

    async def show(self, export: Export, instead: Export | None = None) -> None:
        assert self.offers.get(export.name) is instead
        self.offers[export.name] = export
        export.hold()

    async def hide(self, export: Export) -> None:
        assert self.offers.pop(export.name) is export

    def handles(self, export: Export) -> int:
        return 0

    async def resized(self, export: Export) -> None:
        return

    def facts(self) -> Mapping[Export, Mapping[str, object]]:
        return {export: {"offered": True} for export in self.offers.values()}


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[Exports, Shop]]:
    with trio.fail_after(TIMEOUT):
        async with live.opened() as exports:
            front_end = Shop()
            async with exports.offered_by(front_end):
                yield exports, front_end


async def test_a_removed_export_lives_until_it_is_let_go() -> None:
    log: list[str] = []
    async with shop() as (exports, front_end):
        await exports.add("a", made_of(lambda: Probe(log)))
        assert list(front_end.offers) == ["a"]
        export = await exports.remove("a")
        assert not front_end.offers
        assert exports.leaving == [export]
        await trio.testing.wait_all_tasks_blocked()
        assert log == []
        export.release()
        await export.closed.wait()
        assert log == ["flushed", "closed"]
        assert exports.leaving == []


async def test_all_is_flushed_and_closed_at_the_end_whoever_holds_it() -> None:
    log: list[str] = []
    async with shop() as (exports, _):
        await exports.add("kept", made_of(lambda: Probe(log)))
        await exports.add("removed", made_of(lambda: Probe(log)))
        await exports.remove("removed")
    assert sorted(log) == ["closed", "closed", "flushed", "flushed"]


async def test_all_is_flushed_when_everything_is_cancelled() -> None:
    log: list[str] = []
    with trio.CancelScope() as scope:
        async with live.opened() as exports:
            await exports.open_all({"a": made_of(lambda: Probe(log))})
            scope.cancel()
            await trio.sleep_forever()
    assert log == ["flushed", "closed"]


async def test_one_that_cannot_be_opened_ends_the_others() -> None:
    log: list[str] = []

    @asynccontextmanager
    async def never() -> AsyncIterator[Source]:
        try:
            await trio.sleep_forever()
        finally:
            log.append("given up")
        yield Probe(log)

    with trio.fail_after(TIMEOUT), pytest.raises(UserError, match="there is no such file"):
        async with live.opened() as exports:
            plans = {"good": made_of(lambda: Probe(log)), "dead": made_of(never)}
            await exports.open_all({**plans, "bad": made_of(failing("there is no such file"))})
    assert sorted(log) == ["closed", "flushed", "given up"]


def failing(message: str) -> Callable[[], AbstractAsyncContextManager[Source]]:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Source]:
        await trio.testing.wait_all_tasks_blocked()
        raise UserError(message)
        yield

    return opening


async def test_more_dead_sources_than_one_do_not_keep_others_from_opening() -> None:
    begun = 0

    @asynccontextmanager
    async def dead() -> AsyncIterator[Source]:
        nonlocal begun
        begun += 1
        await trio.sleep_forever()
        yield Probe([])

    async with shop() as (exports, _), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(exports.add, f"dead{number}", made_of(dead))
        await trio.testing.wait_all_tasks_blocked()
        assert begun == 20
        await exports.add("a", plan("null:1M"))
        await exports.remove("a")
        with pytest.raises(UserError, match="is taken already"):
            await exports.add("dead3", plan("null:1M"))
        nursery.cancel_scope.cancel()


async def test_a_failed_change_changes_nothing() -> None:
    log: list[str] = []
    async with shop() as (exports, front_end):
        old = await exports.add("a", made_of(lambda: Probe(log)))
        for change in (exports.replace, exports.add):
            with pytest.raises(UserError):
                await change("a", made_of(failing("no")))
        with pytest.raises(UserError, match="no such thing here"):
            await exports.add("refused", plan("null:1M"))
        with pytest.raises(UserError, match="is empty"):
            await exports.add("b", made_of(lambda: Probe(log, 0)))
        with pytest.raises(UserError, match="there is no 'b' here"):
            await exports.remove("b")
        with pytest.raises(UserError, match="files here have names"):
            await exports.resize("", 1 << 20)
        assert list(exports) == [old] == list(front_end.offers.values())
        new = await exports.replace("a", made_of(lambda: Probe(log)))
        assert list(exports) == [new] == list(front_end.offers.values())
        assert exports.leaving == [old]


def mortal(crash: trio.Event) -> Callable[[], AbstractAsyncContextManager[Source]]:
    """A source that fails by itself once `crash` is set."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Source]:
        async def die() -> None:
            await crash.wait()
            raise ZeroDivisionError("a fault in the source")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(die)
            yield Probe([])
            nursery.cancel_scope.cancel()

    return opened


async def test_what_has_one_source_ends_with_it(caplog: pytest.LogCaptureFixture) -> None:
    crash = trio.Event()
    with pytest.raises(UserError, match="failed, and there is nothing else here"), trio.fail_after(30):
        async with live.opened() as exports:
            await exports.open_all({"": made_of(mortal(crash))})
            crash.set()
            await trio.sleep_forever()
    assert "a fault in the source" in caplog.text


async def test_a_source_that_fails_by_itself_is_taken_away(caplog: pytest.LogCaptureFixture) -> None:
    crash = trio.Event()
    with pytest.raises(UserError, match=r"data may be lost: .*it failed by itself"):  # told at the end too
        async with shop() as (exports, front_end):
            await exports.add("well", plan("null:1M"))
            ill = await exports.add("ill", made_of(mortal(crash)))
            crash.set()
            await ill.closed.wait()
            assert list(front_end.offers) == ["well"]
            assert [export.name for export in exports] == ["well"]
    assert "a fault in the source" in caplog.text


async def test_the_last_flush_that_fails_is_told_at_the_end() -> None:
    class Broken(Probe):
        async def flush(self) -> None:
            raise OSError(5, "the disk is gone")

    with pytest.raises(UserError, match=r"the last flush failed, data may be lost: .*the disk is gone"):
        async with shop() as (exports, _):
            await exports.add("a", made_of(lambda: Broken([])))


@pytest.mark.parametrize(("rate", "ends"), [("256k", True), ("8k", False)])
async def test_the_last_flush_has_time_for_as_long_as_it_gets_on(
    autojump_clock: MockClock, rate: str, ends: bool
) -> None:
    """32 MiB take minutes at the one rate; at the other not even the first of them comes in time."""
    told = nullcontext() if ends else pytest.raises(UserError, match=r"the last flush failed.*not done within 60 s")
    with told:
        async with shop() as (exports, _):
            export = await exports.add("a", plan(f"cache,mode=writeback::rate,rate={rate}::null:64M"))
            for offset in range(0, 32 << 20, 1 << 20):
                await export.source.pwrite(memoryview(bytes(1 << 20)), offset)
    assert ends is (trio.current_time() > 100)


async def test_new_users_wait_while_the_size_changes() -> None:
    changing, done = trio.Event(), trio.Event()

    class Slow(Probe):
        async def resize(self, size: int) -> None:
            changing.set()
            await done.wait()
            self.info = replace(self.info, size=size)

    async with shop() as (exports, _), trio.open_nursery() as nursery:
        export = await exports.add("a", made_of(lambda: Slow([])))
        nursery.start_soon(exports.resize, "a", 8192)
        await changing.wait()
        sizes: list[int] = []

        async def use() -> None:
            async with export.client():
                sizes.append(export.source.info.size)

        nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        assert sizes == []
        done.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sizes == [8192]


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 70])
async def test_sizes_that_nothing_can_have(size: int) -> None:
    async with shop() as (exports, _):
        await exports.add("a", plan("memory:1M"))
        with pytest.raises(UserError, match=f"{size} is not from 0"):
            await exports.resize("a", size, shrink=True)


async def test_what_is_removed_while_its_size_changes_is_closed_afterwards() -> None:
    changing, done = trio.Event(), trio.Event()
    log: list[str] = []

    class Slow(Probe):
        async def resize(self, size: int) -> None:
            changing.set()
            await done.wait()
            log.append("resized")
            self.info = replace(self.info, size=size)

    async with shop() as (exports, _), trio.open_nursery() as nursery:
        export = await exports.add("a", made_of(lambda: Slow(log)))
        nursery.start_soon(exports.resize, "a", 8192)
        await changing.wait()

        async def resize_next() -> None:
            with pytest.raises(UserError, match="'a' was removed meanwhile"):
                await exports.resize("a", 16384)

        nursery.start_soon(resize_next)
        await trio.testing.wait_all_tasks_blocked()
        await exports.remove("a")
        export.release()  # the hold of the front end
        await trio.testing.wait_all_tasks_blocked()
        assert log == []
        done.set()
        await export.closed.wait()
        assert log == ["resized", "flushed", "closed"]


@pytest.mark.parametrize("spec", ["memory:1M", "memory,mlock:64k"])
async def test_memory_keeps_its_content_and_holes_when_its_size_changes(spec: str) -> None:
    async with shop() as (exports, _):
        export = await exports.add("a", plan(spec))
        source, size = export.source, export.source.info.size
        await source.pwrite(memoryview(b"x" * 5000), 4000)
        await exports.resize("a", 8 << 20)
        data = memoryview(bytearray(8 << 20))
        await source.pread_into(data, 0)
        assert bytes(data) == bytes(4000) + b"x" * 5000 + bytes((8 << 20) - 9000)
        assert sum(extent.length for extent in await source.extents(0, 8 << 20) if not extent.flags) == 12288
        await source.pwrite(memoryview(b"end"), (8 << 20) - 3)
        with pytest.raises(UserError, match="would be lost"):
            await exports.resize("a", size)
        await exports.resize("a", 4096, shrink=True)
        assert source.info.size == 4096
        with pytest.raises(OSError, match="outside"):
            await source.pread_into(data[:512], 4096)
        for wrong in (0, -1):
            with pytest.raises(UserError, match="cannot change the size"):
                await exports.resize("a", wrong, shrink=True)


async def test_a_layer_does_not_change_its_size() -> None:
    async with shop() as (exports, _):
        await exports.add("a", plan("offset,offset=4k::memory:1M"))
        with pytest.raises(UserError, match="changing the size is not supported"):
            await exports.resize("a", 2 << 20)


async def test_what_has_no_name_is_called_by_its_source() -> None:
    async with shop() as (exports, _):
        await exports.open_all({"": plan("memory:1M")})
        for size, said in ((4096, "has 1048576 bytes"), (1 << 63, "cannot change the size")):
            with pytest.raises(UserError, match=rf"{said}.*") as caught:
                await exports.resize("", size)
            assert "'memory:1M'" in str(caught.value)
