"""The `cow` layer: what is written is read, what is below is never touched, what was flushed is kept."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs import budget
from nbdfs.backends.cow import CowOptions
from nbdfs.backends.cow.commit import commit, committed_bytes
from nbdfs.backends.cow.layer import describe_base, open_cow
from nbdfs.backends.cow.overlay import _CHECKSUM, _HEADER, Header, _runs_of_ones, open_overlay
from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError
from nbdfs.records import replace
from nbdfs.registry import OpenContext
from nbdfs.source import HOLE, ZERO, Caps, Extent, read
from nbdfs.stack import open_stack
from tests.devices import Ram

CONTENT = random.Random(2).randbytes(300_001)


def nothing(spec: str) -> object:
    raise AssertionError(spec)


@asynccontextmanager
async def cow(base: Ram, *, readonly: bool = False, **options: object) -> AsyncIterator[Checked]:
    context = OpenContext(readonly, nothing)  # type: ignore[arg-type]
    async with open_cow(base, CowOptions(**options), context) as layer:  # type: ignore[arg-type]
        yield Checked(layer)


@pytest.mark.parametrize("kind", ["temporary", "memory", "kept"])
async def test_random_work_against_a_model(kind: str, tmp_path: Path) -> None:
    options = {"temporary": {}, "memory": {"memory": True}, "kept": {"overlay": str(tmp_path / "o")}}[kind]
    base = Ram(CONTENT)
    model = bytearray(CONTENT)
    chance = random.Random(3)
    async with cow(base, **options) as layer:
        for _ in range(300):
            offset = chance.randrange(len(model))
            length = min(chance.choice([1, 100, 4096, 5000, 20_000]), len(model) - offset)
            match chance.randrange(4):
                case 0 | 1:
                    data = chance.randbytes(length)
                    await layer.pwrite(memoryview(data), offset)
                    model[offset : offset + length] = data
                case 2:
                    await layer.zero(offset, length)
                    model[offset : offset + length] = bytes(length)
                case 3:
                    assert await read(layer, offset, length) == model[offset : offset + length]
        assert await read(layer, 0, len(model)) == model
    assert base.content == CONTENT
    assert not base.names("write") and not base.names("zero") and not base.names("trim")
    if kind == "kept":
        async with cow(base, **options) as layer:
            assert await read(layer, 0, len(model)) == model


async def test_extents_of_both(tmp_path: Path) -> None:
    async with cow(Ram(bytes(1 << 20)), memory=True) as layer:
        await layer.pwrite(memoryview(b"x" * 8192), 65536)
        await layer.zero(131072, 65536)
        found = await layer.extents(0, 1 << 20)
        assert found == [
            Extent(0, 65536, HOLE | ZERO),
            Extent(65536, 8192, 0),
            Extent(73728, (1 << 20) - 73728, HOLE | ZERO),
        ]


async def test_neighbouring_writes_are_one_extent_in_the_index() -> None:
    base = Ram(bytes(1 << 20))
    async with cow(base, memory=True) as layer:
        for index in range(64):
            await layer.pwrite(memoryview(b"x" * 4096), index * 4096)
        assert len(layer.below._overlay.present) == 1  # type: ignore[attr-defined]
        assert base.log == []  # whole blocks need nothing from below


async def test_the_view_of_what_is_below_shows_only_untouched_blocks() -> None:
    async with open_stack("cow,memory::data,size=1M:7") as layer:
        view = layer.view(0, 4096)
        if view is not None:
            assert view[:1] == b"\x07"
        await layer.pwrite(memoryview(b"x"), 4095)
        assert layer.view(0, 8192) is None
        assert (await read(layer, 4094, 3)) == b"\0x\0"


async def test_a_read_only_cow_shows_the_overlay_and_takes_no_writes(tmp_path: Path) -> None:
    path = str(tmp_path / "o")
    async with cow(Ram(CONTENT), overlay=path) as layer:
        await layer.pwrite(memoryview(b"x"), 5)
    async with (
        cow(Ram(CONTENT), overlay=path, readonly=True) as one,
        cow(Ram(CONTENT), overlay=path, readonly=True) as two,
    ):
        for layer in one, two:
            assert Caps.WRITE not in layer.info.caps
            assert await read(layer, 5, 1) == b"x"


async def test_the_version_of_a_read_only_cow_is_its_overlays_too(tmp_path: Path) -> None:
    """Else a cache that is kept, or an overlay on this one, would take one content for another."""

    async def identity(name: str, base: str = "golden") -> str:
        async with cow(Ram(CONTENT, identity=base), overlay=str(tmp_path / name), readonly=True) as layer:
            return layer.info.identity

    for name in "ab":
        async with cow(Ram(CONTENT, identity="golden"), overlay=str(tmp_path / name)) as layer:
            await layer.pwrite(memoryview(name.encode()), 5)
            assert layer.info.identity == ""
    first = await identity("a")
    assert len({"golden", first, await identity("b")}) == 3
    assert await identity("a") == first
    assert await identity("a", "") == ""
    async with cow(Ram(CONTENT, identity="golden"), overlay=str(tmp_path / "a")) as layer:
        await layer.pwrite(memoryview(b"c"), 5)
    assert await identity("a") != first


@pytest.mark.root
async def test_where_there_are_no_holes_a_trim_does_nothing_and_zeroes_are_written(without_holes: Path) -> None:
    base = Ram(CONTENT)
    async with cow(base, overlay=str(without_holes / "overlay")) as layer:
        await layer.trim(0, 65536)
        assert await read(layer, 0, 65536) == CONTENT[:65536]
        for offset, length in ((0, 65536), (100_001, 70_000)):
            with pytest.raises(OSError, match=r"not supported|no way to zero"):
                await layer.zero(offset, length, fast=True)
            await layer.zero(offset, length)
            assert await read(layer, offset, length) == bytes(length)
            assert await read(layer, offset + length, 1) == CONTENT[offset + length : offset + length + 1]


# ---- the file


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "ftruncate", "fsync"])
@pytest.mark.parametrize("done", [False, True])
async def test_an_overlay_whose_making_was_cut_off_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, done: bool
) -> None:
    class CutOffError(Exception):
        pass

    real = getattr(os, call)

    def cut_off(*arguments: object) -> None:
        if done:
            real(*arguments)
        raise CutOffError

    path = str(tmp_path / "overlay")
    with monkeypatch.context() as patch, pytest.raises(CutOffError):
        patch.setattr(os, call, cut_off)
        async with cow(Ram(CONTENT), overlay=path):
            pass
    if Path(path).stat().st_size:
        async with cow(Ram(CONTENT), overlay=path, readonly=True) as layer:
            assert await read(layer, 0, len(CONTENT)) == CONTENT
    for data in (b"one", b"two"):
        async with cow(Ram(CONTENT), overlay=path) as layer:
            await layer.pwrite(memoryview(data), 200_000)
    async with cow(Ram(CONTENT), overlay=path, readonly=True) as layer:
        assert await read(layer, 200_000, 4) == b"two" + CONTENT[200_003:200_004]


async def test_an_overlay_that_has_no_room_for_one_device_can_be_that_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.ftruncate

    def limited(descriptor: int, length: int) -> None:
        if length > 2 << 20:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        real(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", limited)
    path = str(tmp_path / "overlay")
    await refused(Ram(bytes(4 << 20)), "too large", overlay=path)
    async with cow(Ram(CONTENT), overlay=path) as layer:
        assert await read(layer, 0, 100) == CONTENT[:100]


async def refused(base: Ram, says: str, **options: object) -> None:
    with pytest.raises(UserError, match=says) as caught:
        async with cow(base, **options):
            pass
    assert "\n" not in str(caught.value)


@pytest.fixture
async def overlay(tmp_path: Path) -> str:
    path = str(tmp_path / "overlay")
    async with cow(Ram(CONTENT, identity="golden"), overlay=path) as layer:
        await layer.pwrite(memoryview(b"x" * 10_000), 100_000)
    return path


async def test_an_overlay_of_another_base_is_refused(overlay: str) -> None:
    await refused(Ram(b"y" + CONTENT[1:]), "another base", overlay=overlay)
    await refused(Ram(CONTENT, identity="other"), "another base", overlay=overlay)
    await refused(Ram(CONTENT + b"1"), "for a device of 300001 bytes; this one has 300002", overlay=overlay)
    async with cow(Ram(CONTENT, identity="other"), overlay=overlay, accept_base=True):
        pass
    async with cow(Ram(CONTENT, identity="other"), overlay=overlay) as layer:
        assert await read(layer, 99_999, 3) == CONTENT[99_999:100_000] + b"xx"


async def test_an_overlay_in_use_is_refused(overlay: str) -> None:
    base = Ram(CONTENT, identity="golden")
    async with cow(base, overlay=overlay):
        await refused(base, "in use", overlay=overlay)


def with_header(data: bytes, **fields: int) -> bytes:
    """An overlay whose header says something else, with the right checksum."""
    head = replace(Header.unpack(data[: _HEADER.size + _CHECKSUM.size], "overlay"), **fields).pack()
    return head + data[len(head) :]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: b"not one at all", "is no cow overlay"),
        (lambda data: data[:100], "damaged"),
        (lambda data: data[:30] + b"\xff" + data[31:], "damaged"),
        (lambda data: data[:-5000], "truncated"),
        (lambda data: with_header(data, block=0), "makes no sense"),
        (lambda data: with_header(data, block=2 << 20), "makes no sense"),
        (lambda data: with_header(data, content=0), "makes no sense"),
    ],
)
async def test_a_damaged_overlay_is_refused_and_left_alone(overlay: str, damage: object, says: str) -> None:
    file = Path(overlay)
    damaged = damage(file.read_bytes())  # type: ignore[operator]
    file.write_bytes(damaged)
    await refused(Ram(CONTENT, identity="golden"), says, overlay=overlay)
    assert file.read_bytes() == damaged


async def test_no_overlay_where_there_is_no_folder(tmp_path: Path) -> None:
    await refused(Ram(CONTENT), "No such file", overlay=str(tmp_path / "a" / "b"))
    with pytest.raises(UsageError, match="power of two"):
        async with cow(Ram(CONTENT), block=5000):
            pass
    with pytest.raises(UsageError, match="exclude"):
        async with cow(Ram(CONTENT), memory=True, overlay="x"):
            pass


async def test_bits_reach_the_disk_only_after_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_sync, real_write = os.fdatasync, os.pwrite
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append("sync"), real_sync(fd))[1])
    monkeypatch.setattr(os, "pwrite", lambda *what: (calls.append("bits"), real_write(*what))[1])
    async with cow(Ram(CONTENT), overlay=str(tmp_path / "o")) as layer:
        await layer.pwrite(memoryview(b"x"), 5)
        calls.clear()
        await layer.flush()
        assert calls == ["sync", "bits", "sync"]


async def test_a_failed_flush_stays_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(5, "no disk")

    real = os.fdatasync
    async with cow(Ram(CONTENT), overlay=str(tmp_path / "o")) as layer:
        await layer.pwrite(memoryview(b"x"), 5)
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="no disk"):
            await layer.flush()
        monkeypatch.setattr(os, "fdatasync", real)
        with pytest.raises(OSError, match="earlier sync failed"):
            await layer.flush()
        layer.below._content._failed = 0  # type: ignore[attr-defined]


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_runs_of_ones(page: bytes) -> None:
    bits = [index for index in range(len(page) * 8) if page[index // 8] >> (index % 8) & 1]
    runs = list(_runs_of_ones(page))
    assert [index for start, end in runs for index in range(start, end)] == bits
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(runs))


@given(st.sets(st.integers(0, 700), max_size=60))
@settings(max_examples=30, deadline=None)
async def test_the_index_survives(tmp_path_factory: pytest.TempPathFactory, blocks: set[int]) -> None:
    path = str(tmp_path_factory.mktemp("index") / "o")
    base = Ram(bytes(512 * 701))
    async with cow(base, overlay=path, block=512) as layer:
        for block in blocks:
            await layer.pwrite(memoryview(b"x" * 512), block * 512)
            if block % 7 == 0:
                await layer.flush()
    async with cow(base, overlay=path) as layer:
        content = await read(layer, 0, 512 * 701)
        assert {index for index in range(701) if content[index * 512]} == blocks


# ---- commit


async def test_commit_writes_back_and_empties(overlay: str) -> None:
    base = Ram(CONTENT, identity="golden")
    async with cow(base, overlay=overlay) as layer:
        await layer.zero(200_000, 50_000)
        await layer.pwrite(memoryview(b"first"), 0)
        shown = await read(layer, 0, len(CONTENT))
    was = await describe_base(base)
    taken = Path(overlay).stat().st_blocks
    opened = open_overlay(overlay, was, 4096, committing=True)
    done: list[int] = []
    total = committed_bytes(opened)
    await commit(opened, Checked(base), was, done.append)
    opened.close()
    assert sum(done) == total
    assert base.content == shown
    assert base.log[-1][0] == "flush"
    assert Path(overlay).stat().st_blocks < taken
    async with cow(Ram(shown, identity="changed by the commit"), overlay=overlay) as layer:
        assert await read(layer, 0, len(shown)) == shown
        assert not len(layer.below._overlay.present)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [1, 2, 3])
async def test_an_interrupted_commit_is_finished_by_the_next(overlay: str, stop: int) -> None:
    base = Ram(CONTENT, identity="golden")
    async with cow(base, overlay=overlay) as layer:
        await layer.pwrite(memoryview(b"first"), 0)
        await layer.pwrite(memoryview(b"last"), len(CONTENT) - 4)
        shown = await read(layer, 0, len(CONTENT))
    left = stop

    def fail(name: str, offset: int, length: int) -> int:
        nonlocal left
        left -= name in ("write", "flush")
        return 5 if left < 0 else 0

    base.fail = fail
    was = await describe_base(base)
    opened = open_overlay(overlay, was, 4096, committing=True)
    with pytest.raises(OSError, match="fails as asked"):
        await commit(opened, Checked(base), was, lambda length: None)
    opened.close()
    again = Ram(bytes(base.content), identity="no longer golden")
    await refused(again, "commit .* was interrupted", overlay=overlay)
    with pytest.raises(UserError, match="another base"):
        open_overlay(overlay, await describe_base(Ram(b"z" * len(CONTENT))), 4096, committing=True)
    was = await describe_base(again)
    opened = open_overlay(overlay, was, 4096, committing=True)
    await commit(opened, Checked(again), was, lambda length: None)
    opened.close()
    assert again.content == shown


async def test_what_is_below_a_cow_is_opened_without_write_access(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbdfs.backends import null

    seen: list[bool] = []

    def opened(argument: str, options: object, context: OpenContext) -> null.Null:
        seen.append(context.readonly)
        return null.Null(4096)

    monkeypatch.setattr(null, "DRIVER", replace(null.DRIVER, open=opened))
    for spec in "cow::null:4k", "null:4k":
        async with open_stack(spec) as source:
            assert Caps.WRITE in source.info.caps
    assert seen == [True, False]


@pytest.mark.parametrize(("spec", "memory"), [("memory:1M", True), ("memory:8T", False), ("file:{}", False)])
async def test_an_overlay_over_memory_is_in_memory(spec: str, memory: bool, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    async with open_stack("cow::" + spec.format(tmp_path / "image")) as layer:
        assert layer.below._content.in_memory is memory  # type: ignore[attr-defined]
        assert (Caps.IMMEDIATE in layer.info.caps) is memory


async def test_what_the_overlay_has_in_memory_is_viewed_in_place() -> None:
    async with open_stack("cow::memory:1M") as source:
        data = memoryview(os.urandom(128 << 10))
        await source.pwrite(data, 64 << 10)
        assert source.view(64 << 10, 128 << 10) == data
        assert source.view(0, 128 << 10) is None  # in part below
        await source.trim(64 << 10, 64 << 10)
        assert source.view(64 << 10, 128 << 10) is None  # a hole
        assert await read(source, 64 << 10, 128 << 10) == bytes(64 << 10) + data[64 << 10 :]


async def test_a_write_beside_one_that_waits_for_the_rest_of_its_block_is_not_undone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    base = Ram(CONTENT, delay=0.01)
    async with cow(base, memory=True, block=4096) as layer:
        await layer.pwrite(memoryview(bytes(8192)), 0)  # two blocks that are there
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.pwrite, memoryview(b"a" * 6000), 6000)  # the third is not, and is fetched first
            await trio.sleep(0.005)
            await layer.pwrite(memoryview(b"b" * 500), 7000)
        assert await read(layer, 6000, 6000) == b"a" * 1000 + b"b" * 500 + b"a" * 4500


async def test_an_overlay_in_memory_leaves_the_machine_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the kernel ends this or another process."""
    monkeypatch.setattr(budget, "available", lambda: 1 << 20)
    async with cow(Ram(bytes(4 << 20)), memory=True) as layer:
        await layer.pwrite(memoryview(b"a" * (1 << 20)), 0)
        monkeypatch.setattr(budget, "available", lambda: 0)
        with pytest.raises(OSError, match="used up") as failure:
            await layer.pwrite(memoryview(b"b" * (1 << 20)), 1 << 20)
        assert failure.value.errno == errno.ENOSPC
        assert not any(await read(layer, 1 << 20, 1 << 20))
        await layer.pwrite(memoryview(b"c" * 4096), 4096)  # what is there can be written again
        assert await read(layer, 4095, 2) == b"ac"
